"""Names of units: the concepts that their activations tell from all others, tested.

INVERT (Bykov et al. 2023, arXiv:2311.13594): a unit's name is the formula of concepts
with the highest AUROC, the probability that an image with it activates the unit more
than one without. Here a formula is chosen on one half of the images, and what is said of
it is measured on the other.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nstvis import class_names, models
from nstvis.runs.progress import track
from nstvis.units import scan
from nstvis.units.concepts import Concepts
from nstvis.units.formulas import (
    LEAST,
    Formula,
    Half,
    Term,
    auroc,
    choose,
    half_of,
    holds,
    midranks,
    text,
)
from nstvis.units.measurements import Finding
from nstvis.units.responses import Responses

NO_NAME = "no name"
# Names with a q-value above this are none.
SIGNIFICANT = 0.05
# Units that are named at once.
_BLOCK = 64


def of_logits(target: scan.Target) -> dict[str, Finding]:
    """Returns the finding `class` of the network's logits: the field `name`, their classes.

    Nothing if they are not known, or the logits were not scanned.
    """
    about = target.about
    units = models.units(target.forward, target.params, about.size)
    layer, count = list(units.items())[-1]
    if layer not in about.layers:
        return {}
    found = class_names.of_logits(about.weights, about.model, count, about.classes)
    name = np.array([class_names.short(words) for words in found])
    return {layer: {"name": name}} if found else {}


def find(responses: Responses, concepts: Concepts, seed: int = 0) -> dict[str, Finding]:
    """Names all units.

    Args:
        responses: The units' activations for images.
        concepts: What is known of the same images.
        seed: Of the division of the images into halves.

    Returns:
        By layer, the fields `[units]` of the finding: `concept`, the formula, or "no
        name" if it is not significant; `auroc` on the half that it was not chosen on;
        `q`, that of Benjamini and Hochberg over the layer's units, of the hypothesis
        that this is no higher than chance; `tested`, whether it is significant;
        `constant`, the concept that, given to all of the layer's units, has the highest
        mean AUROC on that half, and `constant_auroc`, the unit's own for it.

    Raises:
        Interrupted: By a signal.
    """
    order = np.random.default_rng(seed).permutation(len(responses.index))
    choosing, testing = (
        half_of(concepts.present, np.sort(part)) for part in np.array_split(order, 2)
    )
    blocks = [
        (layer, score[:, first : first + _BLOCK])
        for layer, score in responses.score.items()
        for first in range(0, score.shape[1], _BLOCK)
    ]
    found: dict[str, list[_Named]] = {layer: [] for layer in responses.score}
    for layer, score in track(blocks, len(blocks), "naming units"):
        formulas = choose(midranks(score[choosing.rows]), choosing)
        found[layer].append(_test(formulas, midranks(score[testing.rows]), testing))
    return {layer: _finding(parts, concepts.names) for layer, parts in found.items()}


def p_value(ranks: np.ndarray, held: np.ndarray) -> float:
    """Returns the probability that chance ranks some images as high: Mann and Whitney's.

    By the normal approximation, with corrections for ties and for continuity.

    Args:
        ranks: Those of all images, by `midranks`.
        held: Which images these are, bool.
    """
    images, count = len(ranks), int(held.sum())
    spread = count * (images - count) / (images - 1) * (ranks**2).mean()
    if not spread:  # all are equal
        return 1.0
    return math.erfc((ranks[held].sum() - 0.5) / math.sqrt(2 * spread)) / 2


def q_values(p: np.ndarray) -> np.ndarray:
    """Returns those of Benjamini & Hochberg 1995 for p-values `[tests]`."""
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled), 1)
    return q


class _Named(NamedTuple):
    """Units' formulas, tested."""

    formulas: list[Formula]
    # float64 [units], NaN and 1 where there is no formula.
    auroc: np.ndarray
    p: np.ndarray
    # Of each concept, and of NOT each, float64 [units, 2 concepts]; NaN where there are
    # too few images.
    single: np.ndarray


def _test(formulas: list[Formula], ranks: np.ndarray, half: Half) -> _Named:
    """Tests units' formulas on the half that they were not chosen on."""
    units, images = ranks.shape
    found, p = np.full(units, np.nan), np.ones(units)
    for unit, formula in enumerate(formulas):
        held = holds(formula, half.present)
        count = held.sum()
        if formula and LEAST <= count <= images - LEAST:
            found[unit] = auroc(ranks[unit, held].sum(), count, images)
            p[unit] = p_value(ranks[unit], held)
    counts = half.present.sum(1)
    fit = np.minimum(counts, images - counts) >= LEAST
    sums = ranks @ half.numbers
    single = np.where(fit, auroc(sums, np.where(fit, counts, 1), images), np.nan)
    return _Named(formulas, found, p, np.concatenate([single, 1 - single], 1))


def _finding(parts: Sequence[_Named], names: Sequence[str]) -> Finding:
    """Puts a layer's units together, which are what q-values are over."""
    formulas = [formula for part in parts for formula in part.formulas]
    found, p = (np.concatenate([getattr(x, y) for x in parts]) for y in ("auroc", "p"))
    single = np.concatenate([part.single for part in parts])
    q = q_values(p)
    tested = q <= SIGNIFICANT
    constant = int(np.nan_to_num(single.mean(0), nan=-1).argmax())
    operator, concept = divmod(constant, len(names))
    written = text((Term(operator, concept),), names)
    return {
        "concept": np.array(
            [
                text(formula, names) if significant else NO_NAME
                for formula, significant in zip(formulas, tested, strict=True)
            ]
        ),
        "auroc": found,
        "q": q,
        "tested": tested,
        "constant": np.full(len(q), written),
        "constant_auroc": single[:, constant],
    }
