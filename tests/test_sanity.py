"""The sanity checks on attributions and networks whose verdict is known."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launcher import assert_left, launch
from PIL import Image

from experiments import sanity as experiment
from nstvis import attribution
from nstvis.probes import sanity
from nstvis.runs import config as configs
from nstvis.runs import workdir


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


def report(half, ratios):
    depths = ["none", "fc2", "conv1"]
    similarity = {"guided": [1.0, half, half]}
    ratios = {"trained": np.array(ratios), "random": np.array([])}
    return sanity.Report(depths, similarity, np.ones((1, 1)), ratios)


@pytest.mark.parametrize(
    ("half", "word"),
    [(0.9, "FAILS"), (0.45, "DOUBTFUL"), (0.1, "PASSES"), (np.nan, "cannot be judged")],
)
def test_verdicts_on_rules(half, word):
    first, _ = sanity.verdicts(report(half, [1.0]), "conv5")
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
    assert words in sanity.verdicts(report(0.1, ratios), "conv5")[-1]


def test_weights_become_random_from_the_last_layer_down():
    """Whatever their names are, which need not be the activations'."""
    names = ["stem", "body", "classifier"]
    params = {name: jnp.ones((1, 3)) for name in ("classifier", "stem", "body")}
    random = {name: jnp.zeros((1, 3)) for name in names}

    def forward(params, images):
        x = {"one": images * params["stem"]}
        x["two"] = x["one"] + params["body"]
        return x | {"out": x["two"] * params["classifier"]}

    depths = sanity.randomised(forward, params, random, np.ones((1, 3)))
    assert list(depths) == names[::-1]
    alive = [{n for n in params if d[n].any()} for d in depths.values()]
    assert alive == [{"stem", "body"}, {"stem"}, set()]


def test_batches_change_no_attribution(monkeypatch):
    monkeypatch.setattr(attribution, "RULES", ("guided",))
    params = jnp.asarray(np.random.default_rng(0).normal(size=(48, 5)), jnp.float32)

    def forward(params, images):
        hidden = jax.nn.relu(images.reshape(len(images), -1) @ params)
        return {"hidden": hidden, "logits": hidden @ params.T[:, :5]}

    images = np.random.default_rng(1).normal(size=(7, 4, 4, 3)).astype(np.float32)
    units = np.arange(7) % 5
    whole, parts = (
        sanity.attributions(forward, {"none": params}, "logits", images, units, batch)
        for batch in (7, 3)
    )
    assert parts["guided"][0].shape == images.shape
    np.testing.assert_allclose(parts["guided"][0], whole["guided"][0], rtol=1e-5)


def test_reports_compare_depths_and_rules():
    a, b = noise(0), noise(1)
    report = sanity.report(["none", "fc"], {"x": [a, b], "y": [b, b]}, {})
    similar = sanity.rank_correlation(a, b)
    np.testing.assert_allclose(report.similarity["x"], [1, similar])
    np.testing.assert_allclose(report.similarity["y"], [1, 1])
    np.testing.assert_allclose(report.agreement, [[1, similar], [similar, 1]])


@pytest.mark.slow
def test_the_page_and_the_numbers(drawn, tmp_path):
    run, fields = tmp_path / "run", {"images": 4, "units": 2, "size": 40}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = launch("--experiment=sanity", f"--workdir={run}", *flags)
    assert_left(done, run, ["sanity.png", "sanity.csv"])
    with (run / "sanity.csv").open() as file:
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
    for method in [*attribution.RULES, "optimised pictures"]:
        assert f"{method} " in done.stderr
    with Image.open(run / "sanity.png") as page:
        assert page.width > 600
    results = workdir.claim(run, "sanity", experiment.Config(**fields))
    assert results == [run / "sanity.png", run / "sanity.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "conv9"}, "did you mean 'conv5'?"),
        ({"images": 0}, "images should be at least 1"),
        ({"units": 0}, "units should be at least 1"),
        ({"weights": "random"}, "nothing to make random"),
    ],
)
def test_mistakes_get_one_line(options, message, tmp_path):
    config = experiment.Config(**options)
    with pytest.raises(ValueError) as error:
        configs.check(config)
        experiment.run(config, tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
