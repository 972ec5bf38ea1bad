"""Formulas of concepts, and the search for the one that a unit is activated by most.

INVERT (Bykov et al. 2023, arXiv:2311.13594): a beam search for AND, OR and NOT of a few
concepts, by the AUROC of the unit's activations.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

# Concepts in a formula at most, and formulas that are kept to be extended.
TERMS, BEAM = 3, 10
# Images, in each half, that a formula must hold for, and not hold for.
LEAST = 5
# What a further concept must add to the AUROC.
GAIN = 0.005
# What a formula loses of its AUROC by the share of the images, beyond half of them, that
# it holds for: such a formula says what does not activate a unit. INVERT has none.
GENERAL = 0.4
# The share of units for which chance may extend a formula: Bonferroni's correction for
# all extensions that are compared.
CHANCE = 0.05

_AND, _AND_NOT, _OR, _OR_NOT = range(4)
_WORDS = ("AND", "AND NOT", "OR", "OR NOT")


class Term(NamedTuple):
    """What a formula does with a concept: its operator, and the concept's number."""

    operator: int
    concept: int


# The first concept is AND'ed, or AND NOT'ed, to all images; further ones to what the
# formula is before them.
Formula = tuple[Term, ...]


class Half(NamedTuple):
    """One half of the images: which they are, and which have which concepts."""

    rows: np.ndarray
    # bool [concepts, images], and the same as float32 [images, concepts].
    present: np.ndarray
    numbers: np.ndarray


def half_of(present: np.ndarray, rows: np.ndarray) -> Half:
    """Returns the half with these rows of `present`, bool `[images, concepts]`."""
    mine = present[rows]
    return Half(rows, np.ascontiguousarray(mine.T), mine.astype(np.float32))


def midranks(score: np.ndarray) -> np.ndarray:
    """Ranks images, equal ones by the mean of their ranks, around a mean of 0.

    Args:
        score: Activations `[images, units]`.

    Returns:
        float64 `[units, images]`, multiples of 1/2.
    """
    ranks = np.empty(score.shape[::-1])
    for unit, values in enumerate(np.ascontiguousarray(score.T)):
        order = np.sort(values)
        below, through = (np.searchsorted(order, values, x) for x in ("left", "right"))
        ranks[unit] = (below + through - len(values)) / 2
    return ranks


def auroc(ranks: np.ndarray, count: np.ndarray, images: int) -> np.ndarray:
    """Computes the AUROC, U / (n1 n2) of Mann and Whitney, exactly but for a division.

    Args:
        ranks: Sums of the ranks, by `midranks`, of some of the images.
        count: How many these are, neither none nor all.
        images: How many images there are.
    """
    return 0.5 + ranks / (count * (images - count))


def holds(formula: Formula, present: np.ndarray) -> np.ndarray:
    """Returns for which images a formula holds, bool `[images]`.

    Args:
        formula: Read from left to right.
        present: Which of the concepts they have, bool `[concepts, images]`.
    """
    held = np.ones(present.shape[1], bool)
    for operator, concept in formula:
        has = present[concept] ^ (operator in (_AND_NOT, _OR_NOT))
        held = held & has if operator in (_AND, _AND_NOT) else held | has
    return held


def text(formula: Formula, names: Sequence[str]) -> str:
    """Writes a formula, such as `(cat OR dog) AND NOT black`."""
    written = ""
    for place, (operator, concept) in enumerate(formula):
        words = _WORDS[operator]
        if not place:
            words = words.removeprefix("AND").lstrip()
        elif place > 1 and words[:2] != _WORDS[formula[place - 1].operator][:2]:
            written = f"({written})"
        written = f"{written} {words} {names[concept]}"
        written = " ".join(written.split())
    return written


class _Beams(NamedTuple):
    """Of each unit, the formulas that are extended; the best is the first."""

    formulas: list[list[Formula]]
    # For which images they hold, 0 or 1, float32 [units, beam, images].
    held: np.ndarray
    # Their AUROC, float64 [units, beam]; -inf where a beam is not full.
    score: np.ndarray


