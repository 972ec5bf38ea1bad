"""Command-line flags: an experiment's Config from `--config.FIELD=VALUE`."""

import dataclasses
import inspect
import re
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from nstvis.runs.registry import unknown


def parse_config(
    experiment: ModuleType, values: flags.FlagValues, argv: list[str]
) -> Any:
    """Returns the experiment's Config with what `--config...` says.

    `--config=NAME` starts from one of the experiment's `PRESETS`.

    Raises:
        ValueError: No such preset, field or flag.
        flags.Error: A value is not of its field's type.
    """
    presets = getattr(experiment, "PRESETS", {})

    def preset(name: str):
        if name not in presets:
            raise ValueError(unknown("preset", name, presets))
        return presets[name]

    fields = list(experiment.Config.__dataclass_fields__)
    asked = re.compile(r"^--?(?:no)?config\.([\w.]+)", re.MULTILINE)
    for name in asked.findall("\n".join(argv)):
        if name not in fields:
            raise ValueError(unknown("config field", name, fields))
    holder = config_flags.DEFINE_config_dataclass(
        "config", experiment.Config(), "", values, sys_argv=argv, parse_fn=preset
    )
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known = ["experiment", "workdir", "help", "config.FIELD"]
        raise ValueError(unknown("flag", error.flagname, known)) from error
    if rest:
        raise ValueError(f"{rest[0]!r} is no flag: flags look like --config.size=512")
    return holder.value


def describe(config: type) -> str:
    """Lists a Config's fields with their types, defaults and comments."""
    comments = {}
    for cls in reversed(config.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(cls).splitlines():
            if comment := re.fullmatch(r"\s+# (.*)", line):
                above.append(comment[1])
            elif field := re.match(r"    (\w+): ", line):
                comments[field[1]] = " ".join(above) or comments.get(field[1], "")
                above = []
    lines = []
    for field in dataclasses.fields(config):
        kind = getattr(field.type, "__name__", field.type)
        if bounds := field.metadata.get("bounds"):
            kind = f"{kind}, {bounds}"
        lines.append(f"  --config.{field.name}={field.default}  ({kind})")
        lines.append(f"      {comments.get(field.name, '')}")
    return "\n".join(lines)
