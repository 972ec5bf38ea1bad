"""The README keeps its promises: its links lead somewhere, its commands exist."""

import ast
import importlib.util
import pathlib
import re

from nstvis.runs import config as configs
from nstvis.runs import registry

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_relative_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 5
    for link in links:
        assert link.startswith(("https://", "#")) or (ROOT / link).exists(), link


def test_the_two_commands_stand_there():
    assert "pip install -r requirements.txt && python launch.py --experiment=style" in (
        README
    )
    assert "pip install -r requirements-dev.txt && python -m pytest" in README


def test_every_experiment_has_its_row():
    for name in registry.names(ROOT / "experiments"):
        assert f"[`{name}`](experiments/{name}.py)" in README


def test_every_flag_it_names_exists():
    folder = ROOT / "experiments"
    fields = {"FIELD", *configs.Profile.__dataclass_fields__}
    for name in registry.names(folder):
        experiment = registry.find("experiment", name, folder)
        fields |= experiment.Config.__dataclass_fields__.keys()
    assert set(re.findall(r"--config\.(\w+)", README)) <= fields


def test_the_tree_is_the_repository():
    tree = README.partition("## The tree")[2].partition("##")[0]
    for path in (ROOT / "nstvis").rglob("*"):
        of_ours = path.suffix == ".py" and not path.stem.startswith("__")
        if of_ours and path.parent.name not in ("models", "assets"):
            assert f" {path.name} " in tree, path


def test_the_imports_of_its_python_exist():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    submodule = f"{node.module}.{name}"
                    assert hasattr(module, name) or importlib.util.find_spec(submodule)
    for module, name in re.findall(r"\b(attribution|models|images)\.(\w+)\(", README):
        assert hasattr(importlib.import_module(f"nstvis.{module}"), name)
