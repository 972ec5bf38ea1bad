"""The command line: what it offers, what it refuses, and what every experiment gets."""

import concurrent.futures
import dataclasses
import json
import pathlib
import re
import signal
import sys
import types

import pytest
import small
from launcher import launch
from PIL import Image
from traces import executions

from nstvis import devices, launcher
from nstvis.runs import cache, registry

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

MINE = '''"""An experiment of my own.

    python launch.py --experiment=mine.py
"""

import dataclasses

from nstvis.runs.config import bounded


@dataclasses.dataclass(kw_only=True)
class Config:
    # What to say.
    word: str = "hello"
    # How many times.
    times: int = bounded(1, least=-9)


def run(config, workdir):
    if config.times < 0:
        raise ValueError("times should not be negative")
    (workdir / "said.txt").write_text(config.word * config.times)
    with (workdir / "log.txt").open("a") as log:
        log.write("ran\\n")
    return ["said.txt", "log.txt"]
'''

# Sends itself a signal at step 3, as often as it should; else counts to 5.
STOPPED = '''"""Counts."""

import dataclasses
import os

from nstvis.runs.progress import Progress


@dataclasses.dataclass(kw_only=True)
class Config:
    # What to send.
    signum: int = 0
    # How often.
    times: int = 1


def run(config, workdir):
    path = workdir / "count.txt"
    done = int(path.read_text()) if path.exists() else 0
    with Progress([0] * 5, done) as progress:
        for step in range(done + 1, 6):
            for _ in range(config.times if step == 3 else 0):
                os.kill(os.getpid(), config.signum)
            path.write_text(str(step))
            progress.show(step, "")
            if progress.interrupted:
                break
    return ["count.txt"]
'''

# Refused from the command line alone.
USAGE = {
    "experiment": (["--experiment=stile"], "did you mean 'style'"),
    "file": (["--experiment=nowhere/mine.py"], "nowhere/mine.py"),
    "field": (["--experiment=style", "--config.sizw=3"], "did you mean 'size'"),
    "one dash": (["--experiment=style", "-config.sizw=3"], "did you mean 'size'"),
    "subfield": (["--experiment=style", "--config.size.x=3"], "size"),
    "preset": (["--experiment=style", "--config=ngg"], "did you mean 'ng'"),
    "integer": (
        ["--experiment=style", "--config.size=abc"],
        "size=abc should be a whole number",
    ),
    "word": (["--experiment=style", "stray"], "'stray'"),
    "flag": (["--experiment=style", "--wrokdir=x"], "did you mean 'workdir'?"),
    "bare": (["--experiment=style", "--size=3"], "config.FIELD"),
    "nan": (["--experiment=style", "--config.beta=nan"], "beta=nan should be"),
    "profile": (["--experiment=style", "--config.profile=-1"], "at least 0, not -1"),
    "profile's type": (["--experiment=style", "--config.profile=x"], "a whole number"),
    "profile's name": (["--experiment=style", "--config.profil=3"], "mean 'profile'"),
    "beyond 64 bits": (["--experiment=style", f"--config.seed={10**30}"], "seed"),
    "beyond all": (["--experiment=style", f"--config.seed={'9' * 5000}"], "seed"),
}

# Refused by what the arguments name.
NAMED = {
    "size": ("--config.size=-5", "size should be at least 32"),
    "content": ("--config.content={}/phto.jpg", "did you mean photo.jpg"),
    "broken": ("--config.content={}/broken.png", "broken.png: "),
    "weights": ("--config.weights={}/nowhere.safetensors", "nowhere.safetensors"),
    "model": ("--config.model=alexnt_small", "did you mean 'alexnet_small'"),
    "frames": ("--config.frame_every=0", "frame_every"),
    "workdir": ("--workdir={}/text.jpg", "text.jpg"),
}


