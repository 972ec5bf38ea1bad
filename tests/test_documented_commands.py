"""README and docs/ do as they say: every command and every block of Python runs.

Commands run in this process, one after another, in a reader's folder, with the smallest
settings. Networks of few units stand for the AlexNets, and small files for what is named.
A run whose small settings another command has had is not repeated. Nothing is left out:
the command for one of several hosts runs as one host's, without its three variables.
"""

import importlib
import json
import pathlib
import re
import runpy
import shlex
import sys

import documents
import jax
import pytest
import reader
import small
from PIL import Image
from test_benchmarks import UNITS, fake_measure, notes  # noqa: F401 - a fixture

from benchmarks import report, style_losses
from nstvis import devices, images, launcher, weights
from nstvis.runs import cache
from nstvis.synthesis import style
from tests.fuzz import __main__ as fuzz

pytestmark = pytest.mark.slow

COMMANDS = documents.commands()

# What runs of an experiment are given instead of what the command says.
SMALL = {
    "evaluate": {"size": 32, "batch": 16},
    "evolution": {"layers": "conv2", "batch": 16, "units": 1},
    "explain_unit": {},
    "features": {"units": "conv5:1,2", "steps": 2, "size": 32},
    "occlusion": {"size": 32, "stride": 9},
    "preflight": {"steps": 2},
    "scores": {"units": "conv5:1,2", "pairs": 2, "images": 16},
    "style": {"size": 48, "steps": 2, "scales": 1, "frame_steps": 1},
    "sweep": {"size": 48, "steps": 2, "scales": 1, "rows": ""},
    "train": {"size": 32, "growth": "", "batch": 8, "epochs": 1, "workers": 0},
    "units": {"size": 32, "batch": 16, "k": 1, "workers": 0},
}
# What is given where the command gives nothing.
SHALLOW = {"model": "shallow.py", "weights": "random"}
NARROW = {"model": "alexnet_small.py", "weights": "random"}
PAINTED = SHALLOW | small.PAINTED
GIVEN = {
    "style": PAINTED,
    "sweep": PAINTED | {"columns": "beta:1,2"},
    "evaluate": SHALLOW,
    "features": NARROW,
    "train": SHALLOW,
    "units": NARROW,
}
# Of drawn images; there are few of all others.
DRAWN = {
    "train": {"split": "train[:16]", "validation": "validation[:8]"},
    "units": {"split": "train[:16]"},
}
PRESETS = {"imagenet": {"model": "alexnet.py"}}
LAYERS = {"alexnet_small.py": "conv4,conv5", "alexnet.py": "conv5"}
STAND_INS = {
    "alexnet": "alexnet.py",
    "validation": "validation[:16]",
    "/mnt/bucket/data": "FOLDER",
    "/mnt/bucket/run": "runs/bucket",
    "/shared/units": "runs/shared",
}
# What these leave at least.
LEFT = {
    "evaluate": {"accuracy.json"},
    "explain_unit": {"unit.png", "unit.txt"},
    "features": {"conv5.png", "features.csv"},
}


def flags(fields):
    return {f"config.{name}": str(value) for name, value in fields.items()}


def words_of(given):
    """The flags in words; a preset comes before what changes it."""
    words = [f"--{name}={value}" for name, value in given.items()]
    return sorted(words, key=lambda word: (not word.startswith("--config="), word))


def made_small(words):
    """Returns the flags of a command made small, by name."""
    typed = dict(word.removeprefix("--").split("=", 1) for word in words)
    typed = {name: STAND_INS.get(value, value) for name, value in typed.items()}
    name = typed["experiment"]
    given = flags(GIVEN.get(name, {}) | PRESETS.get(typed.get("config"), {}))
    if not typed.keys() & {"config", "config.dataset"}:
        given |= flags(DRAWN.get(name, {}))
    given |= typed | flags(SMALL.get(name, {}))
    if name == "units":
        given |= flags({"layers": LAYERS.get(given["config.model"], "")})
    if name == "sweep":  # `test_readme` checks the settings of all pictures
        cells = given["config.columns"].split(";")
        cells = [x for x in cells if not re.search("layers|weights", x)]
        more = ["beta=1"] * (cells == ["default"])
        given["config.columns"] = ";".join([*cells, *more][:2])
    if given.get("config.model") == "alexnet.py":  # which pools smaller ones to nothing
        given["config.size"] = "64"
    if "config.profile" in given:  # after two steps that warm up
        given |= flags({"profile": 1, "steps": 6})
    if command := given.get("config.command"):
        given["config.command"] = shlex.join(words_of(made_small(shlex.split(command))))
    return given


class Reader:
    """Whoever types the commands, and has whatever they leave."""

    def __init__(self):
        self._left = {}

    def call(self, words):
        assert launcher.main(["launch.py", *words]) == 0

    def have(self, text):
        """Types the commands that leave what a text names."""
        for workdir in re.findall(r"\bruns/\w+", text):
            makers = (x for x in COMMANDS.values() if f"--workdir={workdir}" in x)
            maker = next(makers, None)
            assert maker, f"no command leaves {workdir}"
            self.type(maker)

    def type(self, words):
        """Runs a command, unless its like was run; returns its workdir."""
        given = made_small(words)
        named = given.pop("workdir", "")
        key = words_of(given)
        command = shlex.join(key)
        self.have(command)
        if command not in self._left:
            workdir = pathlib.Path(named or f"runs/{len(self._left)}")
            self.call([*key, f"--workdir={workdir}"])
            self._left[command] = workdir
        elif named and not pathlib.Path(named).exists():
            pathlib.Path(named).symlink_to(self._left[command].name)
        return self._left[command]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The reader, and the folder, with what the commands name."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        reader.write(folder)
    (folder / "shallow.py").write_text(small.NETWORK)
    return Reader(), folder


