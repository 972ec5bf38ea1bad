"""A run that was killed or stopped ends as if nothing had happened."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 16  # at each of two sizes
SMALL = [
    "--config.weights=random",
    # Which are traced and compiled sooner, at every start.
    "--config.style_loss=gram",
    "--config.content_layers=conv2_1",
    "--config.style_layers=conv1_1,conv2_1",
    "--config.size=64",
    "--config.scales=2",
]


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
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, *before, "launch.py", *arguments]
    environment = inherited | (environment or {})
    return subprocess.Popen(command, cwd=ROOT, env=environment, **options)


def start_hosts(*arguments, count=2, devices=2):
    """Starts the processes of one run, each a host with devices of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {
        "JAX_NUM_CPU_DEVICES": str(devices),
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


@pytest.mark.parametrize(
    ("every", "kills"),
    [
        pytest.param(0, (5, STEPS + 4), marks=pytest.mark.exhaustive),
        (0.3, (STEPS + 8,)),
    ],
)
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


@pytest.mark.exhaustive
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


@pytest.fixture(scope="module")
def stopped(small, tmp_path_factory):
    """A run that is stopped twice, and what it then says on a terminal."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
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
    return workdir, finish_on_a_terminal(*command)


def test_stopped_politely_it_leaves_everything_and_resumes(stopped, uninterrupted):
    assert_same_end(stopped[0], uninterrupted[0])


def test_without_a_terminal_there_are_log_lines_with_their_own_numbers(uninterrupted):
    workdir, out = uninterrupted
    assert "\r" not in out
    lines = re.findall(
        r"^step (\d+) of 32: .*GFLOP/s, J=(\S+) J_content=\S+ J_style=\S+$",
        out,
        re.MULTILINE,
    )
    assert 1 <= len(lines) <= 11  # a second apart, and the last one
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    losses = {row["step"]: row["J"] for row in map(json.loads, rows)}
    for step, loss in lines:
        assert float(loss) == pytest.approx(losses[int(step)], rel=6e-3)


def finish_on_a_terminal(*arguments):
    """Returns what launch.py writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    out = b""
    with contextlib.suppress(OSError):  # Linux's end of file, once launch.py has ended
        while said := os.read(ours, 4096):
            out += said
    os.close(ours)
    assert process.wait(60) == 0, out
    return out.decode()


def test_on_a_terminal_there_is_a_bar(stopped):
    bars = [bar for bar in re.split(r"[\r\n]+", stopped[1]) if "/32 " in bar]
    assert all(len(bar) <= 80 for bar in bars)
    # The bar, the losses, and once there were steps enough to tell, time left and speed.
    numbers = r"J=\S+ J_content=\S+ J_style=\S+"
    assert re.match(rf"32/32 █{{8}} (0:00 left, \d+ GFLOP/s, )?{numbers}", bars[-1])


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