def choose(ranks: np.ndarray, half: Half) -> list[Formula]:
    """Chooses the units' formulas by a beam search; an empty one if none is any good.

    Args:
        ranks: Those `[units, images]` of the half that is chosen on.
        half: That half.
    """
    units, images = ranks.shape
    best: list[Formula] = [()] * units
    highest, single = np.full(units, 0.5), np.zeros(())
    every = np.ones((units, 1, images), np.float32)
    beams = _Beams([[()] for _ in range(units)], every, np.zeros((units, 1)))
    for place in range(TERMS):
        score, deviations = _extended(ranks.astype(np.float32), beams.held, half)
        certain = deviations >= NormalDist().inv_cdf(1 - CHANCE / score[0].size)
        if place:
            parts = np.maximum(beams.score[..., None, None], single)
            score = np.where(certain & (score > parts), score, -np.inf)
        else:
            single = np.tile(score[:, :, :2], (1, 1, 2, 1))
            # A part of a good formula may be too little of it to be certain by itself.
            score = np.where(certain, score, deviations * 1e-3 - 1)
        beams = _picked(beams, score, half)
        for unit in np.flatnonzero(beams.score[:, 0] > highest + GAIN):
            highest[unit], best[unit] = beams.score[unit, 0], beams.formulas[unit][0]
    return best


def _picked(beams: _Beams, score: np.ndarray, half: Half) -> _Beams:
    """Returns the best extensions of units' formulas.

    Args:
        beams: The formulas.
        score: That of their extensions `[units, beam, operators, concepts]`.
        half: Whose images they hold for.
    """
    units, images = len(score), beams.held.shape[-1]
    formulas: list[list[Formula]] = []
    held = np.zeros((units, BEAM, images), np.float32)
    scores = np.full((units, BEAM), -np.inf)
    for unit, extensions in enumerate(score):
        places = _distinct(extensions.ravel())
        formulas.append([])
        for i, place in enumerate(places):
            of, operator, concept = np.unravel_index(place, extensions.shape)
            term = Term(int(operator), int(concept))
            formulas[unit].append((*beams.formulas[unit][int(of)], term))
            held[unit, i] = holds(formulas[unit][i], half.present)
            scores[unit, i] = extensions.flat[place]
    return _Beams(formulas, held, scores)


def _distinct(score: np.ndarray) -> np.ndarray:
    """Returns where the highest finite scores are, the first of equal ones.

    Formulas of one score are, nearly always, one formula written in two ways.
    """
    many = min(16 * BEAM, len(score))
    least = max(np.partition(score, -many)[-many], np.finfo(score.dtype).min)
    best = np.flatnonzero(score >= least)
    _, first = np.unique(-score[best].round(6), return_index=True)
    return best[first[:BEAM]]


def _extended(
    ranks: np.ndarray, held: np.ndarray, half: Half
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the AUROC of formulas extended by each operator and concept.

    Args:
        ranks: Those of the images, by `midranks`, `[units, images]`.
        held: For which images the units' formulas hold, 0 or 1 `[units, beam, images]`.
        half: Whose images they are.

    Returns:
        `[units, beam, operators, concepts]`, less `GENERAL` where it is due; and by how
        many standard deviations the concept makes more difference than chance, -inf
        where there are too few images.
    """
    images = ranks.shape[1]
    weighted = ranks[:, None] * held
    # Of the images that have the concept: those for which the formula holds, others.
    ranks_in, count_in = weighted @ half.numbers, held @ half.numbers
    ranks_out = (ranks @ half.numbers)[:, None] - ranks_in
    count_out = half.numbers.sum(0) - count_in
    before, count = weighted.sum(-1)[..., None], held.sum(-1)[..., None]
    squares = (weighted * ranks[:, None]).sum(-1)[..., None]
    inside = _deviations(ranks_in, count_in, before, count, squares)
    every = (ranks**2).sum(-1)[:, None, None]
    outside = _deviations(
        ranks_out, count_out, -before, images - count, every - squares
    )
    sums = [ranks_in, before - ranks_in, before + ranks_out, -ranks_out]
    counts = [count_in, count - count_in, count + count_out, images - count_out]
    sums, counts, deviations = (
        np.stack(parts, 2)
        for parts in (sums, counts, [inside, -inside, outside, -outside])
    )
    fit = np.minimum(counts, images - counts) >= LEAST
    score = auroc(sums, np.where(fit, counts, 1), images)
    score = score - GENERAL * np.maximum(counts / images - 0.5, 0)
    return score, np.where(fit & np.isfinite(deviations), deviations, -np.inf)


def _deviations(
    ranks: np.ndarray,
    count: np.ndarray,
    all_ranks: np.ndarray,
    images: np.ndarray,
    squares: np.ndarray,
) -> np.ndarray:
    """Returns how many standard deviations some images' ranks are above chance.

    Args:
        ranks: Their sum.
        count: How many they are.
        all_ranks: The sum of the ranks of the images that they are of.
        images: How many these are.
        squares: The sum of the squares of these ranks.

    Returns:
        NaN or infinite where they are none or all of the images.
    """
    with np.errstate(all="ignore"):
        mean = all_ranks / images
        spread = squares / images - mean**2
        return (ranks - count * mean) / np.sqrt(
            count * (images - count) / (images - 1) * spread
        )
