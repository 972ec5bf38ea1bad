"""Training learns, says what it did, and ends the same however often it is killed."""

import io
import json
import math
import re
import signal

import numpy as np
import pytest
import safetensors.numpy
import small
from PIL import Image
from safetensors import safe_open
from test_runs import finish, signal_at, start, steps

from experiments import evaluate, style
from nstvis import devices
from nstvis.runs import config as configs
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Interrupted
from nstvis.training import loop, schedule
from nstvis.training.loop import train
from nstvis.training.settings import Settings

EPOCHS = 3
PER_EPOCH = 8
STEPS = EPOCHS * PER_EPOCH


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The paths of a small network and data set."""
    return small.write(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def command(files):
    """A run at 32 and 40 pixels, of 50 ms a step."""
    model, dataset = files
    return [
        "--experiment=train",
        f"--config.model={model}",
        f"--config.dataset={dataset}:0.02",
        "--config.batch=12",
        "--config.size=40",
        "--config.growth=32,40",
        f"--config.epochs={EPOCHS}",
    ]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("train") / "whole"
    return workdir, finish(start(*command, f"--workdir={workdir}"))


def assert_same_end(workdir, whole):
    assert steps(workdir) == list(range(1, STEPS + 1))
    for name in ("tiny.safetensors", "metrics.jsonl", "accuracy.png"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name


KILL, STOP = signal.SIGKILL, signal.SIGTERM


# In the first epoch, at its end, where the images grow, and in the last epoch.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "signals"),
    [
        pytest.param(0, [(KILL, 3)], marks=pytest.mark.exhaustive),
        (1000, [(KILL, PER_EPOCH), (STOP, STEPS // 2 + 2), (KILL, STEPS - 7)]),
    ],
)
def test_stopped_at_any_step_the_run_ends_bit_identical(
    every, signals, command, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    arguments = [*command, f"--workdir={workdir}", f"--config.checkpoint_every={every}"]
    stopped = 0
    for signum, step in signals:
        process = start(*arguments)
        signal_at(process, signum, workdir, max(step, stopped + 1))
        if signum == KILL:
            out = finish(process, -KILL)
            assert not stopped or f"resuming after step {stopped} of {STEPS}" in out
        else:  # preempted, it leaves a checkpoint
            out = finish(process, 128 + STOP)
            assert f"rerun with --workdir={workdir} to resume" in out
            stopped = steps(workdir)[-1]
            assert stopped >= step
            assert steps(workdir) == list(range(1, stopped + 1))
            assert (workdir / f"checkpoints/{stopped}").is_dir()
        assert len(steps(workdir)) < STEPS
    finish(start(*arguments))
    assert_same_end(workdir, uninterrupted[0])


@pytest.mark.slow
def test_it_learns_and_keeps_the_epochs_of_figure_4(uninterrupted):
    workdir, out = uninterrupted
    rows = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-PER_EPOCH:]) < 0.9 * np.mean(losses[:3])
    measured = [row["step"] for row in rows if "validation_top1" in row]
    assert measured == [PER_EPOCH * epoch for epoch in range(1, EPOCHS + 1)]
    for row in rows:
        assert row["gradient_norm"] > 0
        assert 0 <= row["dead"] < 1
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH}
    assert re.search(r"^epoch 3 of 3: .*top-1 \S+% top-5 \S+%$", out, re.MULTILINE)


@pytest.mark.slow
def test_the_weights_are_evaluated_and_painted_with(uninterrupted, files, tmp_path):
    workdir, _ = uninterrupted
    path = workdir / "tiny.safetensors"
    with safe_open(path, framework="numpy") as file:
        classes = json.loads(file.metadata()["classes"])
        assert file.get_tensor("conv1.kernel").dtype == np.float16
        assert file.get_tensor("fc3.bias").shape == (len(classes),)
    config = evaluate.Config(
        model=files[0], weights=str(path), dataset=files[1], size=40
    )
    assert evaluate.run(config, tmp_path) == ["accuracy.json"]
    shares = json.loads((tmp_path / "accuracy.json").read_text())
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert shares["images"] == 24
    # Float16 may turn one image's answer.
    assert shares["top1"] == pytest.approx(last["validation_top1"], abs=0.042)
    assert shares["top5"] == pytest.approx(last["validation_top5"], abs=0.042)
    network = small.PAINTED | {"model": files[0], "weights": str(path)}
    quick = {"style_loss": "gram", "size": 64, "scales": 1, "steps": 1}
    (tmp_path / "style").mkdir()
    assert "G.png" in style.run(style.Config(**network, **quick), tmp_path / "style")


# In this process, which has four devices.


@pytest.fixture
def folder(tmp_path):
    """Two classes of small pictures, some of which are damaged."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in ("rough", "plain"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(6):
                noise = rng.integers(0, 256 if name == "rough" else 9, (40, 50, 3))
                buffer = io.BytesIO()
                Image.fromarray(noise.astype(np.uint8)).save(buffer, "PNG")
                path = tmp_path / "set" / split / name / f"{i}.png"
                path.write_bytes(buffer.getvalue()[: 100 if i == 0 else None])
    return tmp_path / "set"


