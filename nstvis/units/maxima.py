"""The images that activate each unit most, found in one pass over a data set.

A compiled step computes every layer's activations for a batch, and each unit's maximum
and where it is; what is kept is a state of a few megabytes for each device. States merge
associatively, in any order, once at the end.

The order of patches is total: higher activation, then lower image, then lower position.
So the result is the same for any batch size, number of devices and order of images, as
long as the network's activations are. (XLA rounds dense layers differently for other
batch sizes; convolutions it does not, on a CPU.)

`--experiment=units` scans data sets. Of a stream, whose images cannot be fetched again,
there are the maxima:

    scan = maxima.Scan(forward, {"conv5": (0, 0)}, 1, devices.mesh())
    state = scan.start(256, pool=9, k=9, classes=0, per_class=0)
    for batch in stream:  # image uint8 [n, height, width, 3], label -1, index
        state = scan.step(state, params, devices.divided(batch, scan.mesh))
    best = scan.gathered(state).top
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from nstvis import devices
from nstvis.hoisting import hoisted
from nstvis.models import Forward, Params
from nstvis.units import histograms, ranking
from nstvis.units.class_maxima import ClassMaxima, Found
from nstvis.units.ranking import SENTINEL, Best, Numbers, Peaks, insert_batch


class State(NamedTuple):
    """What is known after some images, of the units of all layers in a row."""

    # int32 []: images seen.
    images: Numbers
    # [1, pool, units], [1, k, units] with activations negated, [classes, n, units], which
    # are on the host while it scans.
    top: Best
    least: Best
    by_class: Best
    # float32 [units]: mean, and the sum of squared deviations from it.
    mean: Numbers
    deviation: Numbers
    # int32 [units]: images with no activation above 0.
    inactive: Numbers
    # int32 [bins, units].
    histogram: Numbers
    # int32 [classes] and float32 [classes, units]: images of a class, their activation.
    class_images: Numbers
    class_sum: Numbers
    # int32 []: the first image with an activation that is no number.
    broken: Numbers


def start(units: int, *, pool: int, k: int, classes: int, per_class: int) -> State:
    """Returns the state before the first image.

    Args:
        units: Of all layers together.
        pool: Highest activations to keep; more than are shown, if some may be dropped.
        k: Lowest activations to keep.
        classes: Number of classes.
        per_class: Highest activations of each class to keep.
    """
    return State(
        images=jnp.zeros((), jnp.int32),
        top=ranking.empty(1, pool, units),
        least=ranking.empty(1, k, units),
        by_class=ranking.empty(classes, per_class, units),
        mean=jnp.zeros(units),
        deviation=jnp.zeros(units),
        inactive=jnp.zeros(units, jnp.int32),
        histogram=jnp.zeros((len(histograms.edges()) - 1, units), jnp.int32),
        class_images=jnp.zeros(classes, jnp.int32),
        class_sum=jnp.zeros((classes, units)),
        broken=jnp.array(SENTINEL, jnp.int32),
    )


def peaks(x: Array, count: int, reach: Sequence[int]) -> tuple[Array, Array]:
    """Finds each map's highest activations, the first of equal ones, and their places.

    Args:
        x: A layer's activations, `[batch, height, width, units]` or `[batch, units]`.
        count: How many of each map; each but the first is more than `reach` away from
            those before it.
        reach: Rows and columns.

    Returns:
        Activations and positions, each `[batch, count, units]`; -inf and 0 where a map
        has no further one.
    """
    if x.ndim not in (2, 4):
        raise ValueError(
            "activations should be [batch, height, width, units] or [batch, units], not"
            f" of shape {x.shape}: choose other layers"
        )
    x = x.reshape(len(x), *(x.shape[1:-1] or (1, 1)), x.shape[-1])
    width = x.shape[2]
    rows, columns = (lax.broadcasted_iota(jnp.int32, x.shape, i) for i in (1, 2))
    places, found = rows * width + columns, []
    for i in range(count):
        score = x.max((1, 2))
        first = jnp.where(x == score[:, None, None], places, SENTINEL).min((1, 2))
        position = jnp.where(first == SENTINEL, 0, first)
        found.append((score, position))
        if i + 1 < count:
            row, column = jnp.divmod(position[:, None, None], width)
            near = abs(rows - row) <= reach[0]
            near &= abs(columns - column) <= reach[1]
            x = jnp.where(near, -jnp.inf, x)
    scores, positions = zip(*found, strict=True)
    return jnp.stack(scores, 1), jnp.stack(positions, 1)


def step(
    forward: Forward,
    layers: Mapping[str, Sequence[int]],
    patches: int,
    state: State,
    params: Params,
    batch: Mapping[str, Array],
) -> tuple[State, Found]:
    """Takes a batch into account; to be compiled, and the state donated.

    Args:
        forward: The network.
        layers: Name to the reach of a peak, for `peaks`.
        patches: Peaks of an image that may be among the top.
        state: What is known.
        params: The network's parameters.
        batch: `image` [batch, height, width, 3], `label` [batch] (-1 if there is none),
            `index` [batch] in the data set (-1 where there is no image).

    Returns:
        What is known but for the classes, and what was found, if there are classes.
    """
    order = jnp.argsort(batch["index"])
    image, label, index = (batch[name][order] for name in ("image", "label", "index"))
    company = jnp.resize(image, _seen(image.shape))
    activations = forward(params, company.astype(jnp.float32))
    activations = {name: activations[name][: len(image)] for name in layers}
    found = [peaks(activations[name], patches, layers[name]) for name in layers]
    scores, positions = (jnp.concatenate(part, -1) for part in zip(*found, strict=True))
    found = Found(scores[:, 0], positions[:, 0], label, index)
    wanted = len(label) if len(state.class_images) else 0
    found = jax.tree.map(lambda x: x[:wanted], found)
    return update(state, scores, positions, label, index), found


def _seen(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what the network is shown of a batch.

    A single image may be convolved by another algorithm, so it gets company.
    """
    return max(2, shape[0]), *shape[1:]