@pytest.fixture
def user(everything, drawn, monkeypatch):
    """The reader in that folder."""
    user, folder = everything
    monkeypatch.chdir(folder)
    monkeypatch.setattr(devices, "connect", lambda: None)
    monkeypatch.setattr(cache, "keep_compiled", lambda: None)
    monkeypatch.setattr(weights, "TORCHVISION_URL", f"{(folder / 'site').as_uri()}/")
    with jax.numpy_rank_promotion("allow"):  # Linen's layers count on it
        yield user


RUN = [x for x in COMMANDS if "--help" not in x]


@pytest.mark.parametrize(
    "command", RUN, ids=[f"{i} {x}"[:70] for i, x in enumerate(RUN)]
)
def test_a_command_runs_and_leaves_what_it_says(command, user):
    workdir = user.type(COMMANDS[command])
    record = json.loads((workdir / "run.json").read_text())
    names = record.get("results", ["preflight.txt"])
    assert {*names} >= LEFT.get(record["experiment"], {names[0]})
    for name in names:
        assert (workdir / name).is_dir() or (workdir / name).stat().st_size
        if name.endswith(".png"):
            images.read(workdir / name)
    assert not list(workdir.glob("**/*.partial"))


@pytest.mark.parametrize("command", [x for x in COMMANDS if "--help" in x])
def test_help_is_shown(command, user, capfd):
    user.call(COMMANDS[command])
    assert "--config.size=" in capfd.readouterr().out


BLOCKS = [x for x in documents.blocks("python") if x not in documents.files().values()]


@pytest.mark.parametrize("code", sorted(set(BLOCKS)), ids=range(len(set(BLOCKS))))
def test_python_runs(code, user, monkeypatch, capfd):
    user.have(code)
    if "def run(" in code:
        pathlib.Path("fork.py").write_text(code)
        user.call(["--experiment=fork.py", "--workdir=runs/fork"])
        assert re.search(r"\[\d+\]", capfd.readouterr().out)
        return
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image))
    tiny = {**PAINTED, "size": 48, "steps": 2, "scales": 1}
    whole = style.Settings
    monkeypatch.setattr(style, "Settings", lambda **given: whole(**given | tiny))
    pathlib.Path("block.py").write_text(code)
    runpy.run_path("block.py")
    assert len(shown) == code.count(".show()")
    if name := re.search(r"\.save\(\"(.*)\"\)", code):
        images.read(name[1])


# What else is run by Python: here, or as it says.
OTHERS = {
    "launch.py": test_a_command_runs_and_leaves_what_it_says,
    "-m nstvis": test_a_command_runs_and_leaves_what_it_says,
    "-m pytest": "it is what runs this",
    "-m http.server": "Python's own",
    "-m build": "tests/test_package.py builds and installs",
    "-m tests.fuzz": "test_the_fuzzer_runs",
    "benchmarks/$name.py": "test_the_benchmarks_run",
    "benchmarks/style_losses.py": "test_the_comparison_of_losses_runs",
}
OTHERS |= {f"benchmarks/{name}.py": "test_the_benchmarks_run" for name in UNITS}


def test_nothing_else_is_run():
    assert documents.programs() == OTHERS.keys()


def typed(program):
    """The words after a program, wherever it is typed."""
    pattern = rf"python {re.escape(program)}((?: [\w=./-]+)*)"
    text = "".join(page.read_text() for page in documents.PAGES)
    return [words.split() for words in re.findall(pattern, text) if words]


def test_the_fuzzer_runs(monkeypatch, capsys, tmp_path):
    commands = typed("-m tests.fuzz")
    known = {word.partition("=")[0] for words in commands for word in words}
    assert known == {"--minutes", "--seed"}
    tiny = ["--minutes=0.02", "--seed=1", "--kinds=pictures", f"--work={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["fuzz", *tiny])
    assert fuzz.main() == 0
    *_, header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["kind", "tried"]
    assert int(row.split()[1]) > 0


@pytest.mark.usefixtures("notes")
def test_the_benchmarks_run(monkeypatch, capsys, tmp_path):
    (loop,) = (x for x in documents.shell() if "for name in" in x)
    names = re.findall(r"for name in (.*); do", loop)[0].split()
    assert set(names) == UNITS.keys()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        report.turns, "compare", lambda *task, turns: fake_measure(*task)
    )
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", f"--json={name}.json"])
        report.main(UNITS[name], module.work, module.rows)
        rows = json.loads((tmp_path / f"{name}.json").read_text())
        assert capsys.readouterr().out.count("\n| ") >= len(rows) > 0


@pytest.mark.usefixtures("user")
def test_the_comparison_of_losses_runs(monkeypatch, capsys):
    (words,) = typed("benchmarks/style_losses.py")
    tiny = ["--size=48", "--steps=1"]
    monkeypatch.setattr(sys, "argv", ["style_losses.py", *words, *tiny])
    monkeypatch.setattr(style_losses, "LOSSES", ("gram",))
    style_losses.main()
    assert "\n| `gram` | " in capsys.readouterr().out