def snapshot(folder):
    """All files below a folder, with their contents."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def record(workdir):
    return json.loads((workdir / "run.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "show.py").write_text(SHOW)
    (folder / "mine.py").write_text(MINE)
    (folder / "stopped.py").write_text(STOPPED)
    (folder / "text.jpg").write_text("not a picture")
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "photo.jpg")
    whole = (folder / "photo.jpg").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def call(monkeypatch, capfd):
    """Does what `launch` does, in this process."""
    monkeypatch.setattr(devices, "connect", lambda: None)
    monkeypatch.setattr(cache, "keep_compiled", lambda: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
        status = launcher.main(sys.argv)
        said = capfd.readouterr()
        return types.SimpleNamespace(
            returncode=status, stdout=said.out, stderr=said.err
        )

    return call


@pytest.fixture
def mine(call, folder, tmp_path):
    """Calls an experiment of a file elsewhere, in the workdir `run`."""
    files = f"--experiment={folder / 'mine.py'}", f"--workdir={tmp_path / 'run'}"
    return lambda *arguments: call(*files, *arguments)


def assert_refused(done, hint):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert hint in line


def named_command(folder, case):
    workdir = f"--workdir={folder / 'runs' / case}"
    argument = NAMED[case][0].format(folder)
    return ["--experiment=style", workdir, *SMALL, argument]


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_gets_one_line(case, call):
    command, hint = USAGE[case]
    assert_refused(call(*command), hint)


@pytest.mark.parametrize("case", NAMED)
def test_what_cannot_be_used_gets_one_line(case, call, folder):
    assert_refused(call(*named_command(folder, case)), NAMED[case][1])


@pytest.mark.slow
def test_a_process_says_the_same(call, folder):
    """As a user sees it: with all that is imported and printed on the way."""
    commands = [["--help"], [], USAGE["field"][0], named_command(folder, "weights")]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda command: launch(*command), commands))
    for command, outcome in zip(commands, outcomes):
        here = call(*command)
        assert outcome.returncode == here.returncode
        assert (outcome.stdout, outcome.stderr) == (here.stdout, here.stderr)


def test_help_lists_every_experiment(call):
    asked, bare = call("--help"), call()
    assert asked.returncode == 0
    assert bare.returncode == 2
    assert asked.stdout == bare.stdout
    assert asked.stdout.startswith("python launch.py --experiment=NAME ")
    for name in NAMES:
        summary = registry.summary(EXPERIMENTS / f"{name}.py")
        assert len(summary) > 10
        assert re.search(
            rf"^  {name} +{re.escape(summary)}$", asked.stdout, re.MULTILINE
        )


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_all_fields_with_defaults_bounds_and_comments(name, call):
    done = call(f"--experiment={name}", "--help")
    assert done.returncode == 0, done.stderr
    experiment = registry.find("experiment", name, EXPERIMENTS)
    assert experiment.__doc__.splitlines()[0] in done.stdout
    lines = done.stdout.splitlines()
    for field in dataclasses.fields(experiment.Config):
        start = f"--config.{field.name}={field.default} "
        (place,) = [i for i, line in enumerate(lines) if line.strip().startswith(start)]
        if bounds := field.metadata.get("bounds"):
            assert lines[place].endswith(f", {bounds})")
        assert re.search(r"\w{3}", lines[place + 1]), f"{field.name} has no comment"
        assert "--config" not in lines[place + 1]
    if name == "style":  # a comment of its own, and one that it inherits
        assert "Content picture: a path, demo, or a folder" in done.stdout
        assert "\n      Seed of all " in done.stdout
        assert "--config.frame_every=90  (int, at least 1" in done.stdout


def test_fields_override_presets_and_presets_override_defaults(call, folder, tmp_path):
    presets = registry.find("experiment", "style", EXPERIMENTS).PRESETS
    show = f"--experiment={folder / 'show.py'}"
    overrides = ["--config.model=alexnet_small", "--config.steps=7"]
    overrides += ["--config.alpha=2.5", "--config.content=my photo.jpg"]
    assert presets
    for name, preset in presets.items():
        done = call(
            show, f"--workdir={tmp_path / name}", f"--config={name}", *overrides
        )
        assert done.returncode == 0, done.stderr
        expected = dataclasses.asdict(preset) | {
            "model": "alexnet_small",
            "steps": 7,
            "alpha": 2.5,
            "content": "my photo.jpg",
        }
        assert json.loads(done.stdout) == expected
        assert record(tmp_path / name)["config"] == expected


def test_a_file_elsewhere_is_an_experiment_and_runs_get_dated_folders(
    call, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = [f"--experiment={folder / 'mine.py'}", "--config.times=3"]
    first, second = (call(*command) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    workdirs = sorted((tmp_path / "runs").iterdir())
    assert len(workdirs) == 2
    for workdir in workdirs:
        assert re.match(r"mine-\d{4}-\d\d-\d\d-\d{6}", workdir.name)
        assert (workdir / "said.txt").read_text() == "hello" * 3
        (start,) = record(workdir)["starts"]
        assert start["command"][1:] == command


def test_help_names_the_command_that_was_used(call, capfd):
    for name, command in (("launch.py", "python launch.py"), ("", "python -m nstvis")):
        program = str(ROOT / (name or "nstvis/__main__.py"))
        launcher.main([program, "--experiment=style", "--help"])
        assert f"    {command} --experiment=style\n" in capfd.readouterr().out
        launcher.main([program, "--help"])
        assert capfd.readouterr().out.startswith(f"{command} --experiment=NAME ")


def test_help_of_a_file_elsewhere(call, folder):
    done = call(f"--experiment={folder / 'mine.py'}", "--help")
    assert done.returncode == 0
    assert "An experiment of my own." in done.stdout
    assert re.search(
        r"--config.times=1 .*at least -9.*\n +How many times\.", done.stdout
    )
    assert re.search(r"--config.profile=0  \(int, at least 0\)\n +\w", done.stdout)


def test_another_config_is_refused_and_nothing_changes(mine, tmp_path):
    assert mine().returncode == 0
    before = snapshot(tmp_path / "run")
    done = mine("--config.times=5")
    assert_refused(done, "times was 1, is 5")
    assert snapshot(tmp_path / "run") == before


def test_a_folder_that_is_no_run_is_refused_and_untouched(mine, tmp_path):
    foreign = tmp_path / "run"
    foreign.mkdir()
    for name in ("thesis.tex", "error.txt"):
        (foreign / name).write_text("years of work")
        assert_refused(mine(), str(foreign))
        assert snapshot(foreign) == {pathlib.Path(name): b"years of work"}
        (foreign / name).unlink()


def test_the_traceback_of_an_error_is_kept_in_the_workdir(mine, tmp_path):
    workdir = tmp_path / "run"
    assert_refused(mine("--config.times=-1"), "times should not be negative")
    kept = (workdir / "error.txt").read_text()
    assert "Traceback" in kept
    assert "mine.py" in kept
    # Nor does it take a second error to lose the first one's line.
    (workdir / "error.txt").unlink()
    (workdir / "error.txt").mkdir()
    assert_refused(mine("--config.times=-1"), "times should not be negative")
    # The next start, which works, removes it.
    (workdir / "error.txt").rmdir()
    (workdir / "error.txt").touch()
    assert mine("--config.times=1").returncode == 0
    assert not (workdir / "error.txt").exists()


def test_bounds_are_checked_before_any_work(mine, tmp_path):
    done = mine("--config.times=-99")
    assert_refused(done, "times should be at least -9")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_profiled_run_is_the_run_that_it_would_be(call, tmp_path):
    model, _ = small.write(tmp_path)
    network = small.flags(small.PAINTED | {"model": model})
    painted = ["--experiment=style", *SMALL, *network, "--config.steps=8"]
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    for workdir, profile in (plain, 0), (traced, 3):
        flags = f"--workdir={workdir}", f"--config.profile={profile}"
        done = call(*painted, *flags)
        assert done.returncode == 0, done.stderr
    assert f"xprof --logdir={traced / 'profile'}\n" in done.stderr
    assert executions(traced / "profile", "step") == 3
    assert (plain / "G.png").read_bytes() == (traced / "G.png").read_bytes()
    assert record(plain)["config"] == record(traced)["config"]
    again = call(*painted, f"--workdir={plain}", "--config.profile=3")
    assert again.stderr.startswith(f"finished already: {plain / 'G.png'}\n")
    assert not (plain / "profile").exists()


def test_an_experiment_without_a_long_loop_has_nothing_to_profile(mine, tmp_path):
    done = mine("--config.profile", "3", "--config.times=2")
    assert done.returncode == 0
    assert "nothing was profiled" in done.stderr
    assert "profile" not in record(tmp_path / "run")["config"]
    assert (tmp_path / "run/said.txt").read_text() == "hellohello"


def test_a_config_cannot_have_the_launchers_own_field(call, tmp_path):
    (tmp_path / "mine.py").write_text(MINE.replace("word: str", "profile: str"))
    done = call(f"--experiment={tmp_path / 'mine.py'}", "--config.times=2")
    assert_refused(done, "Config.profile is the launcher's own: rename the field")


@pytest.mark.parametrize(
    "content",
    ["[]", "null", '{"experiment": 1, "config": 2, "starts": 3}']
    + [
        json.dumps({"experiment": "x", "config": {}, "starts": [], "results": results})
        for results in (5, None, [5], "G.png")
    ],
)
def test_a_run_json_of_another_kind_is_damaged(content, mine, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(content)
    assert_refused(mine(), "run.json is damaged")
    assert (tmp_path / "run/run.json").read_text() == content


def test_a_damaged_run_json_is_named(mine, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"experiment": "st')
    assert_refused(mine(), "run.json")
    assert (tmp_path / "run/run.json").read_text() == '{"experiment": "st'


def test_a_finished_run_says_what_it_left_and_is_not_repeated(mine, tmp_path):
    workdir = tmp_path / "run"
    first = mine()
    assert first.returncode == 0, first.stderr
    results = [str(workdir / "said.txt"), str(workdir / "log.txt")]
    assert first.stderr.splitlines() == results
    assert record(workdir)["results"] == ["said.txt", "log.txt"]
    before, written = snapshot(workdir), (workdir / "said.txt").stat().st_mtime_ns
    second = mine()
    assert second.returncode == 0, second.stderr
    said = second.stdout + second.stderr
    assert said.splitlines() == [f"finished already: {results[0]}", results[1]]
    assert (workdir / "said.txt").stat().st_mtime_ns == written
    after = snapshot(workdir)
    changed = {str(path) for path in before | after if before[path] != after[path]}
    assert changed <= {"run.json"}
    assert len(record(workdir)["starts"]) == 2


def test_a_run_of_which_a_result_is_missing_is_run_again(mine, tmp_path):
    workdir = tmp_path / "run"
    assert mine().returncode == 0
    (workdir / "said.txt").unlink()
    again = mine()
    assert again.returncode == 0
    assert "finished already" not in again.stderr
    assert (workdir / "said.txt").read_text() == "hello"
    assert (workdir / "log.txt").read_text() == "ran\nran\n"
    assert record(workdir)["results"] == ["said.txt", "log.txt"]


@pytest.mark.parametrize(
    ("signum", "times", "status", "said"),
    [
        (signal.SIGINT, 1, 130, "stopped by SIGINT"),
        (signal.SIGTERM, 1, 143, "stopped by SIGTERM"),
        (signal.SIGINT, 2, 130, "interrupted"),  # at once: a KeyboardInterrupt
    ],
)
def test_an_interrupted_run_says_how_to_resume(
    signum, times, status, said, call, folder, tmp_path
):
    workdir = tmp_path / "run"
    command = [f"--experiment={folder / 'stopped.py'}", f"--workdir={workdir}"]
    command += [f"--config.signum={signum.value}", f"--config.times={times}"]
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    done = call(*command)
    assert done.returncode == status, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-2:] == [said, f"rerun with --workdir={workdir} to resume"]
    assert "results" not in record(workdir)
    assert (workdir / "count.txt").read_text() == ("3" if times == 1 else "2")
    assert not (workdir / "error.txt").exists()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    if times == 1:
        again = call(*command)
        assert again.returncode == 0
        assert "resuming after step 3 of 5" in again.stderr
        assert (workdir / "count.txt").read_text() == "5"


def test_interrupted_before_it_has_a_workdir_there_is_nothing_to_resume(
    mine, monkeypatch, tmp_path
):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "connect", interrupt)
    done = mine()
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"
    assert not list(tmp_path.iterdir())


def test_paths_may_start_with_a_tilde(call, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((folder / "mine.py").read_text())
    assert call("--experiment=~/mine.py", "--workdir=~/run").returncode == 0
    assert (tmp_path / "run/said.txt").exists()


def test_a_bug_shows_its_traceback(call, tmp_path):
    (tmp_path / "buggy.py").write_text(
        f"{MINE.partition('def run')[0]}def run(config, workdir):\n    config.no_such\n"
    )
    with pytest.raises(AttributeError, match="no_such"):
        call(f"--experiment={tmp_path / 'buggy.py'}", f"--workdir={tmp_path / 'run'}")


def test_only_the_lead_records_results(mine, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "is_lead", lambda: False)
    assert mine().stderr == ""
    assert not (tmp_path / "run/run.json").exists()


def test_the_launcher_stays_small():
    assert len((ROOT / "launch.py").read_text().splitlines()) <= 80


def test_what_is_typed_cannot_write_to_the_terminal(capfd):
    """Not even by escape sequences, or characters that have no encoding."""
    typed = "--config.layers=\x1b[2J\udcff"
    assert launcher.main(["launch.py", "--experiment=invariance", typed]) == 1
    assert r"error: layers=\x1b[2J\udcff should be two" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("x =", "line 1: invalid syntax"),
        ("def run(config, workdir): pass", "it has no Config"),
    ],
)
def test_a_file_that_is_no_experiment_is_one_line(content, line, tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text(content)
    assert launcher.main(["launch.py", f"--experiment={path}"]) == 1
    assert re.match(rf"error: .*{line}\n$", capfd.readouterr().err)
