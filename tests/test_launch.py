"""The command line: what it offers, and how it refuses."""

import concurrent.futures
import dataclasses
import json
import pathlib
import re

import pytest
from launcher import launch
from PIL import Image

from nstvis.runs import registry

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
NAMES = registry.names(EXPERIMENTS)
SMALL = [
    "--config.weights=random",
    "--config.size=64",
    "--config.steps=2",
    "--config.scales=1",
]

# The style experiment's config and presets, shown instead of painted.
SHOW = f'''"""Shows its config."""

import dataclasses
import json
import pathlib

from nstvis.runs import registry

style = registry.find("experiment", "style", pathlib.Path({str(EXPERIMENTS)!r}))
Config, PRESETS = style.Config, style.PRESETS


def run(config, workdir):
    print(json.dumps(dataclasses.asdict(config)))
'''

MINE = '''"""An experiment of my own."""

import dataclasses


@dataclasses.dataclass(kw_only=True)
class Config:
    # What to say.
    word: str = "hello"
    # How many times.
    times: int = 1


def run(config, workdir):
    if config.times < 0:
        raise ValueError("times should not be negative")
    (workdir / "said.txt").write_text(config.word * config.times)
'''

# Refused from the command line alone.
USAGE = {
    "experiment": (["--experiment=stile"], "did you mean 'style'"),
    "file": (["--experiment=nowhere/mine.py"], "nowhere/mine.py"),
    "field": (["--experiment=style", "--config.sizw=3"], "did you mean 'size'"),
    "one dash": (["--experiment=style", "-config.sizw=3"], "did you mean 'size'"),
    "subfield": (["--experiment=style", "--config.size.x=3"], "size"),
    "preset": (["--experiment=style", "--config=ngg"], "did you mean 'ng'"),
    "integer": (["--experiment=style", "--config.size=abc"], "--config.size=abc"),
    "word": (["--experiment=style", "stray"], "'stray'"),
    "flag": (["--experiment=style", "--wrokdir=x"], "did you mean 'workdir'?"),
    "bare": (["--experiment=style", "--size=3"], "config.FIELD"),
    "nan": (["--experiment=style", "--config.beta=nan"], "beta=nan should be"),
}

# Refused by what the arguments name.
NAMED = {
    "size": ("--config.size=-5", "size should be at least 1"),
    "content": ("--config.content={}/phto.jpg", "did you mean photo.jpg"),
    "broken": ("--config.content={}/broken.png", "broken.png: "),
    "weights": ("--config.weights={}/nowhere.safetensors", "nowhere.safetensors"),
    "model": ("--config.model=alexnt_small", "did you mean 'alexnet_small'"),
    "frames": ("--config.frame_every=0", "frame_every"),
    "workdir": ("--workdir={}/text.jpg", "text.jpg"),
}


