"""Connections: contributions sum to pre-activations, and ablations are the network's."""

import dataclasses
import functools
import itertools
import tracemalloc
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstvis import images, layers, models
from nstvis.units import affine, connections, kernels
from nstvis.units.affine import Program
from nstvis.units.measurements import Layer, RankedPatches
from nstvis.units.scan import Target

SIZE, IMAGES = 14, 12


def conv(params, x, stride=1):
    padding = params["w"].shape[0] // 2
    return (
        layers.convolve(x, params["w"], stride, padding) + params["b"][None, None, None]
    )


def drawn(seed, side, inputs, outputs):
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1 / side / inputs**0.5, (side, side, inputs, outputs))
    return {
        "w": jnp.asarray(weights, jnp.float32),
        "b": jnp.asarray(rng.uniform(0.1, 0.5, outputs), jnp.float32),
    }


def chain(params, images):
    """Two convolutions with pooling between, which has no name, and logits."""
    x = jax.nn.relu(conv(params["one"], images / 100 - 1, 2))
    y = jax.nn.relu(conv(params["two"], layers.max_pool(x, 3, 2)))
    pooled = layers.average_pool(y, 3, 3)
    z = pooled.reshape(len(y), -1) @ params["three"]["w"] + params["three"]["b"][None]
    return {"one": x, "two": y, "three": z}


RUN = jax.jit(chain)
CHAIN = {
    "one": drawn(0, 3, 3, 8),
    "two": drawn(1, 3, 8, 7),
    "three": {"w": drawn(2, 1, 7, 4)["w"][0, 0], "b": drawn(2, 1, 7, 4)["b"]},
}


def residual(params, images):
    x = jnp.maximum(conv(params["one"], images / 100 - 1, 2), 0)
    inside = jax.nn.relu(conv(params["in"], x))
    pre = conv(params["out"], inside) + x
    return {"one": x, "two_pre": pre, "two": jax.nn.relu(pre)}


RESIDUAL = {"one": drawn(0, 3, 3, 8), "in": drawn(1, 3, 8, 5), "out": drawn(2, 3, 5, 8)}


def pixels(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)


def layer_of(maps, k):
    """The patches of a layer's map, one of an image, the highest first."""
    x = np.asarray(maps).reshape(len(maps), -1, maps.shape[-1])
    columns = maps.shape[2] if maps.ndim == 4 else 1
    order = np.argsort(-x.max(1), 0, kind="stable")[:k].T
    score = np.take_along_axis(x.max(1).T, order, 1)
    place = np.take_along_axis(x.argmax(1).T, order, 1)
    top = RankedPatches(
        score=score,
        image=order.astype(np.int32),
        position=np.stack(np.divmod(place, columns), -1).astype(np.int32),
        box=np.zeros((*order.shape, 4), np.int32),
    )
    fields = dict.fromkeys([x.name for x in dataclasses.fields(Layer)], None)
    given: Any = fields | {"top": top, "mean": x.mean((0, 1))}
    return Layer(**given)


def found(forward, params, k=7, batch=5):
    """The layers' records, their activations, and what is found of them."""
    shown = pixels()
    run = RUN if forward is chain else jax.jit(forward)
    maps = jax.device_get(run(params, shown.astype(np.float32)))
    records = {name: layer_of(maps[name], k) for name in maps if name[-4:] != "_pre"}
    target = Target(forward, params, [], types.SimpleNamespace(size=SIZE))
    return records, maps, connections.find(target, records, shown, batch)


@pytest.fixture(scope="module")
def of_chain():
    return found(chain, CHAIN)


@pytest.fixture(scope="module")
def of_residual():
    return found(residual, RESIDUAL)


