"""Hosts that differ say how; one that dies is named, and the run resumes as if not."""

import json
import queue
import shutil
import signal
import socket
import threading
import time
import types

import jax
import numpy as np
import pytest
import small
from PIL import Image
from test_runs import finish, signal_at, start, steps

from nstvis import hosts

# Of a data set, on a host alone: other images, or none.
ODD = """
import os
usual = load
def load(argument, split, data_dir):
    if os.environ.get("ODD") == "missing":
        raise FileNotFoundError("images.zip: no such file")
    source = usual(argument, split, data_dir)
    source.seed += os.environ.get("ODD") == "other"
    return source
"""


@pytest.fixture(autouse=True)
def _without_jax_log_level(monkeypatch):
    """As it is before JAX is imported, which sets it."""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)


def start_two(first, second=None, **odd):
    """Starts two hosts; the second may have other arguments and environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    together |= {"JAX_NUM_CPU_DEVICES": "2"}
    return (
        start(*first, environment=together | {"JAX_PROCESS_ID": "0"}),
        start(*(second or first), environment=together | {"JAX_PROCESS_ID": "1"} | odd),
    )


def commands(folder):
    """Returns the commands of a scan, a training and a picture, without a workdir."""
    model, dataset = small.write(folder)
    with open(dataset, "a") as file:
        file.write(ODD)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    Image.fromarray(noise).save(folder / "noise.png")
    pictures = {name: folder / "noise.png" for name in ("content", "style")}
    shared = {"model": model, "checkpoint_every": 0}
    images = shared | {"dataset": f"{dataset}:0.02", "batch": 12}
    fields = {
        "units": images | {"weights": "random", "size": 40, "split": "train"},
        "train": images | {"size": 40, "epochs": 2},
        "style": shared
        | pictures
        | small.PAINTED
        | {"weights": "random", "style_loss": "gram", "size": 64, "margin": 0}
        | {"steps": 60, "scales": 1},
    }
    del fields["units"]["checkpoint_every"]
    return {
        name: [f"--experiment={name}", *small.flags(x)] for name, x in fields.items()
    }


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return commands(tmp_path_factory.mktemp("files"))["train"]


@pytest.mark.slow
def test_hosts_say_which_settings_differ(command, tmp_path):
    command = [*command, f"--workdir={tmp_path / 'run'}"]
    lead, other = start_two(command, [*command, "--config.seed=7"])
    assert "error: hosts differ: --config.seed is 0 here, 7 on host 1" in finish(
        lead, 1
    )
    assert "error: hosts differ: --config.seed is 7 here, 0 on host 0" in finish(
        other, 1
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hosts_say_that_their_images_differ(command, tmp_path):
    both = start_two([*command, f"--workdir={tmp_path / 'run'}"], ODD="other")
    for host, there in zip(both, (1, 0), strict=True):
        out = finish(host, 1)
        assert "hosts differ: the hash of" in out and f"on host {there}" in out
        assert "Traceback" not in out and "stack trace" not in out


@pytest.mark.slow
def test_a_host_that_fails_is_named_by_the_others(command, tmp_path):
    lead, other = start_two([*command, f"--workdir={tmp_path / 'run'}"], ODD="missing")
    assert "error: images.zip: no such file\n" in finish(other, 1)
    assert "host 1 failed: images.zip: no such file\n" in finish(lead, 1)


@pytest.mark.parametrize(
    "given",
    [{}, {"JAX_NUM_PROCESSES": "2"}]
    + [
        {"JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": index}
        for count, index in (("two", "0"), ("2", "2"), ("2", "-1"), ("0", "0"))
    ],
)
def test_an_incomplete_place_among_hosts_is_refused(given, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="several hosts need"):
        hosts.connect()


def test_a_port_in_use_is_refused(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
        monkeypatch.setenv("JAX_PROCESS_ID", "0")
        with pytest.raises(ValueError, match="choose another port"):
            hosts.connect()


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_is_told_in_time():
    program = "from nstvis import hosts; hosts.PATIENCE = 2; hosts.connect()"
    place = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    place |= {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9"}
    # What comes after -c is what launch.py would be, and not read.
    out = finish(start(before=["-c", program], environment=place), 1)
    assert out == "error: found no 2 hosts at 127.0.0.1:9 within 2 seconds\n"


class Store(dict):
    """The store of the coordination service, in which host 1 beats or does not."""

    def __init__(self, pairs, beats):
        super().__init__({f"nstvis/{key}": value for key, value in pairs.items()})
        self.beats = beats

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, prefix):
        if self.beats is None:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")
        if self.beats:
            self["nstvis/beat/1"] = str(time.monotonic())
        return [pair for pair in self.items() if pair[0].startswith(prefix)]


DIED = "died, or cannot be reached. To resume, run on all: python launch.py"


@pytest.mark.parametrize(
    ("host", "pairs", "beats", "line"),
    [
        (0, {}, True, None),
        (0, {"end/1": "done"}, False, None),
        (0, {"beat/1": "7"}, False, f"host 1 {DIED}"),
        (1, {}, None, f"host 0 {DIED}"),
        (0, {"end/1": "failed: no file"}, True, "host 1 failed: no file"),
        (0, {"end/1": "told: host 2 died"}, True, "host 2 died"),
        (0, {"end/1": "stopped: by SIGTERM"}, True, "host 1 was stopped: by SIGTERM"),
        (
            0,
            {"equal/1": '{"x": [1], "y": 2, "z": 3}'},
            True,
            "error: hosts differ: y is 1 here, 2 on host 1",
        ),
    ],
)
def test_a_host_is_told_what_became_of_another(
    host, pairs, beats, line, monkeypatch, capsys
):
    ends = queue.SimpleQueue()

    def leave(status):
        ends.put(status)
        threading.Event().wait()  # as the process has ended

    clock = types.SimpleNamespace(
        sleep=lambda seconds: time.sleep(0.3 * seconds), monotonic=time.monotonic
    )
    for name, value in {"SILENCE": 3, "_leave": leave, "time": clock}.items():
        monkeypatch.setattr(hosts, name, value)
    watch = hosts._Watch()
    monkeypatch.setattr(watch, "catch_aborts", lambda *_: None)
    watch.command = lambda: ["python", "launch.py"]
    state = {"process_id": host, "num_processes": 2, "coordinator_address": ""}
    watch.begin(types.SimpleNamespace(client=Store(pairs, beats), **state))
    if beats is not None:
        watch.tell({"x": (1,), "y": 1})
    if line:
        assert ends.get(timeout=60) == 1
        assert capsys.readouterr().err == f"{line}\n"
    else:
        with pytest.raises(queue.Empty):
            ends.get(timeout=2)
        watch.last_word(0)
    watch._over.set()


def results(kind, workdir):
    """What a run of a kind has left, to be compared."""
    if kind == "units":
        with np.load(workdir / "scan.npz") as file:
            return {name: file[name].tobytes() for name in file.files}
    names = {"train": ["tiny.safetensors"], "style": ["G.png"]}[kind]
    found = {name: (workdir / name).read_bytes() for name in [*names, "metrics.jsonl"]}
    if kind == "style":  # but for its note
        with Image.open(workdir / "G.png") as picture:
            found["G.png"] = np.asarray(picture).tobytes()
    return found


def wait_for(path, processes):
    while not path.exists():
        assert all(p.poll() is None for p in processes)
        time.sleep(0.01)
    return time.monotonic()


def stopped(kind, command, workdir):
    """Runs it, stopped by a signal to one host.

    Returns its results, and the seconds that it may be killed in.
    """
    command = [*command, f"--workdir={workdir}"]
    lead, other = both = start_two(command)
    began = wait_for(workdir / "run.json", both)
    signal_at(other, signal.SIGTERM, workdir, 2)
    finish(other, 128 + signal.SIGTERM)
    assert f"rerun with --workdir={workdir} to resume" in finish(lead, 128 + 15)
    seconds = time.monotonic() - began
    assert steps(workdir) == list(range(1, 11))  # where hosts agree
    lead, other = start_two(command)
    assert "resuming after step 10 of" in finish(lead)
    assert "epoch" not in finish(other)
    starts = json.loads((workdir / "run.json").read_text())["starts"]
    assert ["4 x" in start["devices"] for start in starts] == [True, True]
    return results(kind, workdir), seconds


def killed(kind, command, workdir, seconds, rng):
    """Kills a host at random, and resumes.

    Returns the results, which host was killed and when, and after how many seconds the
    other stopped.
    """
    command, victim = [*command, f"--workdir={workdir}"], int(rng.integers(2))
    share, status = rng.uniform(0.05, 0.8), 0
    while status == 0:  # it was done, as the machine has become faster
        shutil.rmtree(workdir, ignore_errors=True)
        both = start_two(command)
        wait_for(workdir / "run.json", both)
        time.sleep(moment := share * seconds)
        both[victim].send_signal(signal.SIGKILL)
        status, seconds = both[victim].wait(), seconds / 2
        both[victim].stdout.close()
        if status == 0:
            finish(both[1 - victim])
    assert status == -signal.SIGKILL
    began = time.monotonic()
    out = finish(both[1 - victim], 1)
    stopped = time.monotonic() - began
    assert f"host {victim} died" in out and f"--workdir={workdir}" in out, out
    assert "stack trace" not in out and "Traceback" not in out, out
    for host in start_two(command):
        finish(host)
    return results(kind, workdir), victim, moment, stopped


# Of "units", "train" and "style" the one that needs most of what hosts share: each takes
# eight processes. `train` has no `growth`, for which it compiles twice.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train"])
def test_hosts_stop_together_and_one_that_is_killed_is_named(kind, tmp_path):
    """And both runs, resumed, end alike."""
    command = [*commands(tmp_path)[kind], "--config.growth="]
    expected, seconds = stopped(kind, command, tmp_path / "stopped")
    rng = np.random.default_rng(0)
    found, _, _, waited = killed(kind, command, tmp_path / "run", seconds, rng)
    assert found == expected
    assert waited < 30
