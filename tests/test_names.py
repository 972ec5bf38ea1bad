"""Names are what units were made of, and what is said of them is SciPy's."""

import itertools
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nstvis.units import description, formulas, names
from nstvis.units.concepts import Concepts
from nstvis.units.responses import Responses

NAMES = [*"abcdefgh"]
IMAGES = 1600


def concepts(seed=0, images=IMAGES, count=8):
    present = np.random.default_rng(seed).random((images, count)) < 0.2
    return Concepts([*map(str, range(count))] if count > 8 else NAMES, present)


def responses(**layers):
    images = len(next(iter(layers.values())))
    index, none = np.arange(images, dtype=np.int32), np.full(images, -1, np.int32)
    scores = {name: np.asarray(x, np.float32) for name, x in layers.items()}
    return Responses(index, none, scores, dict.fromkeys(scores, none))


scores = st.lists(st.integers(-3, 3), min_size=6, max_size=30).flatmap(
    lambda x: st.tuples(st.just(x), st.integers(1, len(x) - 1))
)


@settings(deadline=None, max_examples=50)
@given(scores)
def test_auroc_and_p_are_mann_and_whitney_s(drawn):
    values, count = np.array(drawn[0], float), drawn[1]
    ranks = formulas.midranks(values[:, None])[0]
    np.testing.assert_array_equal(ranks, stats.rankdata(values) - (len(values) + 1) / 2)
    found = formulas.auroc(ranks[:count].sum(), np.array(count), len(values))
    mine, other = values[:count], values[count:]
    u, p = stats.mannwhitneyu(mine, other, alternative="greater", method="asymptotic")
    assert found == pytest.approx(u / (len(mine) * len(other)), abs=1e-12)
    if len(set(values)) > 1:
        assert names.p_value(ranks, np.arange(len(ranks)) < count) == pytest.approx(
            p, rel=1e-9
        )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_q_values_are_benjamini_and_hochberg_s(p):
    expected = stats.false_discovery_control(p)
    np.testing.assert_allclose(names.q_values(np.array(p)), expected, atol=1e-15)


def test_auroc_in_a_finding_is_scipy_s():
    """Over many images with ties, in the half that the formula was not chosen on."""
    rng, known = np.random.default_rng(0), concepts()
    a, b, c = known.present.T[:3]
    values = np.maximum(0, (a & ~b | c)[:, None] + rng.normal(0, 1, (IMAGES, 20)))
    found = names.find(responses(x=values), known)["x"]
    half = np.array_split(np.random.default_rng(0).permutation(IMAGES), 2)[1]
    for unit, concept in enumerate(found["concept"]):
        held = held_by(concept, known)[half]
        score = values[half, unit].astype(np.float32)
        u = stats.mannwhitneyu(score[held], score[~held]).statistic
        expected = u / (held.sum() * (~held).sum())
        assert found["auroc"][unit] == pytest.approx(expected, abs=1e-12)
    assert found["tested"].all()


def held_by(text, known):
    """Reads a name as Python does."""
    columns = dict(zip(known.names, known.present.T, strict=True))
    for word, operator in (("AND", "&"), ("OR", "|"), ("NOT", "~")):
        text = text.replace(word, operator)
    for left, right in itertools.pairwise(["", *text.replace("~ ", "~").split()]):
        assert left == "" or (left in "&|") != (right in "&|"), text
    # From left to right: & binds more strongly than |, so parentheses tell all.
    return eval(text, {}, columns)


MADE = {
    "a": lambda a, b, c: a,
    "NOT b": lambda a, b, c: ~b,
    "a AND b": lambda a, b, c: a & b,
    "a AND NOT b": lambda a, b, c: a & ~b,
    "a OR b": lambda a, b, c: a | b,
    "a OR b OR c": lambda a, b, c: a | b | c,
    "(a OR b) AND NOT c": lambda a, b, c: (a | b) & ~c,
    "(a AND b) OR c": lambda a, b, c: a & b | c,
}


@pytest.mark.parametrize("noise", [0, 0.3])
@pytest.mark.parametrize("made", MADE)
def test_units_made_of_concepts_are_named_right(made, noise):
    units, right = 20, []
    for seed in range(2):
        known = concepts(seed)
        wanted = MADE[made](*known.present.T[:3])
        rng = np.random.default_rng(seed)
        values = wanted[:, None] + rng.normal(0, noise, (IMAGES, units))
        found = names.find(responses(x=values), known, seed)["x"]
        right += [(held_by(name, known) == wanted).all() for name in found["concept"]]
        assert (found["auroc"] > 0.97).all()
        assert found["tested"].all()
    assert all(right)


def test_shuffled_concepts_are_no_names():
    rng = np.random.default_rng(1)
    known = concepts(count=20)
    made = known.present[:, rng.integers(0, 20, 100)]
    wanted = made + rng.normal(0, 1, made.shape)
    order = rng.permutation(IMAGES)
    shuffled = Concepts(known.names, known.present[order])
    found = names.find(responses(x=wanted), shuffled)["x"]
    assert found["tested"].mean() <= 0.05
    assert (found["concept"][~found["tested"]] == names.NO_NAME).all()
    assert names.find(responses(x=wanted), known)["x"]["tested"].mean() > 0.95


def test_a_dead_unit_has_no_name_and_a_rare_concept_is_none():
    known = concepts()
    known.present[:, 1] = False
    known.present[:3, 1] = True
    values = np.stack([np.zeros(IMAGES), known.present[:, 1]], 1)
    found = names.find(responses(x=values, y=values[:, :1]), known)
    assert found["x"]["concept"].tolist() == [names.NO_NAME] * 2
    assert found["y"]["q"].tolist() == [1]
    assert np.isnan(found["y"]["auroc"]).all()


def test_the_constant_is_the_best_for_all_units():
    known, rng = concepts(), np.random.default_rng(0)
    values = 0.5 * ~known.present[:, 3:4] + rng.normal(0, 1, (IMAGES, 30))
    values[:, 0] += 5 * known.present[:, 0]
    found = names.find(responses(x=values), known)["x"]
    assert set(found["constant"]) == {"NOT d"}
    half = np.array_split(np.random.default_rng(0).permutation(IMAGES), 2)[1]
    held = ~known.present[half, 3]
    for unit in (0, 7):
        u = stats.mannwhitneyu(values[half, unit][held], values[half, unit][~held])
        expected = u.statistic / (held.sum() * (~held).sum())
        assert found["constant_auroc"][unit] == pytest.approx(expected, abs=1e-6)
    assert found["concept"][0] == "a"


def described(**findings):
    unit = types.SimpleNamespace(findings=findings)
    return [*description._class(unit), *description._name(unit)]  # type: ignore


def test_a_name_is_described_with_its_test():
    name = {"concept": "a", "auroc": 0.912, "q": 1e-9, "tested": True}
    name |= {"constant": "b", "constant_auroc": 0.6}
    logit, line = described(name=name, **{"class": {"name": "goldfish"}})
    assert logit == "It is the logit of the class goldfish."
    assert "name is: a." in line
    assert "in 91.2% of the cases (AUROC, q = 1e-09)" in line
    assert line.endswith(
        "For b, the best name for all units of the layer, it is 60.0%."
    )
    (line,) = described(name=name | {"tested": False, "constant_auroc": None})
    assert "no name" in line
    assert described() == []
