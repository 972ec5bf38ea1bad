"""Says what a long run will find, and rehearses ten steps of it.

    python launch.py --experiment=preflight
    python launch.py --experiment=preflight \\
        --config.command="--experiment=train --config=tiny_imagenet --config.data_dir=FOLDER"

Hosts and devices, whether every host can write to the workdir, whether the data set can be
read, and how long the command's steps take: a mistake costs a minute, not a night. Give
every host the same command. It may be repeated, and leaves `preflight.txt`,
the record and the log.
"""

import dataclasses
import logging
import pathlib
import shlex

from nstvis import devices, launcher
from nstvis.runs import files, flags, preflight
from nstvis.runs.config import bounded

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config:
    """What is rehearsed."""

    # The flags of the command, without its workdir.
    command: str = "--experiment=style"
    # Steps of it.
    steps: int = bounded(10, least=2, most=1000)

    def check(self) -> None:
        """Raises a ValueError if the command is none."""
        self.parsed()

    def parsed(self):
        """Returns the experiment and its Config."""
        return flags.parse_command(shlex.split(self.command), launcher.experiments())


def run(config: Config, workdir: pathlib.Path) -> None:
    """Checks one thing after another, and says what it found."""
    experiment, of_command = config.parsed()
    lines = []

    def say(*found: str) -> None:
        for line in found:
            logger.info("%s", line)
        lines.extend(found)

    say(*preflight.machine(), preflight.writable(workdir))
    if hasattr(of_command, "dataset"):
        say(preflight.readable(of_command))
    say(preflight.rehearse(experiment, of_command, workdir / "rehearsal", config.steps))
    if devices.is_lead():
        files.write_text(workdir / "preflight.txt", "\n".join(lines) + "\n")