def update(
    state: State, scores: Array, positions: Array, label: Array, index: Array
) -> State:
    """Takes peaks `[batch, patches, units]` of images in order into account.

    All but `by_class`, which stays as it is.
    """
    _, patches, units = scores.shape
    seen = (index >= 0)[:, None]
    labelled = seen & (label >= 0)[:, None]
    label = jnp.where(labelled[:, 0], label, 0)
    highest, place = jnp.where(seen, scores[:, 0], 0), positions[:, 0]
    every = Peaks(
        score=jnp.where(seen[..., None], scores, -jnp.inf).reshape(-1, units),
        position=positions.reshape(-1, units),
        image=jnp.repeat(index, patches),
    )
    lowest = Peaks(jnp.where(seen, -highest, -jnp.inf), place, index)
    return State(
        top=insert_batch(state.top, every),
        least=insert_batch(state.least, lowest),
        by_class=state.by_class,
        **_statistics(state, highest, seen),
        **_class_sums(state, highest, label, labelled),
        broken=jnp.minimum(
            state.broken,
            jnp.where(
                seen & ~jnp.isfinite(scores[:, 0]), index[:, None], SENTINEL
            ).min(),
        ),
    )


def _statistics(state: State, highest: Array, seen: Array) -> dict[str, Array]:
    """Counts a batch's activations `[batch, units]` into the statistics of units."""
    count = seen.sum()
    mean = highest.sum(0) / jnp.maximum(count, 1)
    deviation = (jnp.where(seen, highest - mean[None], 0) ** 2).sum(0)
    units = jnp.broadcast_to(jnp.arange(highest.shape[1])[None], highest.shape)
    bins = histograms.bins(highest), units
    return {
        "images": state.images + count,
        "inactive": state.inactive + (seen & (highest <= 0)).sum(0),
        "histogram": state.histogram.at[bins].add(jnp.where(seen, 1, 0)),
        **_pooled(
            state._asdict(), {"images": count, "mean": mean, "deviation": deviation}
        ),
    }


def _class_sums(
    state: State, highest: Array, label: Array, labelled: Array
) -> dict[str, Array]:
    """Counts a batch's activations `[batch, units]` into the sums of classes."""
    classes = jnp.arange(len(state.class_sum))[:, None]
    of_class = labelled.T & (label[None] == classes)
    sums = jnp.matmul(of_class.astype(jnp.float32), highest, precision="highest")
    return {
        "class_images": state.class_images + of_class.sum(1),
        "class_sum": state.class_sum + sums,
    }


