"""A two-alternative test of pictures that explain units.

Given an explanation of a unit, such as its nine top-activating patches, which of two
held-out patches activates the unit more? Borowski et al. 2021 (arXiv:2010.12606) asked
people. As in Zimmermann, Klindt & Brendel 2024 ("Measuring Per-Unit Interpretability at
Scale Without Humans"), a machine answers here, the observer: it chooses the patch that is
more like the explanation in the features of another network, so that it does not compute
the unit again.

The weak patch of a pair is what activates another unit most, so that a patch is not told
by what all units of a layer want, such as contrast; random networks' units want little
else. Features are centred on those of random patches, or some patches would be more like
anything.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import devices, models
from nstvis.models import Forward, Params
from nstvis.runs.progress import track
from nstvis.units.atlas_writer import Panel
from nstvis.units.measurements import Finding, Layer
from nstvis.units.patches import Images, crop, fitted
from nstvis.units.receptive_fields import Fields, receptive_fields
from nstvis.units.responses import Responses

# What every finding has; all other fields are accuracies of the pictures of that name.
CONTROLS = ("random", "others")
FIELDS = ("pairs", "patches", *CONTROLS)

_SIDE = 64  # pixels of a picture's side as the observer sees it
_BATCH = 128
_RESAMPLES = 2000
# The networks that are shipped, and their layers whose features are compared.
_OBSERVERS = {"vgg_small": "conv4_2", "alexnet_small": "conv5"}

# From pictures, uint8 [height, width, 3] of any size, to features, float32 [n, features].
Observer = Callable[[Iterable[np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What units are tested on.

    Attributes:
        responses: To a sample of the images.
        layers: What the scan measured, with the patches that explain the units in `top`.
        fields: The layers' receptive fields.
        pictures: Where the images are.
    """

    responses: Responses
    layers: Mapping[str, Layer]
    fields: Mapping[str, Fields]
    pictures: Images


class Row(NamedTuple):
    """The accuracy of one kind of picture for one layer.

    Attributes:
        kind: Such as patches.
        layer: Its name.
        accuracy: Mean over units; 0.5 is chance.
        low: The lower end of its 95 % interval, by bootstrap over units.
        high: The upper end.
        units: How many were tested.
    """

    kind: str
    layer: str
    accuracy: float
    low: float
    high: float
    units: int


def observer(model: str) -> Observer:
    """Returns the observer of a network's units: another one, of those shipped.

    Args:
        model: The name of the network whose units are tested.
    """
    name = next(other for other in _OBSERVERS if other != model)
    layer = _OBSERVERS[name]
    forward, params = models.load(name, last=layer)

    def features(params: Params, pictures: Array) -> Array:
        return forward(params, pictures.astype(jnp.float32))[layer].mean((1, 2))

    compute = jax.jit(features, compiler_options=devices.compile_options())

    def observe(pictures: Iterable[np.ndarray]) -> np.ndarray:
        found, left = [], iter(pictures)
        while some := list(itertools.islice(left, _BATCH)):
            batch = np.zeros((_BATCH, _SIDE, _SIDE, 3), np.uint8)
            batch[: len(some)] = [fitted(picture, _SIDE) for picture in some]
            found.append(np.asarray(compute(params, batch))[: len(some)])
        return np.concatenate(found) if found else np.empty((0, 0), np.float32)

    return observe


