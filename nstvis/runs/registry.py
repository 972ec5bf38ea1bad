"""Experiments and models, one file each: found by name or by path, and configured."""

import ast
import dataclasses
import importlib.util
import inspect
import math
import pathlib
import re
import sys
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from nstvis.errors import unknown


def names(folder: pathlib.Path) -> list[str]:
    """The names of a folder's Python files."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def summary(path: pathlib.Path) -> str:
    """The first line of a Python file's docstring, read without running the file."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def find(kind: str, name: str, folder: pathlib.Path) -> ModuleType:
    """Imports a file of `folder` by its name, or any file by its path.

    Raises:
        ValueError: There is none of that name.
        FileNotFoundError: There is no file at that path.
    """
    path = folder / f"{name}.py"
    if name.endswith(".py"):
        path = pathlib.Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"no such {kind} file: {name}")
    elif name not in names(folder):
        raise ValueError(unknown(kind, name, names(folder)))
    spec = importlib.util.spec_from_file_location(f"{kind}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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
    for name, value in vars(holder.value).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} should be a finite number")
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
                comments[field[1]], above = " ".join(above), []
    lines = []
    for field in dataclasses.fields(config):
        kind = getattr(field.type, "__name__", field.type)
        lines.append(f"  --config.{field.name}={field.default}  ({kind})")
        lines.append(f"      {comments.get(field.name, '')}")
    return "\n".join(lines)