@pytest.fixture
def settings(files):
    """Builds settings of a run of two steps, and others."""

    def build(**fields):
        model, dataset = files
        common = {"batch": 48, "size": 32, "growth": "", "epochs": 1, "validation": ""}
        return Settings(**{"model": model, "dataset": dataset} | common | fields)

    return build


@pytest.mark.slow
def test_damaged_images_are_skipped_and_listed(folder, settings, tmp_path, caplog):
    how = {"batch": 4, "epochs": 2, "validation": "validation"}
    train(settings(dataset=f"folder:{folder}", **how), tmp_path)
    for name in ("damaged.txt", "damaged_validation.txt"):
        listed = (tmp_path / name).read_text().splitlines()
        ids = sorted(line.split("\t")[0] for line in listed)
        assert ids == ["plain/0.png", "rough/0.png"]
    assert "2 damaged images were skipped" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "primitive"}, "did you mean 'primitives'?"),
        ({"dataset": "folder:nowhere"}, "nowhere"),
        ({"split": "tranquil"}, "tranquil"),
        ({"batch": 60_000}, "more than the 96 of"),
        ({"batch": 6}, "batch=6 does not divide by 4 devices"),
        ({"size": 2}, "too small"),
        ({"growth": "32,big"}, "growth=32,big should be sides"),
        ({"growth": "32,0"}, "growth=32,0 should be sides"),
        ({"epochs": 0}, "epochs should be at least 1"),
        pytest.param(
            {"learning_rate": 1e30}, "not finite at step 2", marks=pytest.mark.slow
        ),
    ],
)
def test_mistakes_get_one_line(fields, message, settings, tmp_path):
    with pytest.raises((ValueError, OSError, FloatingPointError)) as error:
        train(settings(**fields), tmp_path)
    (line,) = str(error.value).splitlines()
    assert message in line


def test_if_all_images_are_damaged_it_says_so(folder, settings, tmp_path):
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="^all 12 images are damaged"):
        train(settings(dataset=f"folder:{folder}", batch=4), tmp_path)


OUT_OF_BOUNDS = {
    "size": [0, 2**63],
    "batch": [0, -4, 10**9],
    "workers": [-1, 10**6],
    "seed": [-1, 2**32],
    "epochs": [0, 10**9],
    "checkpoint_every": [-1.0, float("nan")],
    "learning_rate": [0.0, -0.03, float("inf")],
    "warmup": [-0.1, 1.0],
    "weight_decay": [-1e-4],
    "smoothing": [-0.1, 1.0, 100.0],
    "dropout": [-0.1, 1.0, 1.5],
    "crop": [0.0, 1.1],
    "color": [-0.1, 1.1],
    "ema": [-0.1, 2.0],
    "growth": ["0", "48,", "-3", "9000"],
}


