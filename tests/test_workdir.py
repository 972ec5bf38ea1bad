"""Whose a folder is: claims that are kept, refused and finished."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from launcher import ROOT

from nstvis.runs import files
from nstvis.runs import workdir as workdirs


@dataclasses.dataclass(kw_only=True)
class Config:
    # How large, in
    # pixels.
    size: int = 3
    name: str = "a"


def test_a_claim_is_kept_for_the_same_config_only(tmp_path):
    workdir = tmp_path / "some/where"
    for _ in range(2):
        workdirs.claim(workdir, "style", Config())
    record = json.loads((workdir / "run.json").read_text())
    assert record["experiment"] == "style"
    assert record["config"] == {"size": 3, "name": "a"}
    assert len(record["starts"]) == 2
    assert record["starts"][0].keys() >= {"time", "command", "versions", "devices"}
    (workdir / "metrics.jsonl").touch()
    before = (workdir / "run.json").read_bytes()
    with pytest.raises(ValueError, match="size was 3, is 4; name was 'a', is 'b'"):
        workdirs.claim(workdir, "style", Config(size=4, name="b"))
    with pytest.raises(ValueError, match="experiment was 'style', is 'flow'"):
        workdirs.claim(workdir, "flow", Config())
    assert (workdir / "run.json").read_bytes() == before


def test_a_start_that_left_nothing_does_not_hold_its_folder(tmp_path):
    workdirs.claim(tmp_path, "style", Config())
    (tmp_path / "error.txt").touch()
    workdirs.claim(tmp_path, "style", Config(size=4))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["size"] == 4
    assert len(record["starts"]) == 2


def test_a_claim_takes_an_empty_folder_but_no_other(tmp_path):
    workdirs.claim(tmp_path, "style", Config())
    (tmp_path / "run.json").rename(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="holds files"):
        workdirs.claim(tmp_path, "style", Config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_runs_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = workdirs.default_workdir("mine/my_flow.py")
    assert first.parent == pathlib.Path("runs")
    assert first.name.startswith("my_flow-")

    class Stopped(workdirs.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2020, 1, 2, 3, 4, 5)

    monkeypatch.setattr(workdirs.datetime, "datetime", Stopped)
    stopped = workdirs.default_workdir("style")
    assert stopped.name == "style-2020-01-02-030405"
    stopped.mkdir(parents=True)
    assert not workdirs.default_workdir("style").exists()


def test_results_are_recorded_and_asked_for(tmp_path):
    assert workdirs.claim(tmp_path, "style", Config()) == []
    (tmp_path / "a.png").touch()
    (tmp_path / "b.csv").touch()
    assert workdirs.claim(tmp_path, "style", Config()) == []
    workdirs.finish(tmp_path, ("b.csv", "a.png"))
    results = [tmp_path / "b.csv", tmp_path / "a.png"]
    assert workdirs.claim(tmp_path, "style", Config()) == results
    (tmp_path / "a.png").unlink()
    assert workdirs.claim(tmp_path, "style", Config()) == []
    # It is finished again when the next run says so, not as soon as the file is there.
    (tmp_path / "a.png").touch()
    assert workdirs.claim(tmp_path, "style", Config()) == []


def test_what_a_killed_process_was_writing_claims_nothing_and_is_removed(tmp_path):
    partial = tmp_path / "sub" / ".0123.partial"
    for size in (3, 4):  # no run yet, and one that left nothing else
        partial.parent.mkdir(exist_ok=True)
        partial.touch()
        assert files.is_partial(partial)
        workdirs.claim(tmp_path, "style", Config(size=size))
        assert not partial.exists()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["size"] == 4


def test_the_commit_is_this_checkout_s_or_none(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    package = tmp_path / "nstvis" / "runs"
    package.mkdir(parents=True)
    file = shutil.copy(workdirs.__file__, package)
    monkeypatch.setattr(workdirs, "__file__", str(file))
    assert workdirs._commit() is None
    git("init")
    (tmp_path / "other").touch()
    git("add", "other")
    git("commit", "-m", "a")
    assert workdirs._commit() is None  # installed within a repository of another
    git("add", ".")
    git("commit", "-m", "b")
    commit = workdirs._commit()
    assert len(commit) == 40
    (tmp_path / "other").write_text("more")
    assert workdirs._commit() == f"{commit}+"


HOLDER = """
import pathlib, sys, time
from nstvis.runs import workdir
with workdir.alone(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_runs_until_that_ends_however_it_does(tmp_path, caplog):
    workdirs.claim(tmp_path, "style", Config())
    before = sorted(tmp_path.iterdir())
    said = r"in use by process \d+ on .* since .*: wait for it, stop it, or name"
    with files.locked(tmp_path), pytest.raises(BlockingIOError, match=said):
        workdirs.alone(tmp_path).__enter__()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, cwd=ROOT
    )
    with holder:
        assert holder.stdout.readline() == b"in\n"
        caplog.set_level("INFO", "nstvis")
        with pytest.raises(BlockingIOError, match=said):
            workdirs.alone(tmp_path).__enter__()
        threading.Timer(0.2, holder.kill).start()
        with workdirs.alone(tmp_path, wait=True):
            assert holder.wait() == -signal.SIGKILL
        assert "in use by process" in caplog.text
    assert sorted(tmp_path.iterdir()) == before
    with workdirs.alone(tmp_path):
        pass


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "[" * 100_000,
        '{"experiment": "style"}',
        '{"experiment": 3, "config": {}, "starts": []}',
        '{"experiment": "style", "config": {}, "starts": [], "results": [1]}',
    ],
)
def test_a_damaged_record_is_said_to_be_damaged(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        workdirs.claim(tmp_path, "style", Config())
    assert (tmp_path / "run.json").read_text() == content


def test_nothing_is_touched_in_a_folder_that_is_not_a_runs(tmp_path):
    (tmp_path / "error.txt").write_text("mine")
    (tmp_path / f".{32 * 'a'}.partial").write_text("mine, too")
    with pytest.raises(ValueError, match="holds files"):
        workdirs.claim(tmp_path, "style", Config())
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == [
        "mine, too",
        "mine",
    ]
