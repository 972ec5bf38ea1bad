"""The frame of the fuzzer finds a bug that is planted."""

import random

import pytest

from tests.fuzz.watched import Worker

PLANTED = """
def case(random, folder):
    (folder / "input").write_text("x")
    return random.choice([good, refused, lines, bug])

def good():
    pass

def refused():
    raise ValueError("it is damaged")

def lines():
    raise OSError("two\\nlines")

def bug():
    {}["key"]
"""
OUTCOMES = [
    ("accepted", ""),
    ("refused", "it is damaged"),
    ("failed", "not one line"),
    ("failed", "KeyError: 'key'"),
]


@pytest.mark.slow
def test_what_is_no_line_is_a_failure(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    worker = Worker("planted", tmp_path / "work")
    seen = set()
    for seed in map(str, range(5, 14)):
        expected = random.Random(seed).choice(OUTCOMES)
        result = worker.run(seed)
        assert result.outcome == expected[0]
        assert expected[1] in result.reason
        assert (tmp_path / "work/case/input").exists()
        seen.add(expected)
    worker.stop()
    assert seen == {*OUTCOMES}
