"""Training learns, says what it did, and ends the same however often it is killed."""

import io
import json
import re
import signal

import launcher
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from test_runs import finish, signal_at, start, start_hosts, steps

EPOCHS = 4
PER_EPOCH = 6
STEPS = EPOCHS * PER_EPOCH


@pytest.fixture(scope="module")
def command():
    """A run at 32 and 40 pixels, on a slice of the generated images."""
    return [
        "--experiment=train",
        "--config.dataset=primitives",
        "--config.split=train[:200]",
        "--config.validation=validation[:50]",
        "--config.batch=32",
        "--config.size=40",
        "--config.growth=32,40",
        f"--config.epochs={EPOCHS}",
        "--config.learning_rate=0.02",
    ]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("train") / "whole"
    return workdir, finish(start(*command, f"--workdir={workdir}"))


def assert_same_end(workdir, whole):
    assert steps(workdir) == list(range(1, STEPS + 1))
    for name in ("alexnet_small.safetensors", "metrics.jsonl", "accuracy.png"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name


# In the first epoch, at its end, where the images grow, and in the last epoch.
@pytest.mark.parametrize(("every", "kills"), [(0, (3, 12, 14)), (1000, (6, STEPS - 5))])
def test_killed_at_any_step_the_run_ends_bit_identical(
    every, kills, command, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    arguments = [*command, f"--workdir={workdir}", f"--config.checkpoint_every={every}"]
    for step in kills:
        process = start(*arguments)
        signal_at(process, signal.SIGKILL, workdir, step)
        finish(process, -signal.SIGKILL)
        assert len(steps(workdir)) < STEPS
    finish(start(*arguments))
    assert_same_end(workdir, uninterrupted[0])


def test_preempted_it_leaves_a_checkpoint_and_goes_on(command, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    arguments = [*command, f"--workdir={workdir}"]
    process = start(*arguments)
    signal_at(process, signal.SIGTERM, workdir, 8)
    out = finish(process, 128 + signal.SIGTERM)
    stopped = int(re.search(r"stopped after step (\d+) of", out)[1])
    assert stopped >= 8
    assert steps(workdir) == list(range(1, stopped + 1))
    assert (workdir / f"checkpoints/{stopped}").is_dir()
    out = finish(start(*arguments))
    assert f"going on after step {stopped} of {STEPS}" in out
    assert_same_end(workdir, uninterrupted[0])


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
    assert kept == {PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH, 4 * PER_EPOCH}
    assert re.search(r"^epoch 4 of 4: .*top-1 \S+% top-5 \S+%$", out, re.MULTILINE)


def test_the_weights_are_evaluated_and_painted_with(uninterrupted, tmp_path):
    workdir, _ = uninterrupted
    path = workdir / "alexnet_small.safetensors"
    with safe_open(path, framework="numpy") as file:
        classes = json.loads(file.metadata()["classes"])
        assert file.get_tensor("conv1.kernel").dtype == np.float16
        assert file.get_tensor("fc8.bias").shape == (len(classes),)
    done = launcher.launch(
        "--experiment=evaluate",
        f"--config.weights={path}",
        "--config.dataset=primitives",
        "--config.split=validation[:50]",
        "--config.size=40",
        f"--workdir={tmp_path / 'evaluate'}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "evaluate/accuracy.json").read_text())
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["images"] == 50
    # Float16 may turn one image's answer.
    assert found["top1"] == pytest.approx(last["validation_top1"], abs=0.021)
    assert found["top5"] == pytest.approx(last["validation_top5"], abs=0.021)
    done = launcher.launch(
        "--experiment=style",
        f"--config.weights={path}",
        "--config.size=64",
        "--config.steps=1",
        f"--workdir={tmp_path / 'style'}",
    )
    assert done.returncode == 0, done.stderr


def test_two_hosts_train_one_network_and_stop_together(command, tmp_path):
    workdir = tmp_path / "run"

    def both():
        return start_hosts(*command, f"--workdir={workdir}")

    lead, other = both()
    signal_at(other, signal.SIGTERM, workdir, 2)  # only one of them is told
    finish(other, 128 + signal.SIGTERM)
    assert "stopped after step 10 of" in finish(lead, 128 + signal.SIGTERM)
    assert (workdir / "checkpoints/10").is_dir()
    lead, other = both()
    assert "going on after step 10 of" in finish(lead)
    assert "epoch" not in finish(other)
    assert steps(workdir) == list(range(1, STEPS + 1))
    assert (
        "4 x" in json.loads((workdir / "run.json").read_text())["starts"][1]["devices"]
    )
    assert (workdir / "alexnet_small.safetensors").exists()


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


def test_damaged_images_are_skipped_and_listed(folder, tmp_path):
    arguments = [
        "--experiment=train",
        f"--config.dataset=folder:{folder}",
        "--config.batch=4",
        "--config.size=32",
        "--config.growth=",
        "--config.epochs=2",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = launcher.launch(*arguments)
    assert done.returncode == 0, done.stderr
    for name in ("damaged.txt", "damaged_validation.txt"):
        listed = (tmp_path / "run" / name).read_text().splitlines()
        ids = sorted(line.split("\t")[0] for line in listed)
        assert ids == ["plain/0.png", "rough/0.png"]
    assert "2 damaged images were skipped" in done.stderr


def test_if_all_images_are_damaged_it_says_so(folder, tmp_path):
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"no picture")
    done = launcher.launch(
        "--experiment=train",
        f"--config.dataset=folder:{folder}",
        "--config.batch=4",
        "--config.size=32",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: all 12 images are damaged")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.dataset=primitive"], "did you mean 'primitives'?"),
        (["--config.dataset=folder:nowhere"], "nowhere"),
        (["--config.split=tranquil"], "tranquil"),
        (["--config.batch=100000"], "more than the 64 of"),
        (["--config.size=8"], "too small"),
        (["--config.growth=32,big"], "big"),
        (["--config.epochs=0"], "epochs"),
        (["--config.learning_rate=1e30", "--config.epochs=1"], "not finite"),
    ],
)
def test_mistakes_get_one_line(arguments, message, tmp_path):
    small = ["--config.split=train[:64]", "--config.batch=32", "--config.size=32"]
    small = [
        flag
        for flag in (*small, "--config.growth=")
        if flag.split("=")[0] not in str(arguments)
    ]
    done = launcher.launch(
        "--experiment=train", *small, *arguments, f"--workdir={tmp_path / 'run'}"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
