"""Names of units: the concepts that their activations tell from all others, tested.

INVERT (Bykov et al. 2023, arXiv:2311.13594): a unit's name is the formula of concepts
with the highest AUROC, the probability that an image with it activates the unit more
than one without. Here a formula is chosen on one half of the images, and what is said of
it is measured on the other.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from nstvis import class_names, models
from nstvis.units import kept_steps, scan
from nstvis.units.concepts import Concepts
from nstvis.units.formulas import (
    BEAM,
    LEAST,
    TERMS,
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
from nstvis.units.responses import Responses, columns

NO_NAME = "no name"
# Names with a q-value above this are none.
SIGNIFICANT = 0.05
# Units that are named at once, at most, and bytes, about, that the search takes for them.
_BLOCK, _MEMORY = 64, 80_000_000


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


def find(
    responses: Responses,
    concepts: Concepts,
    seed: int = 0,
    kept: pathlib.Path | None = None,
) -> dict[str, Finding]:
    """Names all units.

    Args:
        responses: The units' activations for images.
        concepts: What is known of the same images.
        seed: Of the division of the images into halves.
        kept: Folder of names that an interrupted call leaves for the next.

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
    # What `choose` has of a unit: arrays of images, and of ways to add a concept.
    of_unit = 4 * BEAM * (3 * len(choosing.rows) + 48 * len(concepts.names))
    size = max(1, min(_BLOCK, _MEMORY // of_unit))
    found = {}
    for number, (layer, score) in enumerate(responses.score.items()):
        units = score.shape[1]
        named = _Named.none(units, len(concepts.names))
        file, count = kept and kept / f"names-{number}.npz", -(-units // size)
        text = f"names of {layer}"
        for step in kept_steps.steps(file, named._asdict(), count, text):
            block = slice(step * size, (step + 1) * size)
            known = columns(score, block)
            formulas = choose(midranks(known[choosing.rows]), choosing)
            tested = _test(formulas, midranks(known[testing.rows]), testing)
            for array, part in zip(named, tested, strict=True):
                array[block] = part
        found[layer] = _finding(named, concepts.names)
    return found


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

    # Terms, int32 [units, TERMS, 2]; -1 beyond the last one.
    formulas: np.ndarray
    # float64 [units], NaN and 1 where there is no formula.
    auroc: np.ndarray
    p: np.ndarray
    # Of each concept, float64 [units, concepts]; NaN where there are too few images.
    single: np.ndarray

    @classmethod
    def none(cls, units: int, concepts: int) -> Self:
        """Returns what units have that are not named."""
        formulas = np.full((units, TERMS, 2), -1, np.int32)
        single = np.full((units, concepts), np.nan)
        return cls(formulas, np.full(units, np.nan), np.ones(units), single)


def _test(formulas: list[Formula], ranks: np.ndarray, half: Half) -> _Named:
    """Tests units' formulas on the half that they were not chosen on."""
    images = ranks.shape[1]
    named = _Named.none(len(ranks), len(half.present))
    for unit, formula in enumerate(formulas):
        named.formulas[unit, : len(formula)] = np.reshape(formula, (-1, 2))
        held = holds(formula, half.present)
        count = held.sum()
        if formula and LEAST <= count <= images - LEAST:
            named.auroc[unit] = auroc(ranks[unit, held].sum(), count, images)
            named.p[unit] = p_value(ranks[unit], held)
    counts = half.present.sum(1)
    fit = np.minimum(counts, images - counts) >= LEAST
    sums = ranks @ half.numbers
    found = auroc(sums, np.where(fit, counts, 1), images)
    named.single[:] = np.where(fit, found, np.nan)
    return named


def _finding(named: _Named, names: Sequence[str]) -> Finding:
    """Describes a layer's units, which are what q-values are over."""
    formulas = [
        tuple(Term(*term) for term in terms if min(term) >= 0)
        for terms in named.formulas.tolist()
    ]
    # Of each concept, and of NOT each.
    single = np.concatenate([named.single, 1 - named.single], 1)
    q = q_values(named.p)
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
        "auroc": named.auroc,
        "q": q,
        "tested": tested,
        "constant": np.full(len(q), written),
        "constant_auroc": single[:, constant],
    }
