"""Command-line flags: parses `--config.FIELD=VALUE`, and lists fields for `--help`."""

import dataclasses
import inspect
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from nstvis.runs import config as configs
from nstvis.runs import registry
from nstvis.runs.registry import unknown


def at_home(argv: Sequence[str]) -> list[str]:
    """Expands `~` and `~user` in paths of a command line: `--config.content=~/a.jpg`.

    A shell does so at the start of a word alone; here it is also expanded after `=`, `:`
    (`folder:~/photos`) and commas.
    """
    start = re.compile(r"((?:^|[=:,])\s*)(~[^/,:=]*)")
    return [start.sub(lambda x: x[1] + os.path.expanduser(x[2]), x) for x in argv]


def launcher_flags() -> flags.FlagValues:
    """Returns the launcher's own flags, not parsed yet."""
    values = flags.FlagValues()
    for name in ("experiment", "workdir", "config.profile"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    return values


def parse_config(
    experiment: ModuleType, values: flags.FlagValues, argv: list[str]
) -> Any:
    """Returns the experiment's Config with the values of the command line.

    Args:
        experiment: The module; `--config=NAME` starts from one of its `PRESETS`.
        values: The launcher's own flags, to which the Config's are added; those
            named `config.FIELD` are fields of every experiment.
        argv: The command line.

    Raises:
        ValueError: There is no such preset, field or flag, or a field is the launcher's.
        flags.Error: A value is not of its field's type.
    """
    presets = getattr(experiment, "PRESETS", {})

    def preset(name: str):
        if name not in presets:
            raise ValueError(unknown("preset", name, presets))
        return presets[name]

    fields = list(experiment.Config.__dataclass_fields__)
    own = [x.removeprefix("config.") for x in values if x.startswith("config.")]
    if taken := set(own).intersection(fields):
        raise ValueError(
            f"Config.{taken.pop()} is the launcher's own: rename the field"
        )
    asked = re.compile(r"^--?(?:no)?config\.([\w.]+)", re.MULTILINE)
    for name in asked.findall("\n".join(argv)):
        if name not in fields + own:
            raise ValueError(unknown("config field", name, fields + own))
    of_config = [x for x in argv if x.lstrip("-").partition("=")[0] not in values]
    holder = config_flags.DEFINE_config_dataclass(
        "config", experiment.Config(), "", values, sys_argv=of_config, parse_fn=preset
    )
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known = ["experiment", "workdir", "help", "config.FIELD"]
        raise ValueError(unknown("flag", error.flagname, known)) from error
    except flags.IllegalFlagValueError as error:
        given = str(error).removesuffix(f": {error.__context__}")
        found = re.match(r"flag --config\.(\w+)=", given)
        field = found and experiment.Config.__dataclass_fields__.get(found[1])
        if not field or field.type not in _KINDS:
            raise
        raise ValueError(f"{given} should be {_KINDS[field.type][1]}") from error
    if rest:
        raise ValueError(f"{rest[0]!r} is no flag: flags look like --config.size=512")
    return holder.value


def parse_command(words: Sequence[str], folder: pathlib.Path) -> tuple[ModuleType, Any]:
    """Returns the experiment and the Config of a command, checked.

    Args:
        words: The flags: `--experiment` and others.
        folder: Of the experiments.

    Raises:
        ValueError: A flag is missing or wrong, or a value out of its bounds.
        flags.Error: A value is not of its field's type.
    """
    values, argv = launcher_flags(), ["", *at_home(words)]
    values(argv, known_only=True)
    if not values.experiment:
        raise ValueError("no --experiment in the command")
    experiment = registry.find("experiment", values.experiment, folder)
    config = parse_config(experiment, values, argv)
    configs.check(config)
    return experiment, config


_KINDS = {
    bool: (flags.BooleanParser, "True or False"),
    int: (flags.IntegerParser, "a whole number"),
    float: (flags.FloatParser, "a number"),
    str: (flags.ArgumentParser, "text"),
}


def parse_value(config: type, name: str, text: str) -> Any:
    """Returns the value that `--config.NAME=TEXT` would give a field of a Config.

    Raises:
        ValueError: There is no such field, or the text is not of its type.
    """
    fields = config.__dataclass_fields__
    if name not in fields:
        raise ValueError(unknown("config field", name, fields))
    parser, expected = _KINDS[fields[name].type]
    try:
        return parser().parse(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={text} should be {expected}") from error


def describe(config: type) -> str:
    """Lists a Config's fields with their defaults, types, bounds and comments."""
    comments: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        comments |= _comments(cls, comments)
    lines = []
    for field in dataclasses.fields(config):
        kind = getattr(field.type, "__name__", field.type)
        if bounds := field.metadata.get("bounds"):
            kind = f"{kind}, {bounds}"
        lines.append(f"  --config.{field.name}={field.default}  ({kind})")
        lines.append(f"      {comments.get(field.name, '')}")
    return "\n".join(lines)


def _comments(cls: type, inherited: Mapping[str, str]) -> dict[str, str]:
    """Returns the comments above the fields that a class declares itself."""
    comments = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above.append(comment[1])
            continue
        if field := re.match(r"    (\w+): ", line):
            name = field[1]
            comments[name] = " ".join(above) or inherited.get(name, "")
        above = []
    return comments