def find(
    units: Mapping[str, Sequence[int]],
    kinds: Mapping[str, Panel],
    held_out: HeldOut,
    observe: Observer,
    *,
    pairs: int,
    seed: int,
) -> dict[str, Finding]:
    """Tests the explanations of units: their top-activating patches, and other pictures.

    Args:
        units: Layer to numbers of the units to test.
        kinds: The other pictures, by name; not all units need to have any.
        held_out: What the units are tested on.
        observe: Computes the features that are compared.
        pairs: Held-out pairs of a unit, at most.
        seed: Of the weak half of each pair, and of the controls.

    Returns:
        Layer to `pairs`, int32 `[units]`, how many each was tested on, and to accuracies,
        float64 `[units]`, NaN where there are no pairs or no picture: of `patches`, of
        each of the `kinds`, and of two controls: `random`, as many patches of random
        images at the places of the top-activating ones, whose accuracy is above 0.5 where
        places alone tell something (grey beyond a border, for one), and `others`, the
        top-activating patches of another unit of the layer.
    """
    found, total = {}, sum(map(len, units.values()))
    names = ((name, unit) for name in units for unit in units[name])
    progress = iter(track(names, total, "two-alternative test"))
    for name, numbers in units.items():
        rng = np.random.default_rng([seed, list(held_out.layers).index(name)])
        activations = np.asarray(held_out.responses.score[name])
        shown = _features(
            (
                (unit, _shown(held_out, kinds, name, unit, activations, pairs, rng))
                for _, unit in itertools.islice(progress, len(numbers))
            ),
            observe,
        )
        found[name] = _finding(shown, kinds, len(held_out.layers[name].mean), rng)
    for _ in progress:  # which ends it
        pass
    return found


def _features(
    shown: Iterable[tuple[int, Mapping[str, Sequence[np.ndarray]]]], observe: Observer
) -> dict[int, dict[str, np.ndarray]]:
    """Computes the features of pictures; by unit and kind, `[pictures, features]`."""
    owners: list[tuple[int, str]] = []

    def pictures() -> Iterator[np.ndarray]:
        for unit, kinds in shown:
            for kind, some in kinds.items():
                owners.extend([(unit, kind)] * len(some))
                yield from some

    features, found, first = observe(pictures()), {}, 0
    for (unit, kind), group in itertools.groupby(owners):
        count = len(list(group))
        found.setdefault(unit, {})[kind] = features[first : first + count]
        first += count
    return found


class Pairs(NamedTuple):
    """Pairs of images of which the first activates a unit more.

    Attributes:
        strong: Numbers of the images that activate it most, `[pairs]`.
        weak: Numbers of images of the less activating half.
        others: The units which these activate most of that half.
    """

    strong: np.ndarray
    weak: np.ndarray
    others: np.ndarray


