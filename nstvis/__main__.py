"""Does what launch.py does, from any folder: `python -m nstvis --experiment=style`."""

import logging
import os
import signal
import sys
from typing import Any, NoReturn


def start() -> NoReturn:
    """Runs the launcher, and exits with its status.

    Ctrl-C ends the process at once, in one line, while modules are imported and while
    the interpreter shuts down, when the launcher cannot see to it.
    """
    signal.signal(signal.SIGINT, _end)
    from nstvis.launcher import main  # which takes seconds

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main(sys.argv)
        signal.signal(signal.SIGINT, _end)
    except KeyboardInterrupt:  # just before or after
        _end()
    if status > 128:
        # XLA may still compile in a thread, and crash when what it uses is gone.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _end(*_: Any) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(130)  # an exception may be lost, or shown, wherever it arrives


if __name__ == "__main__":
    start()
