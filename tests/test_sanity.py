"""The checks of the checks: what they say of pictures whose answer is known."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from launcher import launch
from PIL import Image

from experiments import sanity
from nstvis.probes import attribution


def noise(seed, count=4):
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 3))


def test_rank_correlation_is_spearman_s_of_absolute_values():
    stats = pytest.importorskip("scipy.stats")
    a, b = noise(0), noise(0) + noise(1)
    wanted = [
        stats.spearmanr(np.abs(x).ravel(), np.abs(y).ravel()).statistic
        for x, y in zip(a, b)
    ]
    assert sanity.rank_correlation(a, b) == pytest.approx(np.mean(wanted))
    assert sanity.rank_correlation(a, -(a**3)) == pytest.approx(1)
    assert sanity.rank_correlation(a, 1 / a) == pytest.approx(-1)
    a[2] = 0  # of which nothing can be said
    del wanted[2]
    assert sanity.rank_correlation(a, b) == pytest.approx(np.mean(wanted))
    assert np.isnan(sanity.rank_correlation(a * 0, b))


def found(half, ratios):
    depths = ["none", "fc2", "conv1"]
    similar = {"guided": [1.0, half, half]}
    empty = np.array([])
    ratios = {"trained": np.array(ratios), "random": empty}
    return sanity.Found(depths, {}, similar, np.ones((1, 1)), ratios)


@pytest.mark.parametrize(
    ("half", "word"),
    [(0.9, "FAILS"), (0.45, "DOUBTFUL"), (0.1, "PASSES"), (np.nan, "cannot be judged")],
)
def test_verdicts_on_rules(half, word):
    first, _ = sanity.verdicts(found(half, [1.0]), "conv5")
    assert first.startswith(f"guided {word}")


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([2.0] * 9 + [0.5], "PASS: 90% of 10"),
        ([2.0] * 8 + [0.5] * 2, "FAIL: 80% of 10"),
        ([], "cannot be judged"),
    ],
)
def test_verdicts_on_optimised_pictures(ratios, words):
    assert words in sanity.verdicts(found(0.1, ratios), "conv5")[-1]


def test_weights_become_random_from_the_last_layer_down():
    """Whatever their names are, which need not be the activations'."""
    names = ["stem", "body", "classifier"]
    params = {name: jnp.ones((1, 3)) for name in ("classifier", "stem", "body")}
    random = {name: jnp.zeros((1, 3)) for name in names}

    def forward(params, images):
        x = {"one": images * params["stem"]}
        x["two"] = x["one"] + params["body"]
        return x | {"out": x["two"] * params["classifier"]}

    found = sanity.randomised(forward, params, random, np.ones((1, 3)))
    assert list(found) == names[::-1]
    alive = [{n for n in params if d[n].any()} for d in found.values()]
    assert alive == [{"stem", "body"}, {"stem"}, set()]


SMALL = [
    "--experiment=sanity",
    "--config.images=4",
    "--config.units=2",
    "--config.size=40",
]


def test_the_page_and_the_numbers(tmp_path):
    done = launch(*SMALL, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run/sanity.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = {(r["check"], r["method"], r["against"]): float(r["value"]) for r in rows}
    depths = ["none", "fc8", "fc7", "fc6", *(f"conv{i}" for i in (5, 4, 3, 2, 1))]
    for rule in attribution.RULES:
        similar = [numbers["randomisation", rule, depth] for depth in depths]
        assert similar[0] == pytest.approx(1)
        assert max(similar[1:]) < 0.999  # all depths have other weights
        assert numbers["agreement", rule, rule] == pytest.approx(1)
    # What Adebayo et al. found.
    assert (
        numbers["randomisation", "guided", "conv5"]
        > numbers["randomisation", "gradient", "conv5"] + 0.2
    )
    ratios = [r for r in rows if r["check"] == "optimised : natural"]
    assert {r["against"] for r in ratios} == {"trained", "random"}
    for rule in [*attribution.RULES, "optimised pictures"]:
        assert f"{rule} " in done.stderr
    with Image.open(tmp_path / "run/sanity.png") as page:
        assert page.width > 600
    again = launch(*SMALL, f"--workdir={tmp_path / 'run'}")
    assert "finished already" in again.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.layer=conv9", "did you mean 'conv5'?"),
        ("--config.images=0", "images should be at least 1"),
        ("--config.weights=random", "nothing to make random"),
    ],
)
def test_mistakes_get_one_line(flag, message, tmp_path):
    done = launch(*SMALL[:1], flag, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
