"""Ctrl-C while modules are imported, or the interpreter shuts down, says one line."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
from launcher import ROOT

# A launcher that takes long to import, whose run takes long to shut down, or which leaves
# a thread; all catch what is raised, as some libraries do.
WAIT = """
import atexit, sys, threading, time, types
def wait():
    print("now", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)
"""
FINDER = """
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "nstvis.launcher":
            wait()
sys.meta_path.insert(0, Finder())
"""
MAIN = """
def main(argv):
    {}
    return 0
sys.modules["nstvis.launcher"] = types.SimpleNamespace(main=main)
"""
START = "from nstvis.__main__ import start; start()"
CODE = {
    "imports": WAIT + FINDER + START,
    "exit": WAIT + MAIN.format("atexit.register(wait)") + START,
    "thread": WAIT + MAIN.format("threading.Thread(target=wait).start()") + START,
}


def started(*command):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_interrupted(process):
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (said, process.returncode) == ("interrupted\n", 130)


@pytest.mark.slow
@pytest.mark.parametrize("when", CODE)
def test_one_line_and_130(when):
    process = started("-c", CODE[when])
    assert process.stdout.readline() == "now\n"
    assert_interrupted(process)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="no /proc")
@pytest.mark.parametrize("command", [["launch.py"], ["-m", "nstvis"]])
def test_in_the_middle_of_the_real_imports(command):
    process = started(*command, "--help")
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    while "jaxlib" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    assert_interrupted(process)


@pytest.mark.slow
def test_a_run_that_was_stopped_waits_for_no_thread():
    """As XLA's, which compile on, and crash while the interpreter shuts down."""
    code = CODE["thread"].replace("return 0", "return 130")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, cwd=ROOT, timeout=30)
    assert done.returncode == 130
