"""The scan finds what brute force finds: exactly, however the images come."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nstvis import devices, models
from nstvis.units import histograms, maxima

SHAPES = {"conv": (3, 4, 5), "dense": (4,)}
UNITS = 9
SIZES = {"pool": 6, "k": 4, "classes": 3, "per_class": 2}


def lookup(params, images):
    """A network that knows its activations by heart: a picture's number is its red."""
    number = images[:, 0, 0, 0].astype(int)
    return {name: params[name][number] for name in SHAPES}


def activations(count, seed, spread=3):
    """Small whole numbers, so that many are equal; both signs."""
    rng = np.random.default_rng(seed)
    shapes = {name: (count, *shape) for name, shape in SHAPES.items()}
    return {
        name: rng.integers(-spread, spread + 1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@functools.cache
def compiled(devices, patches, reach):
    mesh = jax.make_mesh(
        (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )
    layers = {"conv": reach, "dense": (0, 0)}
    scan = maxima.Scan(lookup, layers, patches, mesh)
    return scan, mesh, scan.start(UNITS, **SIZES)


def scanned(
    known, labels, order, batch, devices=1, patches=1, reach=(0, 0), saved=False
):
    scan, mesh, _ = compiled(devices, patches, reach)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    state = scan.start(UNITS, **SIZES)
    known = dict(known)  # other parameters, if a test has changed their values
    for first in range(0, len(order), batch):
        index = np.full(batch, -1, np.int32)
        part = order[first : first + batch]
        index[: len(part)] = part
        numbered = np.broadcast_to(
            np.maximum(index, 0)[:, None, None, None], (batch, 1, 1, 3)
        )
        made = {
            "image": numbered.astype(np.float32),
            "label": np.where(index >= 0, labels[index], -1).astype(np.int32),
            "index": index,
        }
        state = scan.step(state, known, jax.device_put(made, sharding))
        if saved:  # as if each batch had been another process's
            state = scan.restored(scan.saved(state), scan.start(UNITS, **SIZES))
    return scan.gathered(state)


def brute_force(known, labels, patches=1, reach=(0, 0)):
    """For each unit, all its peaks in order: (-activation, image, position)."""
    found = []
    for name, shape in SHAPES.items():
        maps = known[name].reshape(len(labels), *(shape[:-1] or (1, 1)), shape[-1])
        for unit in range(shape[-1]):
            peaks = []
            for image, plane in enumerate(maps[..., unit].astype(float)):
                plane = plane.copy()
                for rank in range(patches):
                    position = int(plane.argmax())
                    row, column = divmod(position, plane.shape[1])
                    if np.isinf(plane[row, column]):
                        break
                    peaks.append((-plane[row, column], image, position, rank))
                    far = reach if name == "conv" else (0, 0)
                    rows = slice(max(0, row - far[0]), row + far[0] + 1)
                    columns = slice(max(0, column - far[1]), column + far[1] + 1)
                    plane[rows, columns] = -np.inf
            found.append(sorted(peaks))
    return found


def expected(peaks, count):
    rows = [peak[:3] for peak in peaks[:count]]
    rows += [(np.inf, maxima.SENTINEL, maxima.SENTINEL)] * (count - len(rows))
    score, image, position = map(np.array, zip(*rows, strict=True))
    return -score, image, position


def check(state, known, labels, **how):
    for unit, peaks in enumerate(brute_force(known, labels, **how)):
        one = [peak for peak in peaks if peak[3] == 0]
        least = sorted((-score, image, place) for score, image, place, _ in one)
        least = [(score, image, place) for score, image, place in least]
        np.testing.assert_equal(
            [part[0, :, unit] for part in state.top], expected(peaks, SIZES["pool"])
        )
        np.testing.assert_equal(
            [part[0, :, unit] for part in state.least], expected(least, SIZES["k"])
        )
        scores = np.array([-peak[0] for peak in sorted(one, key=lambda p: p[1])])
        for label in range(SIZES["classes"]):
            own = [peak for peak in one if labels[peak[1]] == label]
            np.testing.assert_equal(
                [part[label, :, unit] for part in state.by_class],
                expected(own, SIZES["per_class"]),
            )
            assert state.class_images[label] == len(own)
            total = sum(-peak[0] for peak in own)
            assert state.class_sum[label, unit] == pytest.approx(total, abs=1e-4)
        assert state.images == len(scores)
        assert state.mean[unit] == pytest.approx(scores.mean(), abs=1e-5)
        variance = state.deviation[unit] / len(scores)
        assert variance == pytest.approx(scores.var(), abs=1e-4)
        assert state.inactive[unit] == (scores <= 0).sum()
        # The border between two bins belongs to the one farther from 0.
        away = scores * (1 + 1e-9)
        counts, _ = np.histogram(away, histograms.edges())
        np.testing.assert_array_equal(state.histogram[:, unit], counts)


# Batch and devices; peaks of an image and their reach. Each pair is compiled once.
LAYOUTS = [((8, 1), (1, (0, 0))), ((7, 1), (2, (0, 0))), ((8, 4), (3, (1, 1)))]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    layout=st.sampled_from(LAYOUTS),
)
def test_a_scan_equals_brute_force(count, seed, layout):
    rng = np.random.default_rng(seed)
    known, labels = activations(count, seed), rng.integers(-1, 3, count)
    layout, (patches, reach) = layout
    how = {"patches": patches, "reach": reach}
    # The table of activations has one size, so as to be compiled once.
    padded = {name: np.resize(x, (60, *x.shape[1:])) for name, x in known.items()}
    state = scanned(padded, labels, rng.permutation(count), *layout, **how)
    check(state, known, labels, **how)


@pytest.mark.slow
def test_only_means_are_rounded_by_how_the_images_come():
    known, labels = activations(50, 0), np.arange(50) % 4 - 1
    orders = [np.arange(50), np.random.default_rng(1).permutation(50)]
    states = [
        scanned(known, labels, order, *layout)
        for order, layout in itertools.product(
            orders, [(8, 1), (1, 1), (64, 1), (8, 4)]
        )
    ]
    states += [scanned(known, labels, orders[1], 8, n, saved=True) for n in (1, 4)]
    for state in states[1:]:
        for name, first, other in zip(state._fields, states[0], state, strict=True):
            close = dict.fromkeys(("mean", "deviation", "class_sum"), 1e-4).get(name, 0)
            for a, b in zip(
                jax.tree.leaves(first), jax.tree.leaves(other), strict=True
            ):
                np.testing.assert_allclose(a, b, atol=close, rtol=close)


@pytest.mark.slow
def test_parts_merge_in_any_order_and_grouping():
    known, labels = activations(45, 3), np.arange(45) % 3
    parts = [
        scanned(known, labels, np.arange(first, first + 15), 8) for first in (0, 15, 30)
    ]
    a, b, c = parts
    for merged in (
        maxima.merge(maxima.merge(a, b), c),
        maxima.merge(a, maxima.merge(c, b)),
    ):
        check(merged, known, labels)


@pytest.mark.slow
def test_nothing_changes_what_is_merged_with_nothing():
    known, labels = activations(20, 4), np.arange(20) % 3
    state = scanned(known, labels, np.arange(20), 8)
    nothing = jax.device_get(maxima.start(UNITS, **SIZES))
    for merged in (maxima.merge(state, nothing), maxima.merge(nothing, state)):
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(merged), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_images_of_another_part_are_counted_on():
    known, labels = activations(30, 5), np.arange(30) % 3
    first = scanned(known, labels, np.arange(20), 8)
    rest = {name: x[20:] for name, x in known.items()}
    second = scanned(rest, labels[20:], np.arange(10), 8)
    check(maxima.merge(first, maxima.shifted(second, 20)), known, labels)


@pytest.mark.slow
def test_the_first_image_that_is_not_finite_is_told():
    known, labels = activations(30, 6), np.zeros(30, int)
    known["conv"][17, 1, 2, 3] = np.nan
    known["dense"][21, 0] = np.inf
    assert scanned(known, labels, np.arange(30), 8).broken == 17
    known["conv"][17] = 0
    assert scanned(known, labels, np.arange(30), 8, devices=4).broken == 21
    known["dense"][21] = 0
    assert scanned(known, labels, np.arange(30), 8).broken == maxima.SENTINEL


def test_a_thousand_classes_take_little_of_a_device():
    """AlexNet's units and ImageNet's classes."""
    scan, *_ = compiled(1, 1, (0, 0))
    state = scan.start(10344, pool=18, k=9, classes=1000, per_class=1)
    assert sum(part.nbytes for part in jax.tree.leaves(state)) < 60e6


def test_the_bits_of_a_float_find_its_bin():
    edges = np.array(histograms.edges())
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(np.log(1e-5), np.log(60000), 5000)).astype(np.float32)
    values *= rng.choice([-1, 1], values.shape)
    values = np.concatenate([values, [0, -0.0, 1e9, -1e9]]).astype(np.float32)
    inside = np.clip(values, edges[0], edges[-1])
    bins = np.asarray(histograms.bins(values))
    assert ((edges[bins] <= inside) & (inside <= edges[bins + 1])).all()


@pytest.mark.slow
def test_of_a_stream_the_top_images_are_those_of_the_network_s_activations():
    forward, params = models.load("alexnet_small", last="conv3")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (96, 6, 6, 3), np.uint8).repeat(6, 1).repeat(6, 2)
    found = jax.jit(forward)(params, images.astype(np.float32))
    layers = {f"conv{i}": (0, 0) for i in range(1, 4)}
    mesh = compiled(4, 1, (0, 0))[1]
    scan = maxima.Scan(forward, layers, 1, mesh)
    units = sum(found[name].shape[-1] for name in layers)
    state = scan.start(units, pool=9, k=9, classes=0, per_class=1)

    def stream():
        for first in range(0, 96, 32):
            index = np.arange(first, first + 32, dtype=np.int32)
            yield {"image": images[index], "label": index * 0 - 1, "index": index}

    for batch in stream():
        state = scan.step(state, params, devices.divided(batch, mesh))
    state = scan.gathered(state)
    first = 0
    for name in layers:
        maps = np.asarray(found[name]).astype(np.float64)
        highest = maps.max((1, 2))
        for unit in range(maps.shape[-1]):
            order = np.argsort(-highest[:, unit], kind="stable")[:9]
            np.testing.assert_array_equal(state.top.image[0, :, first + unit], order)
            place = maps[order, :, :, unit].reshape(9, -1).argmax(1)
            np.testing.assert_array_equal(state.top.position[0, :, first + unit], place)
        first += maps.shape[-1]
