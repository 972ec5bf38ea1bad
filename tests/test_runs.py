"""A run that was killed or stopped ends as if nothing had happened."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from nstvis import plots
from nstvis.runs import checkpoints, flags, registry
from nstvis.runs import workdir as workdirs
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.metrics import Metrics

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 16  # at each of two sizes
SMALL = ["--config.weights=random", "--config.size=64", "--config.scales=2"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A style run at 32 and 64 pixels: a square stays large enough for both."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    picture = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(noise).save(picture)
    files = [f"--config.content={picture}", f"--config.style={picture}"]
    return ["--experiment=style", *SMALL, *files, f"--config.steps={STEPS}"]


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    out = finish(start(*small, f"--workdir={workdir}"))
    return workdir, out


def start(*arguments, before=(), environment=None, **options):
    """Starts launch.py as a user would; what it says is in one pipe."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, *before, "launch.py", *arguments]
    environment = inherited | (environment or {})
    return subprocess.Popen(command, cwd=ROOT, env=environment, **options)


def start_hosts(*arguments, count=2, devices=2):
    """Starts the processes of one run, each a host with devices of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
    }
    return [
        start(*arguments, environment=together | {"JAX_PROCESS_ID": str(host)})
        for host in range(count)
    ]


def finish(process, status=0):
    """Waits for the end, checks the exit status and returns what was said."""
    out = process.communicate(timeout=300)[0].decode()
    assert process.returncode == status, out
    return out


def steps(workdir):
    """The steps of the whole lines in metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [json.loads(line)["step"] for line in whole]


def signal_when(process, signum, reached):
    """Sends a signal as soon as `reached()`, which must be before the end."""
    while not reached():
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.002)
    process.send_signal(signum)


def signal_at(process, signum, workdir, step):
    signal_when(process, signum, lambda: step in steps(workdir))


def checkpoint(workdir):
    """The arrays of the newest checkpoint."""
    keeper = ocp.training.Checkpointer(str((workdir / "checkpoints").absolute()))
    step = keeper.latest.step
    like = {
        k: np.empty(m.shape, m.dtype) for k, m in keeper.metadata().metadata.items()
    }
    return step, keeper.load(None, like)


