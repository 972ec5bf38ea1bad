"""Runs an experiment: `python launch.py --experiment=style --config.size=512`."""

import logging
import pathlib
import re
import sys
import traceback
from types import ModuleType

from absl import flags
from ml_collections import config_flags

from nstvis import devices, plugins, runs
from nstvis.errors import unknown

EXPERIMENTS = pathlib.Path(__file__).parent / "experiments"


def main(argv: list[str]) -> int:
    """Parses the flags, claims the workdir and runs; returns the exit status."""
    # By force, as absl has put its own handler there on import.
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("nstvis").setLevel(logging.INFO)
    values = flags.FlagValues()
    flags.DEFINE_string("experiment", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    workdir = None
    try:
        values(argv, known_only=True)
        if values.experiment is None:
            print(help_text())
            return 0 if values.help else 2
        experiment = plugins.find("experiment", values.experiment, EXPERIMENTS)
        if values.help:
            print(f"{experiment.__doc__}\n{plugins.describe(experiment.Config)}")
            return 0
        config = parse_config(experiment, values, argv)
        workdir = pathlib.Path(
            values.workdir or runs.default_workdir(values.experiment)
        )
        devices.keep_compiled()
        runs.claim(workdir, values.experiment, config)
        return experiment.run(config, workdir) or 0
    except (ValueError, OSError, MemoryError, FloatingPointError, flags.Error) as error:
        if workdir is not None and (workdir / "run.json").exists():
            (workdir / "error.txt").write_text(traceback.format_exc())
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse_config(experiment: ModuleType, values: flags.FlagValues, argv: list[str]):
    """Returns the experiment's Config with what `--config...` says.

    `--config=NAME` starts from one of the experiment's `PRESETS`.
    """
    presets = getattr(experiment, "PRESETS", {})

    def preset(name: str):
        if name not in presets:
            raise ValueError(unknown("preset", name, presets))
        return presets[name]

    fields = list(experiment.Config.__dataclass_fields__)
    for name in re.findall(r"^--(?:no)?config\.(\w+)", "\n".join(argv), re.MULTILINE):
        if name not in fields:
            raise ValueError(unknown("config field", name, fields))
    holder = config_flags.DEFINE_config_dataclass(
        "config", experiment.Config(), "", values, sys_argv=argv, parse_fn=preset
    )
    rest = values(argv)[1:]
    if rest:
        raise ValueError(f"{rest[0]!r} is no flag: flags look like --config.size=512")
    return holder.value


def help_text() -> str:
    """What there is to run."""
    lines = [
        "python launch.py --experiment=NAME [--workdir=DIR] [--config.FIELD=VALUE]"
    ]
    lines += ["", "Experiments (or the path of a file like those in experiments/):"]
    for name in plugins.names(EXPERIMENTS):
        lines.append(f"  {name:12}{plugins.summary(EXPERIMENTS / f'{name}.py')}")
    return "\n".join([*lines, "", "--experiment=NAME --help lists its config."])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
