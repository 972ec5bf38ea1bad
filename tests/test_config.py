"""Bounds of fields: what they accept, what they say, and where they are checked."""

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launcher import ROOT

from nstvis.runs import config as configs
from nstvis.runs import flags, registry
from nstvis.runs.config import Bounds, bounded, check, chosen, names

EXPERIMENTS = ROOT / "experiments"


@dataclasses.dataclass(kw_only=True)
class Parent:
    # How many
    # of them.
    count: int = bounded(3, least=1, most=9)
    # A share.
    share: float = bounded(0.5, above=0, below=1)
    # A colour.
    color: str = chosen("red", "green", "blue")
    # Bits.
    bits: int = chosen(16, 8)
    # Anything.
    free: float = 0.0
    any_int: int = 0
    flag: bool = False

    # Said of nothing.

    limit: int = bounded(0, least=0, below=2**32)


@dataclasses.dataclass(kw_only=True)
class Config(Parent):
    count: int = bounded(5, least=1, most=9)

    def check(self):
        # What a comment in a method says is of no field.
        if self.count > 7 and self.flag:
            raise ValueError("count should be at most 7 with flag")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count should be at least 1 and at most 9, not 0"),
        ({"count": 10}, "count should be at least 1 and at most 9, not 10"),
        ({"share": 0.0}, "share should be above 0 and below 1, not 0.0"),
        ({"share": 1.0}, "share should be above 0 and below 1, not 1.0"),
        ({"share": math.nan}, "share=nan should be a finite number"),
        ({"free": math.inf}, "free=inf should be a finite number"),
        ({"free": -math.inf}, "free=-inf should be a finite number"),
        ({"any_int": 2**63}, f"any_int={2**63} should fit in 64 bits"),
        ({"any_int": -(2**63) - 1}, f"any_int={-(2**63) - 1} should fit in 64 bits"),
        ({"limit": 2**32}, "limit should be at least 0 and below 4294967296"),
        ({"bits": 7}, "bits should be 16 or 8, not 7"),
        ({"color": "gren"}, "no color 'gren': did you mean 'green'? choose from red, "),
        ({"count": 8, "flag": True}, "count should be at most 7 with flag"),
    ],
)
def test_what_is_out_of_bounds_gets_one_line(change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        check(Config(**change))
    assert "\n" not in str(error.value)


def test_what_is_within_bounds_is_accepted():
    check(Config())
    check(Config(count=1, share=1e-9, color="blue", bits=8, limit=2**32 - 1))
    check(Config(count=9, share=1 - 1e-9, any_int=2**63 - 1))
    check(Config(any_int=-(2**63), free=-1e300))
    check(Config(count=np.int64(7), share=np.float32(0.5)))


limits = st.one_of(st.integers(-20, 20), st.floats(-20, 20))


@given(limits, limits, limits)
def test_bounds_are_intervals(low, high, value):
    assert Bounds(least=low, most=high).allow(value) == (low <= value <= high)
    assert Bounds(above=low, below=high).allow(value) == (low < value < high)
    assert Bounds(least=low).allow(value) == (value >= low)
    assert Bounds(below=high).allow(value) == (value < high)


def test_fields_are_checked_before_they_are_compared():
    """A hook may rely on the bounds of each field."""

    @dataclasses.dataclass(kw_only=True)
    class Divides(Parent):
        def check(self):
            assert 1 / self.count

    with pytest.raises(ValueError, match="count should be at least 1"):
        check(Divides(count=0))


def test_names_are_split_at_commas():
    assert names("layers", "conv1, conv5") == ["conv1", "conv5"]
    assert names("layers", "conv1") == ["conv1"]
    assert names("layers", " ") == names("layers", "") == []
    for text in ("conv1,,conv5", ",conv1", "conv1,", ","):
        with pytest.raises(ValueError, match=f"layers={text}: .* between two commas"):
            names("layers", text)
    with pytest.raises(ValueError, match="layers=a,b, a: a is given twice"):
        names("layers", "a,b, a")


def test_help_shows_defaults_bounds_and_inherited_comments():
    assert flags.describe(Config).splitlines()[:8] == [
        "  --config.count=5  (int, at least 1 and at most 9)",
        "      How many of them.",
        "  --config.share=0.5  (float, above 0 and below 1)",
        "      A share.",
        "  --config.color=red  (str, red or green or blue)",
        "      A colour.",
        "  --config.bits=16  (int, 16 or 8)",
        "      Bits.",
    ]
    assert flags.describe(Config).splitlines()[-2:] == [
        "  --config.limit=0  (int, at least 0 and below 4294967296)",
        "      ",
    ]


# What experiments cannot do without.
NEEDED = {"compare": {"a": "runs/a", "b": "runs/b"}, "scores": {"atlas": "runs/a"}}


@pytest.mark.parametrize("name", registry.names(EXPERIMENTS))
def test_defaults_and_presets_of_experiments_are_within_their_bounds(name):
    experiment = registry.find("experiment", name, EXPERIMENTS)
    check(experiment.Config(**NEEDED.get(name, {})))
    for preset in getattr(experiment, "PRESETS", {}).values():
        check(preset)


@pytest.mark.parametrize("name", NEEDED)
def test_experiments_say_what_they_need(name):
    experiment = registry.find("experiment", name, EXPERIMENTS)
    with pytest.raises(ValueError, match="a finished|two finished"):
        check(experiment.Config())


@pytest.mark.parametrize("name", registry.names(EXPERIMENTS))
def test_numbers_of_experiments_have_bounds_and_plain_types(name):
    experiment = registry.find("experiment", name, EXPERIMENTS)
    for field in dataclasses.fields(experiment.Config):
        assert field.type in (bool, int, float, str), field.name
        if field.type in (int, float):
            assert "bounds" in field.metadata, field.name


def test_shared_fields_have_comments_and_bounds():
    parts = (
        configs.Network,
        configs.Dataset,
        configs.Batches,
        configs.Workers,
        configs.Seed,
        configs.Resumable,
        configs.Profile,
    )
    for part in parts:
        check(part())
        lines = flags.describe(part).splitlines()
        assert all(len(comment.strip()) > 10 for comment in lines[1::2])
        for field in dataclasses.fields(part):
            assert field.type is str or "bounds" in field.metadata


def test_descriptions_show_inherited_fields_and_their_comments(tmp_path):
    file = tmp_path / "flow.py"
    file.write_text(
        '"""Water.\n\nMore."""\n\nimport dataclasses\n\n'
        "@dataclasses.dataclass\nclass Base:\n    # How deep,\n    # in feet.\n"
        "    depth: int = 3\n    # Its name.\n    name: str = 'a'\n\n"
        "@dataclasses.dataclass\nclass Config(Base):\n    # Its colour.\n"
        "    name: str = 'blue'\n    bare: float = 0.5\n"
    )
    assert registry.summary(file) == "Water."
    module = registry.find("experiment", str(file), tmp_path)
    assert flags.describe(module.Config).splitlines() == [
        "  --config.depth=3  (int)",
        "      How deep, in feet.",
        "  --config.name=blue  (str)",
        "      Its colour.",
        "  --config.bare=0.5  (float)",
        "      ",
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--config.content=~/a.jpg", "--config.content=/home/me/a.jpg"),
        ("--workdir=~", "--workdir=/home/me"),
        ("~/a.jpg", "/home/me/a.jpg"),  # of --config.content ~/a.jpg, without a shell
        ("--config.dataset=folder:~/x", "--config.dataset=folder:/home/me/x"),
        ("--config.style=~/a,b~c, ~/d", "--config.style=/home/me/a,b~c, /home/me/d"),
        ("--config.columns=style:a,~/b", "--config.columns=style:a,/home/me/b"),
        ("--config.content=~no.such.user/a", "--config.content=~no.such.user/a"),
        ("--config.content=./~/a~b", "--config.content=./~/a~b"),
        ("--config.data_dir=gs://a/~b", "--config.data_dir=gs://a/~b"),
    ],
)
def test_a_tilde_is_the_home_folder(word, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert flags.at_home([word]) == [expected]