def _pooled(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and squared deviations of two sets together (Chan et al. 1979)."""
    share = b["images"] / (a["images"] + b["images"] + (a["images"] + b["images"] == 0))
    shift = b["mean"] - a["mean"]
    spread = shift**2 * a["images"] * share
    return {
        "mean": a["mean"] + shift * share,
        "deviation": a["deviation"] + b["deviation"] + spread,
    }


def merge(a: State, b: State) -> State:
    """What is known after the images of both, which are different ones; in NumPy.

    Means are exact up to rounding in float32; all else is exact.
    """
    sums = ("images", "inactive", "histogram", "class_images", "class_sum")
    return State(
        **{name: getattr(a, name) + getattr(b, name) for name in sums},
        **{
            name: ranking.merge(getattr(a, name), getattr(b, name))
            for name in ("top", "least", "by_class")
        },
        **_pooled(a._asdict(), b._asdict()),
        broken=np.minimum(a.broken, b.broken),
    )


def shifted(state: State, offset: int) -> State:
    """The same of images whose indices are higher by `offset`; in NumPy."""

    def later(best: Best) -> Best:
        image = np.asarray(best.image)
        return best._replace(
            image=np.where(image == SENTINEL, SENTINEL, image + offset)
        )

    return state._replace(
        top=later(state.top), least=later(state.least), by_class=later(state.by_class)
    )


class Scan:
    """The step, compiled for all devices of all hosts, each of which has its state.

    Each class's best images are not in that: the scan itself has them, on every host.

    Args:
        forward: The network.
        layers: Name to the reach of a peak, for `peaks`.
        patches: Peaks of an image that may be among the top.
        mesh: All devices, on the axis `data`.
    """

    def __init__(
        self,
        forward: Forward,
        layers: Mapping[str, Sequence[int]],
        patches: int,
        mesh: jax.sharding.Mesh,
    ):
        self.mesh = mesh
        self._forward, self._layers, self._patches = forward, layers, patches
        self._programs: dict[tuple[int, ...], tuple[Callable, jax.stages.Wrapped]] = {}
        self._steps: dict[tuple, jax.stages.Compiled] = {}
        self._prepared: tuple[Params, tuple[int, ...], Any] | None = None
        self._classes = ClassMaxima(0, 0, 1)
        self._divided = NamedSharding(mesh, PartitionSpec("data"))

    def step(self, state: State, params: Params, batch: Mapping[str, Array]) -> State:
        """Takes a batch that is divided over all devices into account.

        The state is donated. What the network computes from its parameters alone is
        kept until others are given, or a batch of another shape.
        """
        shape = batch["image"].shape
        if shape not in self._programs:
            self._programs[shape] = self._traced(params, shape)
        prepare, traced = self._programs[shape]
        kept = self._prepared
        if not kept or kept[0] is not params or kept[1] != shape:
            self._prepared = kept = params, shape, prepare(params)
        shapes = shape, *(part.shape for part in kept[2])
        if shapes not in self._steps:
            self._steps[shapes] = traced.lower(state, kept[2], batch).compile()
            devices.give_memory_back()  # what the compiler left
        state, found = self._steps[shapes](state, kept[2], batch)
        self._classes.add(found)
        return state

    def _traced(
        self, params: Params, shape: tuple[int, ...]
    ) -> tuple[Callable, jax.stages.Wrapped]:
        """Returns what prepares the network for batches of a shape, and their step."""
        local = shape[0] // self.mesh.size, *shape[1:]
        images = jax.ShapeDtypeStruct(_seen(local), jnp.float32)
        prepare, network = hoisted(self._forward, params, images)
        per_device, everywhere = PartitionSpec("data"), PartitionSpec()

        def one_device(state: State, prepared: Any, batch: Mapping[str, Array]) -> Any:
            state, found = step(
                network,
                self._layers,
                self._patches,
                jax.tree.map(lambda x: x[0], state),
                prepared,
                batch,
            )
            return jax.tree.map(lambda x: x[None], state), found

        mapped = jax.shard_map(
            one_device,
            mesh=self.mesh,
            in_specs=(per_device, everywhere, per_device),
            out_specs=per_device,
            check_vma=False,
        )
        step_of_all = jax.jit(
            mapped,
            donate_argnums=0,
            out_shardings=self._divided,
            compiler_options=devices.compile_options(fusion_emitters=False),
        )
        replicated = NamedSharding(self.mesh, everywhere)
        return lambda x: jax.device_put(prepare(x), replicated), step_of_all

    def start(
        self, units: int, *, pool: int, k: int, classes: int, per_class: int
    ) -> State:
        """The state of all devices before the first image; see the function `start`."""
        self._classes = ClassMaxima(units, classes, per_class)

        one = start(units, pool=pool, k=k, classes=classes, per_class=per_class)
        one = one._replace(by_class=ranking.empty(0, per_class, units))

        def of_all_devices(x: Any) -> Array:
            shape, each = (self.mesh.size, *x.shape), np.asarray(x)[None]
            return jax.make_array_from_callback(
                shape, self._divided, lambda _: each.copy()
            )

        return jax.tree.map(of_all_devices, one)

    def saved(self, state: State) -> State:
        """Returns a state with each class's best images, for a checkpoint."""
        return state._replace(by_class=self._classes.on_devices(self._divided))

    def restored(self, state: State, like: State) -> State:
        """Goes on from what `saved` returned for a state like that one."""
        self._classes.restore(state.by_class)
        return state._replace(by_class=like.by_class)

    def gathered(self, state: State) -> State:
        """Ends the scan: merges the states of all devices; in NumPy, on every host."""
        found = gathered(state)._replace(by_class=self._classes.gathered())
        self._prepared, self._classes = None, ClassMaxima(0, 0, 1)
        return found


def gathered(state: State) -> State:
    """Merges the states of all devices of all hosts; in NumPy, on every host."""
    if jax.process_count() > 1:
        state = multihost_utils.process_allgather(state, tiled=True)
    state = jax.device_get(state)
    count = len(state.images)
    states = [jax.tree.map(operator.itemgetter(i), state) for i in range(count)]
    return functools.reduce(merge, states)
