"""Every unit's patches, through the launcher: exact, and whatever interrupts it."""

import json
import signal
import time

import jax
import launcher
import numpy as np
import pytest
from PIL import Image
from test_runs import finish, start, start_hosts

from nstvis import crops, data, models
from nstvis.units import scan_file, table
from nstvis.units.atlas import Atlas

SIZE, IMAGES, BATCH = 32, 200, 16
LAYERS = ("conv1", "conv2", "fc8")
COMMAND = [
    "--experiment=units",
    f"--config.layers={','.join(LAYERS)}",
    f"--config.size={SIZE}",
    f"--config.batch={BATCH}",
    "--config.checkpoint_every=0",
    "--config.attribution=",
]
WHOLE = [*COMMAND, f"--config.split=train[:{IMAGES}]"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("units") / "whole"
    finish(start(*WHOLE, f"--workdir={workdir}"))
    return workdir


@pytest.fixture(scope="module")
def activations():
    source = data.load("primitives", f"train[:{IMAGES}]")
    images = [np.asarray(crops.centered(source[i], SIZE)) for i in range(IMAGES)]
    forward, params = models.load("alexnet_small")
    batched = np.stack(images).astype(np.float32).reshape(-1, BATCH // 2, SIZE, SIZE, 3)
    found = [jax.jit(forward)(params, batch) for batch in batched]
    return {name: np.concatenate([x[name] for x in found]) for name in LAYERS}


def test_the_winners_are_brute_force_s(whole, activations):
    scan, _ = scan_file.load(whole / "scan.npz")
    first = 0
    for name, x in activations.items():
        flat = x.reshape(IMAGES, -1, x.shape[-1])
        highest, units = flat.max(1), slice(first, first + x.shape[-1])
        first += x.shape[-1]
        best = [part[0, :, units] for part in scan.top]
        order = np.argsort(-highest, 0, kind="stable")[: len(best[0])]
        expected = np.take_along_axis(highest, order, 0)
        if name == "fc8":  # dense layers are rounded differently for other batches
            np.testing.assert_allclose(best[0], expected, rtol=1e-4, atol=1e-4)
            continue
        np.testing.assert_array_equal(best[0], expected)
        np.testing.assert_array_equal(best[1], order)
        places = np.take_along_axis(flat.argmax(1), order, 0)
        np.testing.assert_array_equal(best[2], places)


def test_the_table_says_what_was_found(whole, activations):
    found = table.load(whole / "units.npz")
    assert list(found.layers) == list(LAYERS)
    assert found.images == IMAGES
    assert len(found.classes) == 31
    source = data.load("primitives", f"train[:{IMAGES}]")
    for name, layer in found.layers.items():
        highest = activations[name].reshape(IMAGES, -1, len(layer.mean)).max(1)
        np.testing.assert_allclose(layer.mean, highest.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.std, highest.std(0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(layer.sparsity, (highest <= 0).mean(0))
        assert (layer.histogram.sum(1) == IMAGES).all()
        assert (np.diff(layer.top.score) <= 0).all()
        assert (np.diff(layer.least.score) >= 0).all()
    index = int(found.layers["conv2"].top.image[5, 0])
    assert found.examples[index] == (source[index].id, source[index].label)


def assert_same_end(workdir, whole):
    for name in ("scan.npz", "units.npz"):
        with np.load(workdir / name) as mine, np.load(whole / name) as other:
            assert set(mine) == set(other)
            for key in mine:
                np.testing.assert_array_equal(mine[key], other[key], err_msg=key)
    for sheet in (whole / "sheets").iterdir():
        assert (workdir / "sheets" / sheet.name).read_bytes() == sheet.read_bytes()
    assert (workdir / "index.html").read_bytes() == (whole / "index.html").read_bytes()


def kill_at(process, how, workdir, step):
    """Waits for a checkpoint of that step or a later one."""
    while process.poll() is None:
        found = (workdir / "checkpoints").glob("*")
        if any(path.name.isdecimal() and int(path.name) >= step for path in found):
            process.send_signal(how)
            return
        time.sleep(0.01)


def test_killed_again_and_again_it_finds_the_same(whole, tmp_path):
    workdir = tmp_path / "run"
    for step in (1, 4, 9):
        process = start(*WHOLE, f"--workdir={workdir}")
        kill_at(process, signal.SIGKILL, workdir, step)
        finish(process, -signal.SIGKILL)
        assert not (workdir / "scan.npz").exists()
    finish(start(*WHOLE, f"--workdir={workdir}"))
    assert_same_end(workdir, whole)


def test_killed_while_it_draws_it_does_not_scan_again(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(*WHOLE, f"--workdir={workdir}")
    while not (workdir / "scan.npz").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    finish(process, -signal.SIGKILL)
    scanned = (workdir / "scan.npz").stat().st_mtime_ns
    finish(start(*WHOLE, f"--workdir={workdir}"))
    assert (workdir / "scan.npz").stat().st_mtime_ns == scanned
    assert_same_end(workdir, whole)


def test_interrupted_it_says_how_to_go_on(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(*WHOLE, f"--workdir={workdir}")
    kill_at(process, signal.SIGTERM, workdir, 2)
    out = finish(process, 128 + signal.SIGTERM)
    assert f"the same command with --workdir={workdir} goes on from there" in out
    finish(start(*WHOLE, f"--workdir={workdir}"))
    assert_same_end(workdir, whole)


def test_finished_it_says_so(whole):
    out = finish(start(*WHOLE, f"--workdir={whole}"))
    assert f"finished already: {whole / 'index.html'}" in out


def assert_same_winners(a, b):
    (mine, _), (other, _) = (scan_file.load(path / "scan.npz") for path in (a, b))
    for name in ("top", "least", "by_class", "sparsity", "histogram", "class_images"):
        pairs = zip(
            jax.tree.leaves(getattr(mine, name)),
            jax.tree.leaves(getattr(other, name)),
            strict=True,
        )
        for x, y in pairs:
            np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(mine.mean, other.mean, rtol=1e-5, atol=1e-6)


def test_halves_merge_to_the_whole(whole, tmp_path):
    halves = {"a": f"train[:{IMAGES // 2}]", "b": f"train[{IMAGES // 2}:{IMAGES}]"}
    for name, split in halves.items():
        arguments = f"--config.split={split}", f"--workdir={tmp_path / name}"
        finish(start(*COMMAND, *arguments))
    merged = tmp_path / "merged"
    parts = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    finish(
        start("--experiment=units", f"--config.merge={parts}", f"--workdir={merged}")
    )
    assert_same_winners(merged, whole)
    mine, other = (table.load(path / "units.npz") for path in (merged, whole))
    assert mine.examples == other.examples


def test_two_hosts_of_two_devices_find_the_same(whole, tmp_path):
    hosts = start_hosts(*WHOLE, f"--workdir={tmp_path / 'run'}")
    for host in hosts:
        finish(host)
    conv = scan_file.load(whole / "scan.npz")[0]
    mine = scan_file.load(tmp_path / "run" / "scan.npz")[0]
    units = slice(0, 64 + 384)  # the dense layer is rounded differently
    for x, y in zip(conv.top, mine.top, strict=True):
        np.testing.assert_array_equal(x[..., units], y[..., units])


def test_weights_that_have_changed_are_not_gone_on_with(tmp_path):
    _, params = models.load("alexnet_small", "random")
    arrays = {f"{a}.{b}": x for a, ab in params.items() for b, x in ab.items()}
    file, workdir = tmp_path / "weights.npz", tmp_path / "run"
    np.savez(file, **arrays)
    command = [*WHOLE, f"--config.weights={file}", f"--workdir={workdir}"]
    process = start(*command)
    kill_at(process, signal.SIGKILL, workdir, 2)
    finish(process, -signal.SIGKILL)
    np.savez(file, **{name: 2 * x for name, x in arrays.items()})
    done = launcher.launch(*command)
    assert done.returncode == 1
    assert "began with other files: network was" in done.stderr.splitlines()[-1]


FORK = """
import jax
from flax import nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)

    def __call__(self, images):
        stem = jax.nn.relu(self.conv(images / 255))
        return {"stem/1": stem, "mean": stem.mean((1, 2))}


def build(*, pooling, last, rngs, classes=10):
    return Network(rngs)
"""


def test_a_network_of_one_s_own_works_the_day_it_is_written(tmp_path):
    (tmp_path / "fork.py").write_text(FORK)
    done = launcher.launch(
        "--experiment=units",
        f"--config.model={tmp_path / 'fork.py'}",
        "--config.weights=random",
        "--config.split=train[:40]",
        "--config.size=16",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    found = table.load(tmp_path / "run/units.npz")
    assert {name: tuple(found.fields[name]) for name in found.layers} == {
        "stem/1": (3, 3, 1),
        "mean": (16, 16, 0),
    }
    assert (tmp_path / "run/sheets/stem_1.png").exists()


def test_a_network_without_a_rule_is_refused_before_the_scan(tmp_path):
    (tmp_path / "fork.py").write_text(FORK.replace("jax.nn.relu", "jax.nn.gelu"))
    done = launcher.launch(
        "--experiment=units",
        f"--config.model={tmp_path / 'fork.py'}",
        "--config.weights=random",
        "--config.split=train[:40]",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("--config.attribution= does without")
    assert not (tmp_path / "run/scan.npz").exists()


def test_another_number_of_devices_is_told(tmp_path):
    command = *WHOLE, "--config.layers=conv1", f"--workdir={tmp_path / 'run'}"
    process = start(*command)
    kill_at(process, signal.SIGKILL, tmp_path / "run", 2)
    finish(process, -signal.SIGKILL)
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    out = finish(start(*command, environment=two), 1)
    assert "begun on another number of devices" in out.splitlines()[-1]


def test_backward_pictures_are_beside_the_patches(tmp_path):
    command = [f for f in WHOLE if f.split("=")[0] not in "--config.attribution"]
    workdir = tmp_path / "run"
    flags = "--config.attribution=guided", "--config.split=train[:40]", "--config.k=4"
    finish(start(*command[:4], *flags, f"--workdir={workdir}"))
    atlas = Atlas(workdir)
    for layer, count in atlas.layers.items():
        for number in range(0, count, 9):
            unit = atlas.unit(layer, number)
            patches, projected = unit.patches(), unit.panels()["guided"]
            assert [x.size for x in projected] == [x.size for x in patches]
            for winner, picture in zip(unit.top, projected, strict=True):
                contrast = np.abs(np.asarray(picture).astype(int) - 127).max()
                assert (contrast > 100) == (winner.score > 0 or layer == "fc8")
        with Image.open(workdir / f"sheets/{layer}.png") as sheet:
            # Two blocks of 2 x 2 patches of 64 pixels for each unit.
            assert sheet.width > 3 * 2 * 2 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.layers=conv11"], "did you mean 'conv1'?"),
        (["--config.dataset=folder:nowhere"], "nowhere"),
        (["--config.k=0"], "k should be at least 1"),
        (["--config.size=8"], "too small"),
        (["--config.attribution=guidde"], "did you mean 'guided'?"),
        (["--config.per_class=0"], "per_class should be at least 1"),
        (["--config.merge=nowhere"], "nowhere: holds no finished scan"),
        (["--experiment=explain_unit", "--config.unit=conv2:192"], "are 0 to 191"),
        (["--experiment=explain_unit", "--config.unit=conv6:1"], "mean 'conv5'?"),
    ],
)
def test_mistakes_get_one_line(arguments, message, tmp_path):
    small = ["--config.split=train[:40]", "--config.size=32"]
    small = [flag for flag in small if flag.split("=")[0] not in str(arguments)]
    done = launcher.launch(
        "--experiment=units", *small, *arguments, f"--workdir={tmp_path / 'run'}"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "step" not in done.stderr  # before any work


def test_infinite_activations_are_no_winners(tmp_path):
    _, params = models.load("alexnet_small", "random")
    arrays = {f"{a}.{b}": 1e30 * x for a, ab in params.items() for b, x in ab.items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    done = launcher.launch(
        *WHOLE[:1],
        f"--config.weights={tmp_path / 'weights.npz'}",
        "--config.split=train[:40]",
        "--config.layers=conv5",
        "--config.size=32",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 1
    assert "is not a finite number" in done.stderr.splitlines()[-1]


def test_damaged_images_are_skipped_and_listed(tmp_path):
    folder = tmp_path / "set"
    source = data.load("primitives", "train[:12]")
    folder.mkdir()
    for i in range(12):
        encoded = source[i].encoded
        (folder / f"{i:02}.png").write_bytes(encoded[: 60 if i in (3, 7) else None])
    command = [
        *COMMAND,
        f"--config.dataset=folder:{folder}",
        "--config.layers=conv1",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = launcher.launch(*command)
    assert done.returncode == 0, done.stderr
    listed = (tmp_path / "run/damaged.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == ["03.png", "07.png"]
    assert "2 damaged images were skipped" in done.stderr
    found = table.load(tmp_path / "run/units.npz")
    assert found.images == 10
    assert not {3, 7} & set(found.layers["conv1"].top.image.ravel())
    assert json.loads((tmp_path / "run/run.json").read_text())["experiment"] == "units"
