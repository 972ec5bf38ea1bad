"""Runs launch.py in a process of its own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def launch(*arguments, cwd=ROOT):
    """Runs launch.py to its end, as a user would."""
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", *arguments],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