def assert_same_end(workdir, whole):
    assert steps(workdir) == list(range(1, 2 * STEPS + 1))
    assert (workdir / "metrics.jsonl").read_text() == (
        whole / "metrics.jsonl"
    ).read_text()
    with Image.open(workdir / "G.png") as ours, Image.open(whole / "G.png") as theirs:
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    (step, ours), (last, theirs) = checkpoint(workdir), checkpoint(whole)
    assert step == last == 2 * STEPS
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name
    frames = [
        sorted(p.name for p in (w / "frames").iterdir()) for w in (workdir, whole)
    ]
    assert frames[0] == frames[1]
    for name in ("film.png", "loss.png"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(("every", "kills"), [(0, (5, STEPS + 4)), (0.3, (STEPS + 8,))])
def test_killed_at_either_size_the_run_ends_bit_identical(
    every, kills, small, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    command = [*small, f"--workdir={workdir}", f"--config.checkpoint_every={every}"]
    for step in kills:
        process = start(*command)
        signal_at(process, signal.SIGKILL, workdir, step)
        finish(process, -signal.SIGKILL)
        assert len(steps(workdir)) < 2 * STEPS
        # What a kill may leave: half a line, and half a checkpoint.
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1')
        half = workdir / "checkpoints/30.orbax-checkpoint-tmp/state"
        half.mkdir(parents=True)
        (half / "_METADATA").write_text("{")
    out = finish(start(*command))
    assert "resuming after step" in out
    assert_same_end(workdir, uninterrupted[0])
    starts = json.loads((workdir / "run.json").read_text())["starts"]
    assert len(starts) == len(kills) + 1


def test_killed_after_the_last_checkpoint_the_rest_is_made_up(
    small, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    command = [*small, f"--workdir={workdir}", "--config.checkpoint_every=0"]
    process = start(*command)
    last = workdir / "checkpoints" / str(2 * STEPS)
    signal_when(process, signal.SIGKILL, last.exists)
    finish(process, -signal.SIGKILL)
    assert not (workdir / "loss.png").exists()
    finish(start(*command))
    assert_same_end(workdir, uninterrupted[0])


def test_stopped_politely_it_leaves_everything_and_resumes(
    small, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    command = [*small, f"--workdir={workdir}"]
    for signum, step in ((signal.SIGINT, 3), (signal.SIGTERM, STEPS + 3)):
        process = start(*command)
        signal_at(process, signum, workdir, step)
        began = time.monotonic()
        out = finish(process, 128 + signum)
        assert time.monotonic() - began < 15
        assert "Traceback" not in out
        assert f"rerun with --workdir={workdir} to resume" in out
        assert step <= checkpoint(workdir)[0] < 2 * STEPS
        for name in ("G.png", "film.png"):
            with Image.open(workdir / name) as picture:
                picture.load()
            (workdir / name).unlink()
    finish(start(*command))
    assert_same_end(workdir, uninterrupted[0])


def test_without_a_terminal_there_are_log_lines_with_their_own_numbers(uninterrupted):
    workdir, out = uninterrupted
    assert "\r" not in out
    lines = re.findall(
        r"^step (\d+) of 32: .*GFLOP/s, J=(\S+) J_content=\S+ J_style=\S+$",
        out,
        re.MULTILINE,
    )
    assert 5 <= len(lines) <= 11
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    losses = {row["step"]: row["J"] for row in map(json.loads, rows)}
    for step, loss in lines:
        assert float(loss) == pytest.approx(losses[int(step)], rel=6e-3)


def test_on_a_terminal_there_is_a_bar(small, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [*small, f"--workdir={tmp_path / 'run'}"]
    process = start(*command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    out = b""
    with contextlib.suppress(OSError):  # Linux's end of file, once launch.py has ended
        while said := os.read(ours, 4096):
            out += said
    os.close(ours)
    assert process.wait(60) == 0, out
    bars = [bar for bar in re.split(r"[\r\n]+", out.decode()) if "/32 " in bar]
    assert all(len(bar) <= 80 for bar in bars)
    # The bar, the time left, the losses and the speed all fit a plain terminal.
    numbers = r"J=\S+ J_content=\S+ J_style=\S+"
    assert re.match(rf"32/32 █{{8}} 0:00 left, \d+ GFLOP/s, {numbers}", bars[-1])


# Room for run.json, but for no picture; and for pictures, but for no checkpoint.
@pytest.mark.parametrize("room", [4_000, 40_000])
def test_a_full_disk_gets_one_line(room, small, uninterrupted, tmp_path):
    limited = (
        "import os, resource, sys;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}));"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [*small, f"--workdir={tmp_path / 'run'}"]
    # JAX would leave cut entries in the cache that the other tests use.
    no_new_entries = {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "1000000000"}
    process = start(*command, before=["-c", limited], environment=no_new_entries)
    out = finish(process, 1)
    assert "Traceback" not in out
    *log, last = out.splitlines()
    assert last.startswith("error: ")
    assert str(tmp_path / "run") in last
    assert not any(line.startswith("error: ") for line in log)


@pytest.fixture
def open_metrics(tmp_path):
    """Opens a run's metrics, several times if need be."""
    opened = []

    def open_metrics(done):
        opened.append(Metrics(tmp_path, done))
        return opened[-1]

    yield open_metrics
    for metrics in opened:
        metrics._file.close()


def test_metrics_come_back_as_they_were_written(open_metrics):
    metrics = open_metrics(0)
    rows = [{"step": step, "J": 1 / step} for step in (1, 2, 3)]
    for row in rows:
        metrics.write(row)
    metrics.flush()
    # At once, as a kill leaves no time to close the file.
    assert open_metrics(3).read() == rows


def test_metrics_rewind_to_the_step_of_the_checkpoint(open_metrics, tmp_path):
    lines = '{"step": 1, "J": 9.0}\n{"step": 2, "J": 8.0}\n{"step": 3, "J": 7.0}\n{"st'
    (tmp_path / "metrics.jsonl").write_text(lines)
    metrics = open_metrics(2)
    assert [row["step"] for row in metrics.read()] == [1, 2]
    metrics.write({"step": 3, "J": 6.0})
    metrics.flush()
    assert [row["J"] for row in metrics.read()] == [9, 8, 6]
    # From the start anew, nothing of an interrupted run remains.
    assert open_metrics(0).read() == []


def test_metrics_are_plotted_even_if_there_are_none(open_metrics, tmp_path):
    metrics = open_metrics(0)
    plots.metrics(tmp_path / "none.png", metrics.read(), ["J"], "log")
    metrics.write({"step": 1, "J": 2.0})
    metrics.write({"step": 2, "J": 1.0})
    metrics.flush()
    plots.metrics(tmp_path / "some.png", metrics.read(), ["J"], "log")
    with Image.open(tmp_path / "none.png") as a, Image.open(tmp_path / "some.png") as b:
        assert a.size == b.size
        assert a.tobytes() != b.tobytes()


def test_checkpoints_keep_the_newest_two_and_those_asked_for(tmp_path):
    def tree(x):
        return {"x": jnp.full((2, 3), x, jnp.float32), "n": jnp.int32(x)}

    with Checkpoints(tmp_path, 0, [2, 4]) as keeper:
        assert keeper.latest() == 0
        assert keeper.restore(fresh := tree(0)) is fresh
        for step in (2, 3, 7, 20):
            saved = tree(step + 0.1)
            keeper.save(step, saved)
            jax.tree.map(lambda leaf: leaf.delete(), saved)  # as donating it would
        keeper.save(20, tree(5))  # once saved, a step stays
    again = Checkpoints(tmp_path, 0)
    assert again.latest() == 20
    restored = again.restore(tree(0))
    assert restored["n"].dtype == jnp.int32
    assert np.array_equal(restored["x"], tree(20.1)["x"])
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["2", "20", "7"]


def test_checkpoints_are_due_after_their_interval(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    keeper = Checkpoints(tmp_path, 30)
    now = 129.0
    assert not keeper.due()
    now = 130.0
    assert keeper.due()


def test_checkpoints_ignore_one_that_was_cut_short(tmp_path):
    with Checkpoints(tmp_path, 0) as keeper:
        keeper.save(4, {"x": jnp.ones(3)})
    half = tmp_path / "checkpoints/9.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints/4", half)
    with Checkpoints(tmp_path, 0) as keeper:
        assert keeper.latest() == 4
        keeper.save(9, {"x": jnp.zeros(3)})
    assert np.array_equal(keeper.restore({"x": jnp.ones(3)})["x"], np.zeros(3))


@dataclasses.dataclass(kw_only=True)
class Config:
    # How large, in
    # pixels.
    size: int = 3
    name: str = "a"


def test_a_claim_is_kept_for_the_same_config_only(tmp_path):
    workdir = tmp_path / "some/where"
    for _ in range(2):
        workdirs.claim(workdir, "style", Config())
    record = json.loads((workdir / "run.json").read_text())
    assert record["experiment"] == "style"
    assert record["config"] == {"size": 3, "name": "a"}
    assert len(record["starts"]) == 2
    assert record["starts"][0].keys() >= {"time", "command", "versions", "devices"}
    (workdir / "metrics.jsonl").touch()
    before = (workdir / "run.json").read_bytes()
    with pytest.raises(ValueError, match="size was 3, is 4; name was 'a', is 'b'"):
        workdirs.claim(workdir, "style", Config(size=4, name="b"))
    with pytest.raises(ValueError, match="experiment was 'style', is 'flow'"):
        workdirs.claim(workdir, "flow", Config())
    assert (workdir / "run.json").read_bytes() == before


def test_a_start_that_left_nothing_does_not_hold_its_folder(tmp_path):
    workdirs.claim(tmp_path, "style", Config())
    (tmp_path / "error.txt").touch()
    workdirs.claim(tmp_path, "style", Config(size=4))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["size"] == 4
    assert len(record["starts"]) == 2


def test_a_claim_takes_an_empty_folder_but_no_other(tmp_path):
    workdirs.claim(tmp_path, "style", Config())
    (tmp_path / "run.json").rename(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds files"):
        workdirs.claim(tmp_path, "style", Config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_runs_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = workdirs.default_workdir("mine/my_flow.py")
    assert first.parent == pathlib.Path("runs")
    assert first.name.startswith("my_flow-")

    class Stopped(workdirs.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2020, 1, 2, 3, 4, 5)

    monkeypatch.setattr(workdirs.datetime, "datetime", Stopped)
    stopped = workdirs.default_workdir("style")
    assert stopped.name == "style-2020-01-02-030405"
    stopped.mkdir(parents=True)
    assert not workdirs.default_workdir("style").exists()


def test_descriptions_show_inherited_fields_and_their_comments(tmp_path):
    file = tmp_path / "flow.py"
    file.write_text(
        '"""Water.\n\nMore."""\n\nimport dataclasses\n\n'
        "@dataclasses.dataclass\nclass Base:\n    # How deep,\n    # in feet.\n"
        "    depth: int = 3\n    # Its name.\n    name: str = 'a'\n\n"
        "@dataclasses.dataclass\nclass Config(Base):\n    # Its colour.\n"
        "    name: str = 'blue'\n    bare: float = 0.5\n"
    )
    assert registry.summary(file) == "Water."
    module = registry.find("experiment", str(file), tmp_path)
    assert flags.describe(module.Config).splitlines() == [
        "  --config.depth=3  (int)",
        "      How deep, in feet.",
        "  --config.name=blue  (str)",
        "      Its colour.",
        "  --config.bare=0.5  (float)",
        "      ",
    ]
