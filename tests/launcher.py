"""Runs launch.py in a process of its own."""

import os
import pathlib
import subprocess
import sys

from nstvis import images

ROOT = pathlib.Path(__file__).parent.parent


def launch(*arguments, cwd=ROOT):
    """Runs launch.py to its end, as a user would."""
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", *arguments],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_left(done, workdir, names):
    """Checks that a run left whole files, and said which."""
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Traceback" not in output
    for name in [*names, "run.json"]:
        assert (workdir / name).stat().st_size > 0
    for name in names:
        if name.endswith(".png"):
            images.read(workdir / name)
        assert str(workdir / name) in output
    assert not list(workdir.glob("**/*.partial"))
