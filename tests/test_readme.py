"""README and docs/ keep their promises: links lead somewhere, names exist, shell is sound.

That commands run is for `test_documented_commands`.
"""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest
from documents import PAGES, ROOT, blocks, commands, shell

from nstvis.runs import config as configs
from nstvis.runs import flags, registry

README = (ROOT / "README.md").read_text()
EXPERIMENTS = ROOT / "experiments"


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


def test_every_picture_is_shown():
    shown = "".join(page.read_text() for page in PAGES)
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix in (".jpg", ".png", ".gif"):
            assert re.search(rf"[/(]{re.escape(path.name)}\b", shown), path


def test_the_readme_leads_to_every_page():
    for page in PAGES[1:]:
        others = "".join(other.read_text() for other in PAGES if other != page)
        assert re.search(rf"\((docs/)?{page.name}\)", others), page


def test_the_entrances_are_short():
    assert README.count("\n") <= 150
    for name in ("bring_a_network", "bring_data"):
        assert (ROOT / f"docs/{name}.md").read_text().count("\n") <= 40


def test_the_two_commands_stand_there():
    assert "pip install -r requirements.txt && python launch.py --experiment=style" in (
        README
    )
    assert "pip install -r requirements-dev.txt && python -m pytest" in README


def test_every_experiment_has_its_row():
    for name in registry.names(EXPERIMENTS):
        assert f"[`{name}`](experiments/{name}.py)" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_it_names_exists(page):
    fields = {"FIELD", *configs.Profile.__dataclass_fields__}
    for name in registry.names(EXPERIMENTS):
        experiment = registry.find("experiment", name, EXPERIMENTS)
        fields |= experiment.Config.__dataclass_fields__.keys()
    assert set(re.findall(r"--config\.(\w+)", page.read_text())) <= fields


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_lost_its_indent(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^(python|pip|launch\.py) ", prose, re.MULTILINE)


def test_shell_lines_are_sound(tmp_path):
    scripts = shell()
    assert len(scripts) > 25
    for number, script in enumerate(scripts):
        (tmp_path / f"{number}").write_text(script)
    # What a virtual environment holds is not ours.
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    command = [shellcheck, "--shell=bash", "--exclude=SC1091", ROOT / ".ci/run"]
    command += sorted(tmp_path.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_of_requirements_exist():
    names = re.findall(r"pip install -r (\S+)", "".join(shell()))
    assert len(names) > 3
    assert all((ROOT / name).is_file() for name in names)


def test_every_setting_of_style_is_shown_by_a_picture():
    page = (ROOT / "docs/style.md").read_text()
    experiment = registry.find("experiment", "style", EXPERIMENTS)
    shown = set()
    for words in commands().values():
        if words[0] == "--experiment=sweep":  # every cell of which is checked
            _, config = flags.parse_command(words, EXPERIMENTS)
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
    assert len(blocks("python")) >= 3
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    submodule = f"{node.module}.{name}"
                    assert hasattr(module, name) or importlib.util.find_spec(submodule)
    for module, name in re.findall(r"\b(attribution|models|images)\.(\w+)\(", text):
        assert hasattr(importlib.import_module(f"nstvis.{module}"), name)
