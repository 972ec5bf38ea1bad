"""README and docs/ keep their promises: links lead somewhere, commands are accepted."""

import ast
import importlib.util
import pathlib
import re
import shlex

import pytest

from nstvis.runs import config as configs
from nstvis.runs import flags, registry

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    """The addresses of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page():
    for page in PAGES[1:]:
        others = "".join(other.read_text() for other in PAGES if other != page)
        assert re.search(rf"\((docs/)?{page.name}\)", others), page


def test_the_entrance_is_short():
    assert README.count("\n") <= 150


def test_the_two_commands_stand_there():
    assert "pip install -r requirements.txt && python launch.py --experiment=style" in (
        README
    )
    assert "pip install -r requirements-dev.txt && python -m pytest" in README


def test_every_experiment_has_its_row():
    for name in registry.names(ROOT / "experiments"):
        assert f"[`{name}`](experiments/{name}.py)" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_it_names_exists(page):
    folder = ROOT / "experiments"
    fields = {"FIELD", *configs.Profile.__dataclass_fields__}
    for name in registry.names(folder):
        experiment = registry.find("experiment", name, folder)
        fields |= experiment.Config.__dataclass_fields__.keys()
    assert set(re.findall(r"--config\.(\w+)", page.read_text())) <= fields


def commands():
    """Every command of launch.py in the pages, in words."""
    found = []
    for page in PAGES:
        text = re.sub(r" \\\n +", " ", page.read_text())
        found += re.findall(r"^ {4}.*?(python launch\.py --exp.*)$", text, re.MULTILINE)
    return sorted(set(found))


def test_there_are_commands():
    assert len(commands()) > 15


@pytest.mark.parametrize("command", commands())
def test_every_command_is_accepted(command):
    words = shlex.split(command, comments=True)[2:]
    flags.parse_command(words, ROOT / "experiments")


def test_every_setting_of_style_is_shown_by_a_picture():
    page = (ROOT / "docs/style.md").read_text()
    experiment = registry.find("experiment", "style", ROOT / "experiments")
    shown = set()
    for command in commands():
        words = shlex.split(command)[2:]
        if command in re.sub(r" \\\n +", " ", page) and "sweep" in words[0]:
            _, config = flags.parse_command(words, ROOT / "experiments")
            shown |= {field for axis in config.axes() for field in axis.fields}
    assert len(shown) > 20
    for field in experiment.Config.__dataclass_fields__.keys() - shown:
        assert f"`{field}`" in page.partition("\n## Moving pictures\n")[2], field


def test_the_tree_is_the_repository():
    structure = (ROOT / "docs/structure.md").read_text()
    tree = structure.partition("## The tree")[2].partition("##")[0]
    for path in (ROOT / "nstvis").rglob("*"):
        of_ours = path.suffix == ".py" and not path.stem.startswith("__")
        if of_ours and path.parent.name not in ("models", "assets"):
            assert f" {path.name} " in tree, path


def test_the_imports_of_its_python_exist():
    text = "".join(page.read_text() for page in PAGES)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    submodule = f"{node.module}.{name}"
                    assert hasattr(module, name) or importlib.util.find_spec(submodule)
    for module, name in re.findall(r"\b(attribution|models|images)\.(\w+)\(", text):
        assert hasattr(importlib.import_module(f"nstvis.{module}"), name)
