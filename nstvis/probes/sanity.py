"""Sanity checks: whether visualisations depend on what a network has learned.

Adebayo et al. 2018 (arXiv:1810.03292): an attribution that stays the same when the
weights are randomised, layer after layer from the last one down, shows the image rather
than what the network has learned.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import attribution, correlation
from nstvis.models import Forward, Params
from nstvis.runs.progress import track
from nstvis.synthesis.features import Search, Settings

# Rank correlation with the attributions of a network whose deeper half is random: at
# least the first if they hardly depend on what that half has learned, below the second if
# they depend much on it.
INSENSITIVE, SENSITIVE = 0.6, 0.3


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of all checks.

    Attributes:
        depths: The layers from which on, up to the last one, the weights are random;
            `none` first.
        similarity: Rule to the mean rank correlation of its attributions with those of
            the trained network, by depth.
        agreement: Mean rank correlation of the rules' attributions, `[rules, rules]`.
        ratios: Highest activation of the optimised picture over the highest of all
            images, for units with one above 0: of the `trained` and `random` network.
    """

    depths: Sequence[str]
    similarity: Mapping[str, Sequence[float]]
    agreement: np.ndarray
    ratios: Mapping[str, np.ndarray]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Averages Spearman's correlation of absolute values over images.

    Args:
        a: Attributions, `[n, height, width, 3]`.
        b: Others for the same images.

    Returns:
        The mean over the images that have any rank order, as all-zero attributions have
        none; NaN if there is no such image.
    """
    flat = (np.abs(x).reshape(len(x), -1) for x in (a, b))
    correlations = correlation.spearman(*flat, axis=1)
    defined = ~np.isnan(correlations)
    return float(correlations[defined].mean()) if defined.any() else np.nan


def report(
    depths: Sequence[str],
    attributions: Mapping[str, Sequence[np.ndarray]],
    ratios: Mapping[str, np.ndarray],
) -> Report:
    """Compares attributions by depth, and between the rules.

    Args:
        depths: Of the attributions; the first is the trained network.
        attributions: As of the function `attributions`.
        ratios: As in `Report`.
    """
    similarity = {
        rule: [rank_correlation(by_depth[0], x) for x in by_depth]
        for rule, by_depth in attributions.items()
    }
    trained = [by_depth[0] for by_depth in attributions.values()]
    agreement = [[rank_correlation(a, b) for b in trained] for a in trained]
    return Report(depths, similarity, np.array(agreement), ratios)


def randomised(
    forward: Forward, params: Params, random: Params, image: Array | np.ndarray
) -> dict[str, Params]:
    """Randomises ever more layers of a network, from the last one down.

    Args:
        forward: The network.
        params: The trained network's, by layer.
        random: The random network's.
        image: `[1, height, width, 3]`, which shows the activations that a layer changes.

    Returns:
        Layer to the parameters that are random from there on.
    """
    image, forward = jnp.asarray(image), jax.jit(forward)
    trained = forward(params, image)

    def depth(name: str) -> int:
        mixed = forward({**params, name: random[name]}, image)
        same = [np.array_equal(trained[layer], mixed[layer]) for layer in trained]
        return [*same, False].index(False)

    mixed, cascade = dict(params), {}
    for name in sorted(params, key=depth, reverse=True):
        mixed[name] = random[name]
        cascade[name] = dict(mixed)
    return cascade


def attributions(
    forward: Forward,
    depths: Mapping[str, Params],
    layer: str,
    images: np.ndarray,
    units: np.ndarray,
    batch: int,
) -> dict[str, list[np.ndarray]]:
    """Computes each rule's attributions of dense units, for the weights of each depth.

    Args:
        forward: The network.
        depths: Its parameters, by depth.
        layer: A dense layer.
        images: float32 `[n, size, size, 3]`.
        units: A unit of the layer for each image, int `[n]`.
        batch: Images in a batch.

    Returns:
        Rule to attributions `[n, size, size, 3]` for each depth.
    """
    pairs = [(rule, params) for rule in attribution.RULES for params in depths.values()]
    attribute = {
        rule: _attribution(attribution.ruled(forward, rule), layer)
        for rule in attribution.RULES
    }
    by_rule: dict[str, list[np.ndarray]] = {rule: [] for rule in attribution.RULES}
    for rule, params in track(pairs, len(pairs), "attributions"):
        by_rule[rule].append(
            batched(attribute[rule], params, images, units, batch=batch)
        )
    return by_rule


def _attribution(network: Forward, layer: str) -> Callable[..., Array]:
    @jax.jit
    def attribute(params: Params, images: Array, units: Array) -> Array:
        positions = jnp.zeros((len(images), 2), int)  # which a dense layer ignores
        where = images, units, positions
        return attribution.attribute(network, params, layer, *where, seed="one")[0]

    return attribute


def batched(
    function: Callable[..., Array], params: Params, *arrays: np.ndarray, batch: int
) -> np.ndarray:
    """Applies a function of parameters and arrays `[n, ...]` batch by batch."""
    starts = range(0, len(arrays[0]), batch)
    parts = [[x[first : first + batch] for x in arrays] for first in starts]
    return np.concatenate([np.asarray(function(params, *part)) for part in parts])


def optimised_ratios(
    forward: Forward,
    params: Params,
    layer: str,
    images: np.ndarray,
    *,
    units: int,
    seed: int,
    batch: int,
) -> np.ndarray:
    """Compares optimised pictures' activations with the highest of natural images.

    Args:
        forward: The network.
        params: Its parameters.
        layer: Whose units.
        images: float32 `[n, size, size, 3]`.
        units: Number of units, chosen at random.
        seed: Seed of the choice and of the pictures.
        batch: Images in a batch.

    Returns:
        Ratios for the chosen units that any of the images activates.
    """

    @jax.jit
    def highest(params: Params, images: Array) -> Array:
        maps = forward(params, images)[layer]
        return maps.reshape(len(maps), -1, maps.shape[-1]).max(1)

    natural = batched(highest, params, images, batch=batch).max(0)
    chosen = np.random.default_rng(seed).permutation(len(natural))[:units]
    settings = Settings(size=images.shape[1], seed=seed)
    search = Search(forward, params, layer, settings, len(chosen))
    steps = search.run(chosen.tolist())
    for state in track(steps, settings.steps, "optimised pictures"):
        last = state
    optimised = [x.activation for x in search.found(last, chosen.tolist())]
    alive = natural[chosen] > 0
    return np.array(optimised)[alive] / natural[chosen][alive]


def verdicts(report: Report, layer: str) -> list[str]:
    """Judges each method in one sentence.

    Args:
        report: The results.
        layer: Whose pictures were optimised.
    """
    rules = report.similarity.items()
    sentences = [_rule_verdict(rule, x, report.depths) for rule, x in rules]
    return [*sentences, _optimised_verdict(report, layer)]


def _rule_verdict(rule: str, similarity: Sequence[float], depths: Sequence[str]) -> str:
    half, whole = similarity[len(similarity) // 2], similarity[-1]
    if np.isnan(half):
        verdict = "cannot be judged: with random weights all attributions are 0"
    elif half >= INSENSITIVE:
        verdict = "FAILS: hardly depends on what the deeper layers have learned"
    elif half >= SENSITIVE:
        verdict = "DOUBTFUL: depends in part on what the deeper layers have learned"
    else:
        verdict = "PASSES: depends on what the deeper layers have learned"
    return (
        f"{rule} {verdict} (rank correlation {half:.2f} with random weights from"
        f" {depths[len(similarity) // 2]} on, {whole:.2f} with all random)"
    )


def _optimised_verdict(report: Report, layer: str) -> str:
    trained, random = report.ratios["trained"], report.ratios["random"]
    if not len(trained):
        return f"optimised pictures cannot be judged: no image activates {layer}"
    reached = (trained >= 1).mean()
    verdict = "PASS" if reached >= 0.9 else "FAIL"
    chance = f"{np.median(random):.1f}" if len(random) else "?"
    return (
        f"optimised pictures {verdict}: {reached:.0%} of {len(trained)} units of {layer}"
        " are at least as active as on any of the images (median"
        f" {np.median(trained):.1f} times; {chance} times in a random network: a high"
        " activation alone says little)"
    )
