"""The README keeps its promises: its links lead somewhere, its commands exist."""

import pathlib
import re

from nstvis.runs import registry

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_relative_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 5
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


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
    fields = {"FIELD"}
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