def by_hand(x, kernel, position):
    """What each channel contributes to each unit of a convolution, [channels, units]."""
    kernel, side = np.asarray(kernel, float), len(kernel)
    padded = np.pad(x.astype(float), [(side // 2, side // 2)] * 2 + [(0, 0)])
    row, column = position
    window = padded[row : row + side, column : column + side]
    return np.einsum("ijc,ijcu->cu", window, kernel)


def pooled(x):
    """3 x 3, stride 2, without a library."""
    ends = (len(x) - 3) // 2 + 1, (x.shape[1] - 3) // 2 + 1
    windows = [
        [x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(ends[1])]
        for i in range(ends[0])
    ]
    return np.array(windows)


def check(finding, unit, expected, channel_names, total, bias):
    """Compares a unit's inputs with all contributions, [channels]."""
    np.testing.assert_allclose(finding["bias"][unit], bias, atol=1e-4)
    np.testing.assert_allclose(finding["total"][unit], total, atol=1e-4)
    np.testing.assert_allclose(expected.sum() + bias, total, atol=1e-4)
    n = connections.COUNT
    for part, sign in ((slice(0, n), 1), (slice(n, 2 * n), -1)):
        order = np.argsort(-sign * expected, kind="stable")[:n]
        order = [i for i in order if sign * expected[i] > 0]
        names = list(zip(finding["layer"][unit, part], finding["unit"][unit, part]))
        wanted = [channel_names[i] for i in order]
        assert names == wanted + [("", -1)] * (n - len(wanted))
        got = finding["contribution"][unit, part]
        np.testing.assert_allclose(got[: len(order)], expected[order], atol=1e-4)
        assert np.isnan(got[len(order) :]).all()


def test_contributions_are_weights_times_activations_and_sum_to_the_pre_activation(
    of_chain,
):
    records, maps, (inputs, _, _) = of_chain
    names = [("one", i) for i in range(8)]
    for unit in range(7):
        top = records["two"].top
        ranks = [i for i in (0, 2, 4, 6) if top.score[unit, i] > 0]
        parts = [
            by_hand(
                pooled(maps["one"][top.image[unit, i]]),
                CHAIN["two"]["w"],
                top.position[unit, i],
            )[:, unit]
            for i in ranks
        ]
        bias = float(CHAIN["two"]["b"][unit])
        total = top.score[unit, ranks].mean()
        check(inputs["two"], unit, np.mean(parts, 0), names, total, bias)


def test_dense_layers_have_the_channels_of_the_map_before(of_chain):
    records, maps, (inputs, _, _) = of_chain
    names = [("two", i) for i in range(7)]
    weights = np.asarray(CHAIN["three"]["w"], float)
    for unit in range(4):
        top = records["three"].top
        activations = maps["two"][top.image[unit, ::2]].astype(float)
        parts = activations[:, :3, :3].mean((1, 2)) * weights[:, unit]
        total = top.score[unit, ::2].mean()
        check(
            *(inputs["three"], unit, parts.mean(0), names),
            *(total, float(CHAIN["three"]["b"][unit])),
        )


def test_a_sum_of_chains_has_the_inputs_of_all(of_residual):
    records, maps, (inputs, _, _) = of_residual
    names = [("inside two", i) for i in range(5)] + [("one", i) for i in range(8)]
    inside = jax.nn.relu(conv(RESIDUAL["in"], maps["one"]))
    for unit in range(8):
        top = records["two"].top
        ranks = [i for i in (0, 2, 4, 6) if top.score[unit, i] > 0]
        parts = []
        for image, position in zip(top.image[unit, ranks], top.position[unit, ranks]):
            hidden = by_hand(np.asarray(inside)[image], RESIDUAL["out"]["w"], position)
            shortcut = maps["one"][image][*position] * (np.arange(8) == unit)
            parts.append([*hidden[:, unit], *shortcut])
        bias = float(RESIDUAL["out"]["b"][unit])
        total = top.score[unit, ranks].mean()
        check(inputs["two"], unit, np.mean(parts, 0), names, total, bias)
    assert set(inputs) == {"two"}


def without(params, layer, channels):
    """The parameters of a chain in which some channels are 0 for every image."""
    kept = ~np.isin(np.arange(len(params[layer]["b"])), channels)
    return params | {
        layer: {name: np.asarray(x) * kept for name, x in params[layer].items()}
    }


def lost(params, changed, record, name, unit):
    """The share of a unit's activation that is lost, on the patches of even rank."""
    top, total = record.top, np.zeros(2)
    shown = pixels().astype(np.float32)
    maps = [np.asarray(RUN(weights, shown)[name]) for weights in (params, changed)]
    for i in range(1, top.image.shape[1], 2):
        if top.score[unit, i] > 0:
            place = top.position[unit, i] if maps[0].ndim == 4 else ()
            total += [x[top.image[unit, i], *place, unit] for x in maps]
    return 1 - total[1] / total[0]


def test_ablations_are_those_of_the_whole_network(of_chain):
    records, _, (inputs, _, _) = of_chain
    for name, before, unit in (("two", "one", 2), ("three", "two", 1)):
        finding = inputs[name]
        channels = finding["unit"][unit]
        for slot in np.flatnonzero(channels >= 0)[::3]:
            changed = without(CHAIN, before, [channels[slot]])
            expected = lost(CHAIN, changed, records[name], name, unit)
            np.testing.assert_allclose(
                finding["ablation"][unit, slot], expected, atol=1e-4
            )
        changed = without(CHAIN, before, [x for x in channels[:5] if x >= 0])
        expected = lost(CHAIN, changed, records[name], name, unit)
        np.testing.assert_allclose(finding["strongest"][unit], expected, atol=1e-4)
        assert np.isnan(finding["ablation"][unit, channels < 0]).all()


def test_random_inputs_are_a_mean_over_draws_of_all(of_chain):
    _, _, (inputs, _, _) = of_chain
    for finding in inputs.values():
        assert (finding["random"] < finding["strongest"]).all()
    assert "without 5 random ones" in connections.summary(inputs)


def test_outputs_are_the_inputs_reversed(of_chain):
    _, _, (inputs, outputs, _) = of_chain
    assert set(outputs) == {"one", "two"}
    links = {
        (name, int(unit), str(source), int(number)): value
        for name, x in inputs.items()
        for unit, row in enumerate(zip(x["layer"], x["unit"], x["contribution"]))
        for source, number, value in zip(*row)
        if source
    }
    seen = 0
    for source, finding in outputs.items():
        for number, row in enumerate(
            zip(finding["layer"], finding["unit"], finding["contribution"])
        ):
            mine = [x for x in zip(*row) if x[0]]
            for name, unit, value in mine:
                assert links[name, int(unit), source, number] == value
            every = [v for k, v in links.items() if k[2:] == (source, number)]
            for sign in (1, -1):
                wanted = sorted(
                    [v for v in every if sign * v > 0], key=lambda v: -abs(v)
                )
                assert [v for *_, v in mine if sign * v > 0] == wanted[:5]
            seen += len(mine)
    assert seen > 40


def test_kernels_are_the_weights_of_the_chosen_inputs(of_chain, of_residual):
    _, _, (inputs, _, panel) = of_chain
    assert {name: len(x) for name, x in panel.items()} == {
        "one": 8,
        "two": 7,
        "three": 4,
    }
    assert panel["one"][0].shape == (1, 24, 24, 3)  # in colour
    unit = 3
    channels = inputs["two"]["unit"][unit]
    weights = np.moveaxis(np.asarray(CHAIN["two"]["w"])[..., channels, unit], -1, 0)
    weights = weights / np.abs(weights[channels >= 0]).max()
    for picture, x, channel in zip(panel["two"][unit], weights, channels):
        centres = picture[4::8, 4::8].astype(float)
        if channel < 0:
            assert (picture == images.GREY).all()
            continue
        red = np.where(x > 0, 255, 255 * (1 + x))
        np.testing.assert_allclose(centres[..., 0], red, atol=1)
        np.testing.assert_allclose(centres[..., 1], 255 * (1 - np.abs(x)), atol=1)
        assert (np.repeat(np.repeat(picture[4::8, 4::8], 8, 0), 8, 1) == picture).all()
    # A shortcut is one weight, its own channel's.
    _, _, (inputs, _, panel) = of_residual
    (slot,) = np.flatnonzero(inputs["two"]["layer"][unit] == "one")
    assert (panel["two"][unit][slot] == panel["two"][unit][slot][0, 0]).all()


def test_a_kernel_is_where_its_array_has_weights():
    weights = np.zeros((6, 5, 2))
    weights[1:4, 2:5, 0] = np.arange(1, 10).reshape(3, 3)
    weights[2, 3, 1] = 7
    first, none, second, dense = kernels.cropped(
        [weights, np.float64([5])], [0, -1, 1, 2]
    )
    np.testing.assert_array_equal(first, weights[1:4, 2:5, 0])
    np.testing.assert_array_equal(second, [[0, 0, 0], [0, 7, 0], [0, 0, 0]])
    assert none is None and dense == [[5]]
    assert first.base is second.base is None  # nothing else is kept
    assert kernels.square(np.zeros((4, 4, 2))).shape == (1, 1, 2)
    assert kernels.square(np.ones((2, 3, 1))).shape == (3, 3, 1)


def test_inputs_are_chosen_without_copies_of_all_contributions():
    units, channels = 3000, 1000
    sums = np.random.default_rng(0).normal(size=(units, channels + 3))
    sums = sums.astype(np.float32)
    sums[:, -1] = 1
    mean = sums[:, :channels].copy()
    one: Any = types.SimpleNamespace(inputs=[types.SimpleNamespace(layer="x")])
    one.inputs[0].shape = (channels,)
    tracemalloc.start()
    try:
        choice = connections._chosen(one, sums)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 0.1 * sums.nbytes and peak < 0.5 * sums.nbytes
    ordered = np.argsort(-mean, 1)[:, : connections.COUNT]
    np.testing.assert_array_equal(choice.channels[:, : connections.COUNT], ordered)


def test_a_unit_that_is_never_active_has_no_inputs():
    dead = CHAIN | {"two": CHAIN["two"] | {"b": CHAIN["two"]["b"].at[4].set(-1e3)}}
    _, _, (inputs, _, _) = found(chain, dead, k=3)
    finding = {name: x[4] for name, x in inputs["two"].items()}
    assert set(finding["layer"]) == {""} and set(finding["unit"]) == {-1}
    for name in ("contribution", "ablation", "bias", "total", "strongest", "random"):
        assert np.isnan(finding[name]).all()
    assert not np.isnan(np.delete(inputs["two"]["total"], 4)).any()
    assert (inputs["three"]["unit"] != 4).all()  # it contributes nothing


def program(forward, params=None):
    return Program(forward, params or {}, jax.ShapeDtypeStruct((2, 8, 8, 3), "float32"))


def inputs_of(forward, layer, names):
    return [x.layer for x in program(forward).sum(layer, names).inputs]


def test_pooling_and_normalisation_leave_the_layer_that_an_input_is_of():
    def forward(params, images):
        x = jax.nn.relu(images - 1)
        kernel = jnp.ones((3, 3, 3, 3))
        pooled = layers.max_pool(layers.local_response_norm(x), 2, 2)
        y = jax.nn.relu(layers.convolve(pooled, kernel, 1, 1))
        both = jnp.concatenate([pooled, layers.average_pool(y, 1, 1)], -1)
        z = jnp.clip(layers.convolve(both, jnp.ones((1, 1, 6, 2)), 1, 0), 0)
        return {"x": x, "pooled": pooled, "y": y, "both": both, "z": z}

    assert inputs_of(forward, "y", ["x", "y", "z"]) == ["x"]
    assert inputs_of(forward, "y", ["x", "pooled", "y"]) == ["pooled"]
    assert inputs_of(forward, "x", ["x"]) == [""]
    assert inputs_of(forward, "z", ["x", "both", "z"]) == ["both"]


def test_branches_that_are_concatenated_are_inputs_side_by_side():
    def forward(params, images):
        x, y = jax.nn.relu(images), jax.nn.relu(-images)
        z = jnp.concatenate([layers.max_pool(x, 2, 2), layers.max_pool(y, 2, 2)], -1)
        return {"x": x, "y": y, "z": jax.nn.relu(z @ jnp.ones((6, 4)))}

    assert inputs_of(forward, "z", ["x", "y", "z"]) == ["x", "y"]


def test_branches_without_names_are_numbered():
    def forward(params, images):
        x = jax.nn.relu(images - 1)
        parts = [
            jax.nn.relu(x @ jnp.full((3, n), 0.1)) @ jnp.ones((n, 2)) for n in (4, 5)
        ]
        return {"x": x, "y": parts[0] - parts[1] + x[..., :2]}

    one = program(forward).sum("y", ["x", "y"])
    shapes = {x.layer: x.shape[-1] for x in one.inputs}
    assert shapes == {"inside y 1": 4, "inside y 2": 5, "x": 3} and not one.relu


def softmax(x):
    return {"x": x, "y": jax.nn.softmax(x @ jnp.ones((3, 3)))}


def unnamed(x):
    hidden = jax.nn.gelu(x @ jnp.ones((3, 4)))
    return {"x": x, "y": jax.nn.relu(hidden @ jnp.ones((4, 3)))}


def pooled_sum(x):
    other = jax.nn.relu(-x)
    both = layers.max_pool(jnp.concatenate([x, other], -1), 2, 2)
    return {"x": x, "other": other, "y": both @ jnp.ones((6, 2))}


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        (softmax, "y is neither an affine function of other layers nor a ReLU of one"),
        (unnamed, "y is a function of what is no other layer's activation"),
        (pooled_sum, "y is a function of what is no other layer's activation"),
    ],
)
def test_other_layers_are_refused_in_a_line(rest, line):
    def forward(params, images):
        return rest(jax.nn.relu(images))

    with pytest.raises(ValueError, match=line) as error:
        program(forward).sum("y", ["x", "y"])
    assert "\n" not in str(error.value)


def test_a_layer_that_is_refused_has_no_finding_and_the_log_says_why(caplog):
    def forward(params, images):
        maps = chain(params, images)
        return maps | {"three": jax.nn.softmax(maps["three"])}

    _, _, (inputs, outputs, panel) = found(forward, CHAIN, k=2)
    assert set(inputs) == {"two"} and set(outputs) == {"one"}
    assert set(panel) == {"one", "two"}
    assert "no connections: three is neither" in caplog.text


def test_what_is_no_sum_after_all_is_found_out(monkeypatch, caplog):
    def forward(params, images):
        x = jax.nn.relu(images.mean((1, 2)) / 100)
        return {"one": x, "two": jnp.exp(x) @ params["w"]}

    params = {"w": drawn(0, 1, 3, 4)["w"][0, 0]}
    records, _, (inputs, _, _) = found(forward, params, k=2)
    top = records["two"].top.score[:, 0]
    np.testing.assert_allclose(inputs["two"]["total"], top, rtol=1e-5)
    assert not inputs["two"]["bias"].any() and "miss" not in caplog.text
    monkeypatch.setattr(affine, "_LINEAR", {*affine._LINEAR, "exp"})
    assert found(forward, params, k=2)[2][:2] == ({}, {})
    assert "two has no connections: contributions miss" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last", "size"),
    [("alexnet", "conv3", 63), ("vgg_small", None, 32), ("resnet18", "layer2_1", 32)],
)
def test_contributions_and_bias_sum_to_the_pre_activations_of_the_networks(
    name, last, size
):
    forward, params = models.load(name, "random", last=last, classes=10)
    images = np.random.default_rng(0).uniform(0, 255, (1, size, size, 3))
    units = models.units(forward, params, size)
    names = [x for x in units if f"{x}_pre" in units] + list(units)[-1:]
    network = Program(forward, params, jax.ShapeDtypeStruct(images.shape, "float32"))
    sums = {x: network.sum(x, names) for x in dict.fromkeys(names)}

    wanted = [[x.variable for x in one.inputs] for one in sums.values()]

    def shares(params, images):
        activations = forward(params, images)
        every = [*itertools.chain(*wanted)]
        arrays = network.function([network.images], every)(params, images)
        for (layer, one), variables in zip(sums.items(), wanted, strict=True):
            inputs, arrays = arrays[: len(variables)], arrays[len(variables) :]
            rest = network.function(variables, [one.pre_activation])
            bias, back = jax.vjp(
                functools.partial(rest, params), *map(jnp.zeros_like, inputs)
            )
            pre = activations.get(f"{layer}_pre", activations[layer])
            place = jnp.zeros(pre.size).at[pre.argmax()].set(1).reshape(pre.shape)
            parts = sum((x * w).sum() for x, w in zip(inputs, back([place])))
            yield layer, (parts + (bias[0] * place).sum()) / pre.max()

    compute = jax.jit(lambda *given: dict(shares(*given)))
    with jax.default_matmul_precision("highest"):  # which is compiled in less time
        found = compute(params, images.astype(np.float32))
    assert len(found) == len(sums) > 2
    np.testing.assert_allclose(list(found.values()), 1, atol=1e-4)
    counts = {len(x.inputs) for x in sums.values()}
    assert counts == ({1, 2} if name == "resnet18" else {1})