def snapshot(folder):
    """All files below a folder, with what is in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "show.py").write_text(SHOW)
    (folder / "mine.py").write_text(MINE)
    (folder / "text.jpg").write_text("not a picture")
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "photo.jpg")
    whole = (folder / "photo.jpg").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def refusals(folder):
    """The outcome of each wrong command, a few at a time as each mostly imports."""
    commands = {("usage", case): USAGE[case][0] for case in USAGE}
    for case, (argument, _) in NAMED.items():
        workdir = f"--workdir={folder / 'runs' / case}"
        small = ["--experiment=style", workdir, *SMALL]
        commands["named", case] = [*small, argument.format(folder)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(lambda command: launch(*command), commands.values())
        return dict(zip(commands, outcomes))


def assert_refused(done, hint):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert hint in line


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_gets_one_line(case, refusals):
    assert_refused(refusals["usage", case], USAGE[case][1])


@pytest.mark.parametrize("case", NAMED)
def test_what_cannot_be_used_gets_one_line(case, refusals):
    assert_refused(refusals["named", case], NAMED[case][1])


def test_help_lists_every_experiment():
    asked, bare = launch("--help"), launch()
    assert asked.returncode == 0
    assert bare.returncode == 2
    assert asked.stdout == bare.stdout
    for name in NAMES:
        summary = registry.summary(EXPERIMENTS / f"{name}.py")
        assert len(summary) > 10
        assert re.search(
            rf"^  {name} +{re.escape(summary)}$", asked.stdout, re.MULTILINE
        )


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_all_fields_with_defaults_and_comments(name):
    done = launch(f"--experiment={name}", "--help")
    assert done.returncode == 0, done.stderr
    experiment = registry.find("experiment", name, EXPERIMENTS)
    assert experiment.__doc__.splitlines()[0] in done.stdout
    lines = done.stdout.splitlines()
    for field in dataclasses.fields(experiment.Config):
        start = f"--config.{field.name}={field.default} "
        (place,) = [i for i, line in enumerate(lines) if line.strip().startswith(start)]
        assert re.search(r"\w{3}", lines[place + 1]), f"{field.name} has no comment"
        assert "--config" not in lines[place + 1]
    if name == "style":  # a comment of its own, and one that it inherits
        assert "Content picture: a path, or demo." in done.stdout
        assert "Seed of all randomness." in done.stdout


def test_fields_override_presets_and_presets_override_defaults(folder, tmp_path):
    presets = registry.find("experiment", "style", EXPERIMENTS).PRESETS
    show = f"--experiment={folder / 'show.py'}"
    overrides = ["--config.model=alexnet_small", "--config.steps=7"]
    overrides += ["--config.alpha=2.5", "--config.content=my photo.jpg"]
    assert presets
    for name, preset in presets.items():
        workdir = f"--workdir={tmp_path / name}"
        done = launch(show, workdir, f"--config={name}", *overrides)
        assert done.returncode == 0, done.stderr
        expected = dataclasses.asdict(preset) | {
            "model": "alexnet_small",
            "steps": 7,
            "alpha": 2.5,
            "content": "my photo.jpg",
        }
        assert json.loads(done.stdout) == expected
        assert json.loads((tmp_path / name / "run.json").read_text())["config"] == (
            expected
        )


def test_a_file_elsewhere_is_an_experiment_and_runs_get_dated_folders(folder, tmp_path):
    command = [f"--experiment={folder / 'mine.py'}", "--config.times=3"]
    first, second = (launch(*command, cwd=tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    workdirs = sorted((tmp_path / "runs").iterdir())
    assert len(workdirs) == 2
    for workdir in workdirs:
        assert re.match(r"mine-\d{4}-\d\d-\d\d-\d{6}", workdir.name)
        assert (workdir / "said.txt").read_text() == "hello" * 3
        (start,) = json.loads((workdir / "run.json").read_text())["starts"]
        assert start["command"][1:] == command


def test_help_of_a_file_elsewhere(folder):
    done = launch(f"--experiment={folder / 'mine.py'}", "--help")
    assert done.returncode == 0
    assert "An experiment of my own." in done.stdout
    assert re.search(r"--config.times=1 .*\n +How many times\.", done.stdout)


def test_another_config_is_refused_and_nothing_changes(folder, tmp_path):
    command = [f"--experiment={folder / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]
    assert launch(*command).returncode == 0
    before = snapshot(tmp_path / "run")
    done = launch(*command, "--config.times=5")
    assert_refused(done, "times was 1, is 5")
    assert snapshot(tmp_path / "run") == before


def test_a_folder_that_is_no_run_is_refused_and_untouched(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    mine = f"--experiment={folder / 'mine.py'}"
    assert_refused(launch(mine, f"--workdir={tmp_path}"), str(tmp_path))
    assert snapshot(tmp_path) == {pathlib.Path("thesis.tex"): b"years of work"}


def test_the_traceback_of_an_error_is_kept_in_the_workdir(folder, tmp_path):
    mine, workdir = f"--experiment={folder / 'mine.py'}", tmp_path / "run"
    command = [mine, f"--workdir={workdir}", "--config.times=-1"]
    assert_refused(launch(*command), "times should not be negative")
    kept = (workdir / "error.txt").read_text()
    assert "Traceback" in kept
    assert "mine.py" in kept
    # Nor does it take a second error to lose the first one's line.
    (workdir / "error.txt").unlink()
    (workdir / "error.txt").mkdir()
    assert_refused(launch(*command), "times should not be negative")


def test_a_damaged_run_json_is_named(folder, tmp_path):
    (tmp_path / "run.json").write_text('{"experiment": "st')
    done = launch(f"--experiment={folder / 'mine.py'}", f"--workdir={tmp_path}")
    assert_refused(done, "run.json")
    assert (tmp_path / "run.json").read_text() == '{"experiment": "st'


def test_a_finished_run_is_left_as_it_is(tmp_path):
    workdir = tmp_path / "run"
    command = ["--experiment=style", f"--workdir={workdir}", *SMALL]
    first = launch(*command)
    assert first.returncode == 0, first.stderr
    before, written = snapshot(workdir), (workdir / "G.png").stat().st_mtime_ns
    second = launch(*command)
    assert second.returncode == 0, second.stderr
    assert "finished already" in second.stdout + second.stderr
    assert (workdir / "G.png").stat().st_mtime_ns == written
    after = snapshot(workdir)
    changed = {str(path) for path in before | after if before[path] != after[path]}
    assert changed <= {"run.json"}


def test_the_launcher_stays_small():
    assert len((ROOT / "launch.py").read_text().splitlines()) <= 80