def test_every_number_has_bounds():
    configs.check(Settings())
    for name, values in OUT_OF_BOUNDS.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                configs.check(Settings(**{name: value}))
    for fields in ({"batch": 0}, {"workers": -1}, {"size": 0}):
        with pytest.raises(ValueError, match="should be at least"):
            configs.check(evaluate.Config(**fields))


BRANCHED = """
import jax
from flax import nnx

class Branched(nnx.Module):
    def __init__(self, classes, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.out = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, images):
        y = jax.nn.relu(self.conv(images / 255))
        return {"conv": y, "out": self.out(y.mean((1, 2)))}

def build(*, pooling, last, rngs, classes=10):
    return Branched(classes, rngs)
"""


@pytest.mark.slow
def test_where_no_batch_norm_can_be_added_it_says_so(settings, tmp_path, caplog):
    (tmp_path / "branched.py").write_text(BRANCHED)
    train(settings(model=str(tmp_path / "branched.py")), tmp_path / "branched")
    (record,) = [x for x in caplog.records if x.name.startswith("nstvis")]
    assert record.levelname == "WARNING"
    assert "branched.py is trained without batch norm" in record.message
    assert (tmp_path / "branched/branched.safetensors").exists()
    caplog.clear()
    train(settings(), tmp_path / "chain")
    assert not caplog.records


@pytest.mark.slow
def test_it_begins_with_weights(settings, uninterrupted, tmp_path):
    """Steps too small to move away from them: dense layers are what they were."""
    weights = uninterrupted[0] / "tiny.safetensors"
    train(settings(weights=str(weights), learning_rate=1e-12), tmp_path)
    before, after = (
        safetensors.numpy.load_file(folder / "tiny.safetensors")
        for folder in (uninterrupted[0], tmp_path)
    )
    assert np.abs(before["fc3.kernel"]).max() > 0.01
    np.testing.assert_array_equal(after["fc3.kernel"], before["fc3.kernel"])


@pytest.mark.slow
def test_a_host_stops_when_another_one_is_told_to(settings, tmp_path, monkeypatch):
    def agreed(wish, step):
        return STOP if step == 1 else wish

    monkeypatch.setattr(devices, "agreed", agreed)
    with pytest.raises(Interrupted) as stop:
        train(settings(), tmp_path)
    assert stop.value.signum == STOP
    assert steps(tmp_path) == [1]
    assert (tmp_path / "checkpoints/1").is_dir()


@pytest.mark.slow
def test_told_after_the_last_step_all_hosts_end_alike(settings, tmp_path, monkeypatch):
    def agreed(wish, step):
        return STOP if step == 0 else wish  # where another host asks at the very end

    monkeypatch.setattr(devices, "agreed", agreed)
    with pytest.raises(Interrupted):
        train(settings(), tmp_path)
    monkeypatch.undo()
    results = train(settings(), tmp_path)
    assert results[0] == "tiny.safetensors"
    assert all((tmp_path / name).exists() for name in results)


@pytest.mark.slow
def test_metrics_say_the_learning_rate(settings, tmp_path):
    train(settings(batch=12, warmup=0.5), tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(row)["learning_rate"] for row in rows]
    expected = [0.03 * step / 4 for step in range(4)]
    expected += [0.03 * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(4)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_the_learning_rate_rises_and_falls_whatever_the_number_of_steps():
    for length, warmup in ((1, 0.9), (2, 0.9), (5, 0), (7, 0.99)):
        rate = schedule.learning_rate(1.0, warmup, length)
        rates = [float(rate(step)) for step in range(length + 1)]
        assert max(rates) == pytest.approx(1)
        assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path):
    row = {"step": 3, "loss": 1.0, "gradient_norm": math.nan}
    with (
        Metrics(tmp_path, 0) as metrics,
        pytest.raises(FloatingPointError, match="gradient is not finite at step 3"),
    ):
        loop._check_loss(row, metrics)
