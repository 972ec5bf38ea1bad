"""Files are whole or not there, whoever else writes them; CSV keeps what it is given."""

import contextlib
import csv
import hashlib
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import ROOT

from nstvis.runs import cache, files


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.replacing(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        (partial,) = set(tmp_path.iterdir()) - {path}
        assert files.is_partial(partial)
        file.write(b"w")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(28, "Full")])
def test_a_failure_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    any_error = pytest.raises((ValueError, KeyboardInterrupt, OSError))
    with any_error as caught, files.replacing(path) as file:
        file.write(b"ne")
        raise error
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot write: Full"
    else:
        assert caught.type is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once_leave_what_one_of_them_wrote(tmp_path):
    path = tmp_path / "a.txt"
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        a = first.enter_context(files.replacing(path))
        b = second.enter_context(files.replacing(path))
        a.write(b"a" * 1000)
        b.write(b"b" * 10)
        a.flush()
        b.flush()
        first.close()
        assert path.read_bytes() == b"a" * 1000
    assert path.read_bytes() == b"b" * 10
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_names_can_be_written(tmp_path):
    files.write_text(tmp_path / ("n" * 255), "all")
    assert (tmp_path / ("n" * 255)).read_text() == "all"


def test_no_folder_to_write_in_is_named(tmp_path):
    path = tmp_path / "none/a.txt"
    with pytest.raises(OSError, match=f"^{path}: cannot write: No such file"):
        files.write_text(path, "all")


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_known_and_removed(tmp_path):
    code = """import os, pathlib, signal, sys
from nstvis.runs import files
with files.replacing(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)"""
    path = tmp_path / "sub/a.txt"
    path.parent.mkdir()
    command = [sys.executable, "-c", code, path]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -signal.SIGKILL
    (partial,) = path.parent.iterdir()
    assert files.is_partial(partial)
    (tmp_path / "kept.partial").touch()  # not one of ours
    files.remove_partial(tmp_path)
    assert not list(path.parent.iterdir())
    assert (tmp_path / "kept.partial").exists()


fields = st.text(st.characters(exclude_characters="\0\r", codec="utf-8"), max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(fields, min_size=2, max_size=2)))
def test_csv_keeps_any_text(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}.csv"
    files.write_csv(path, ["a", "b"], rows)
    assert files.read_csv(path) == rows
    with path.open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["a", "b"]


def test_csv_leaves_missing_numbers_empty(tmp_path):
    path = tmp_path / "a.csv"
    missing = [None, math.nan, np.nan, np.float32("nan"), np.float64("nan")]
    files.write_csv(path, "abcde", [missing, [1, 2.5, np.float32(0.5), "nan", True]])
    assert files.read_csv(path) == [[""] * 5, ["1", "2.5", "0.5", "nan", "True"]]
    assert path.read_bytes().count(b"\r") == 0


def test_csv_keeps_names_of_files_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    files.write_csv(tmp_path / "a.csv", ["name"], [[name]])
    assert files.read_csv(tmp_path / "a.csv") == [[name]]
    assert b"caf\xe9.jpg" in (tmp_path / "a.csv").read_bytes()


def test_a_download_is_whole_and_genuine_or_not_there(tmp_path):
    source = tmp_path / "site"
    source.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()[:8]
    path = tmp_path / "cache" / f"net-{right}.pth"
    cache.download(source.as_uri(), path)
    assert path.read_bytes() == b"weights"
    assert cache.is_genuine(path)
    wrong = tmp_path / "cache" / "net-00000000.pth"
    with pytest.raises(ValueError, match=r"arrived damaged.*by hand to .*net-0000"):
        cache.download(source.as_uri(), wrong)
    with pytest.raises(ConnectionError, match="^cannot download file:.*try again"):
        cache.download((tmp_path / "nowhere").as_uri(), wrong)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
