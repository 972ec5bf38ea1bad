"""Runs an experiment: `python launch.py --experiment=style --config.size=512`."""

import contextlib
import logging
import pathlib
import sys
import traceback

import jax
from absl import flags

from nstvis import devices, plugins, runs

# What a user's mistake, a full disk or a full GPU raises; a bug shows its traceback.
EXPECTED = (
    ValueError,
    OSError,
    MemoryError,
    FloatingPointError,
    flags.Error,
    jax.errors.JaxRuntimeError,
)
EXPERIMENTS = pathlib.Path(__file__).parent / "experiments"


def main(argv: list[str]) -> int:
    """Parses the flags, claims the workdir and runs; returns the exit status."""
    # By force, as absl has put its own handler there on import.
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("nstvis").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's tracebacks
    values = flags.FlagValues()
    flags.DEFINE_string("experiment", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    claimed = None
    try:
        values(argv, known_only=True)
        if values.experiment is None:
            print(help_text())
            return 0 if values.help else 2
        experiment = plugins.find("experiment", values.experiment, EXPERIMENTS)
        logging.getLogger(experiment.__name__).setLevel(logging.INFO)
        if values.help:
            print(f"{experiment.__doc__}\n{plugins.describe(experiment.Config)}")
            return 0
        config = plugins.parse_config(experiment, values, argv)
        devices.connect()
        workdir = pathlib.Path(
            values.workdir or runs.default_workdir(values.experiment)
        )
        devices.keep_compiled()
        runs.claim(workdir, values.experiment, config)
        claimed = workdir
        return experiment.run(config, workdir) or 0
    except EXPECTED as error:
        if claimed is not None:
            with contextlib.suppress(OSError):
                (claimed / "error.txt").write_text(traceback.format_exc())
        message = next(filter(str.strip, str(error).splitlines()), repr(error))
        print(f"error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def help_text() -> str:
    """What there is to run."""
    lines = [
        "python launch.py --experiment=NAME [--workdir=DIR] [--config.FIELD=VALUE]"
    ]
    lines += ["", "Experiments (or the path of a file like those in experiments/):"]
    for name in plugins.names(EXPERIMENTS):
        lines.append(f"  {name:16}{plugins.summary(EXPERIMENTS / f'{name}.py')}")
    return "\n".join([*lines, "", "--experiment=NAME --help lists its config."])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
