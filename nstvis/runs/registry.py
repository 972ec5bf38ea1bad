"""Finds experiments, networks and data sets, one file each, by name or by path."""

import ast
import difflib
import importlib.util
import pathlib
import sys
from collections.abc import Iterable
from types import ModuleType


def names(folder: pathlib.Path) -> list[str]:
    """Returns the names of a folder's Python files, but for private ones, sorted."""
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def summary(path: pathlib.Path) -> str:
    """Returns the first line of a file's docstring, without running the file."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def find(kind: str, name: str, folder: pathlib.Path) -> ModuleType:
    """Imports a Python file.

    Args:
        kind: What it is, such as "experiment", for the errors.
        name: The name of a file in `folder`, or the path, ending in .py, of any file.
        folder: Where names are looked up.

    Raises:
        ValueError: There is no file of that name, or it is no Python.
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
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f"{error.filename}, line {error.lineno}: {error.msg}"
        raise ValueError(line) from error
    return module


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the error message for an unknown name, with the nearest known one."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"no {kind} {name!r}: {hint}choose from {', '.join(known)}"