def draw_pairs(
    scores: np.ndarray,
    unit: int,
    candidates: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> Pairs:
    """Draws pairs of images, each with another unit of the layer.

    Args:
        scores: The layer's activations, `[images, units]`.
        unit: Which unit is tested.
        candidates: Numbers of the images that may be drawn.
        count: Of pairs, at most.
        rng: Source of randomness.
    """
    order = candidates[np.argsort(-scores[candidates, unit], kind="stable")]
    less = order[len(order) - len(order) // 2 :]
    # A unit that is the same for all of these has no place where it is most active.
    differing = scores[less].max(0, initial=-np.inf) > scores[less].min(
        0, initial=np.inf
    )
    others = rng.permutation(np.flatnonzero(differing))
    others = others[others != unit][: min(count, len(less))]
    strong = order[: len(others)]
    weak = less[[scores[less, other].argmax() for other in others]]
    differ = scores[strong, unit] > scores[weak, unit]
    return Pairs(strong[differ], weak[differ], others[differ])


def _shown(
    held_out: HeldOut,
    kinds: Mapping[str, Panel],
    name: str,
    unit: int,
    activations: np.ndarray,
    pairs: int,
    rng: np.random.Generator,
) -> dict[str, list[np.ndarray]]:
    """Returns all pictures of a unit: both halves of its pairs, and its explanations."""
    responses, fields = held_out.responses, held_out.fields[name]
    top, index = held_out.layers[name].top, responses.index
    candidates = np.flatnonzero(~np.isin(index, top.image[unit]))
    drawn = draw_pairs(activations, unit, candidates, pairs, rng)
    if not len(drawn.strong):
        return {}

    def cut(image: Any, place: Sequence[int] | np.ndarray) -> np.ndarray:
        return _seen(held_out.pictures[image], fields, unit, place)

    def peak(row: int, unit: int) -> np.ndarray:
        place = divmod(int(responses.position[name][row, unit]), fields.columns)
        return cut(index[row], place)

    own = top.image[unit] >= 0
    rest = np.setdiff1d(candidates, np.concatenate(drawn[:2]))
    random = index[rng.choice(rest if len(rest) else candidates, own.sum())]
    places = top.position[unit][own]
    return {
        "strong": [peak(row, unit) for row in drawn.strong],
        "weak": [peak(row, other) for row, other in zip(drawn.weak, drawn.others)],
        "patches": [*map(cut, top.image[unit][own], places)],
        "random": [*map(cut, random, places)],
        **{
            kind: list(panel[name][unit])
            for kind, panel in kinds.items()
            if unit in panel.get(name, {})
        },
    }


def _finding(
    shown: Mapping[int, Mapping[str, np.ndarray]],
    kinds: Iterable[str],
    units: int,
    rng: np.random.Generator,
) -> Finding:
    """Returns the accuracies of a layer, from the features of what is shown."""
    names = ("patches", *kinds, *CONTROLS)
    pairs = np.zeros(units, np.int32)
    finding = {name: np.full(units, np.nan) for name in names}
    if shown:
        random = np.concatenate([features["random"] for features in shown.values()])
        usual, order = random.mean(0), rng.permutation(list(shown))
        for unit, other in zip(order, np.roll(order, 1)):
            features = {kind: x - usual for kind, x in shown[unit].items()}
            pairs[unit] = len(features["strong"])
            if other != unit:
                features["others"] = shown[other]["patches"] - usual
            for name in features.keys() & finding.keys():
                finding[name][unit] = accuracy(
                    features[name], features["strong"], features["weak"]
                )
    return {"pairs": pairs, **finding}


def accuracy(explanation: np.ndarray, strong: np.ndarray, weak: np.ndarray) -> float:
    """Returns the share of pairs whose strong half is more like an explanation.

    Args:
        explanation: Features of its pictures, `[pictures, features]`.
        strong: Those of the patches that activate the unit more, `[pairs, features]`.
        weak: Those of the others.

    Returns:
        The share of pairs in which the first has the higher mean cosine similarity to the
        pictures; equal ones count half.
    """
    like = _unit_length(explanation).mean(0)
    margin = _unit_length(strong) @ like - _unit_length(weak) @ like
    return float((margin > 0).mean() + (margin == 0).mean() / 2)


def _unit_length(features: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(length, length, 1)


def rows(findings: Mapping[str, Finding], seed: int) -> list[Row]:
    """Returns the table: each kind of picture for each layer, with its interval."""
    table = []
    for layer, finding in findings.items():
        for kind, accuracies in finding.items():
            known = accuracies[np.isfinite(accuracies)]
            if kind != "pairs" and len(known):
                interval = bootstrap(known, seed)
                table.append(Row(kind, layer, known.mean(), *interval, len(known)))
    return table


def bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of a mean, from resampled values (percentiles)."""
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def at_peaks(
    forward: Forward, params: Params, pictures: Mapping[str, Mapping[int, np.ndarray]]
) -> Panel:
    """Cuts out of optimised pictures what the units see where they are most active.

    Args:
        forward: The network.
        params: Its parameters.
        pictures: Layer to unit to its picture, uint8 `[size, size, 3]`; of one size.
    """
    size = next(len(x) for units in pictures.values() for x in units.values())
    fields = receptive_fields(forward, params, size, size)

    @jax.jit
    def peaks(params: Params, pictures: Array) -> dict[str, Array]:
        seen = forward(params, pictures.astype(jnp.float32))
        flat = {name: x.reshape(len(x), -1, x.shape[-1]) for name, x in seen.items()}
        return {name: x.argmax(1) for name, x in flat.items()}

    panel: dict[str, dict[int, np.ndarray]] = {}
    for layer, units in pictures.items():
        panel[layer] = {}
        for unit, picture in units.items():
            position = int(peaks(params, picture[None])[layer][0, unit])
            place = divmod(position, fields[layer].columns)
            patch = _seen(picture, fields[layer], unit, place)
            panel[layer][unit] = fitted(patch, max(patch.shape[:2]))[None]
    return panel


def _seen(
    image: np.ndarray, fields: Fields, unit: int, place: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Cuts out what a unit sees of an image at a place of its map."""
    row, column = map(int, place)
    box = fields.boxes(np.array(unit), np.array([row, column])).tolist()
    return crop(image, box, *fields.support(unit, row, column))
