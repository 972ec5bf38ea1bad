"""Training against PyTorch, NumPy in float64, and closed forms."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nstvis import devices, layers, models
from nstvis.training import evaluation
from nstvis.training.step import Trainer, trainable, zero_logits

CLASSES = 5
STEPS = 4
RATE, MOMENTUM, DECAY, SMOOTHING, EMA = 0.05, 0.9, 0.01, 0.1, 0.2


def filled(build):
    """A network with kernels from NumPy, as Flax's own take seconds to compile."""
    graph, state = nnx.split(nnx.eval_shape(build))
    rng = np.random.default_rng(0)

    def draw(x):
        return jnp.asarray(rng.normal(0, 0.2 if x.ndim > 1 else 0, x.shape), x.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))


def chain():
    def build():
        rngs = nnx.Rngs(0)
        parts = {
            "conv1": layers.conv(3, 6, 3, stride=2, rngs=rngs),
            "pool1": layers.pool("max", 2, 2),
            "conv2": layers.conv(6, 8, 3, rngs=rngs),
            "fc3": layers.GridLinear(8, 2, 10, rngs=rngs),
            "fc4": nnx.Linear(10, 12, rngs=rngs),
            "fc5": nnx.Linear(12, CLASSES, rngs=rngs),
        }
        return layers.Chain(parts, None)

    return filled(build)


def trainer(network, dtype=jnp.float32, seed=0):
    decay = optax.add_decayed_weights(
        DECAY, lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    )
    return Trainer(
        trainable(network, 0.0, dtype),
        optax.chain(decay, optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)),
        smoothing=SMOOTHING,
        ema=EMA,
        seed=seed,
    )


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (16, 12, 12, 3), np.uint8),
        "label": rng.integers(0, CLASSES, 16).astype(np.int32),
    }


def stirred(state):
    """Moves all that is zero or one at first away from there."""
    rng = np.random.default_rng(0)

    def noise(x):
        return (0.2 * rng.normal(size=x.shape)).astype(np.float32)

    return state._replace(
        params=jax.tree.map(lambda x: x + noise(x), state.params),
        statistics=jax.tree.map(lambda x: abs(noise(x)), state.statistics),
    )


# A step takes a second to compile: most tests read the same few steps.
@pytest.fixture(scope="module")
def ours():
    return trainer(chain())


@pytest.fixture(scope="module")
def step(ours):
    return jax.jit(ours.step)


@pytest.fixture(scope="module")
def history(ours, step):
    """The states before and after some steps, and the metrics of those."""
    states, rows = [stirred(ours.start())], []
    for i in range(STEPS):
        state, row = step(states[-1], batch(i))
        states.append(state)
        rows.append(jax.device_get(row))
    return states, rows


def assert_trees_close(found, expected, atol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# Steps.


def torch_twin(torch):
    nn = torch.nn
    parts = {
        "conv1": nn.Conv2d(3, 6, 3, stride=2, padding=1),
        "conv1_norm": nn.BatchNorm2d(6),
        "conv1_relu": nn.ReLU(),
        "pool1": nn.MaxPool2d(2, 2),
        "conv2": nn.Conv2d(6, 8, 3, padding=1),
        "conv2_norm": nn.BatchNorm2d(8),
        "conv2_relu": nn.ReLU(),
        "cells": nn.AdaptiveAvgPool2d(2),
        "flat": nn.Flatten(),
        "fc3": nn.Linear(32, 10),
        "fc3_relu": nn.ReLU(),
        "fc4": nn.Linear(10, 12),
        "fc4_relu": nn.ReLU(),
        "fc5": nn.Linear(12, CLASSES),
    }
    return nn.Sequential(collections.OrderedDict(parts)).double()


def named_by_torch(state):
    """Parameters and statistics of a state by the twin's names, in its layout."""
    params, statistics = map(nnx.to_pure_dict, (state.params, state.statistics))
    found = {}
    for name in ("conv1", "conv2"):
        conv, norm = params[name]["conv"], params[name]["norm"]
        found[f"{name}.weight"] = conv["kernel"].transpose(3, 2, 0, 1)
        found[f"{name}.bias"] = conv["bias"]
        found[f"{name}_norm.weight"] = norm["scale"]
        found[f"{name}_norm.bias"] = norm["bias"]
        found[f"{name}_norm.running_mean"] = statistics[name]["norm"]["mean"]
        found[f"{name}_norm.running_var"] = statistics[name]["norm"]["var"]
    for name in ("fc3", "fc4", "fc5"):
        dense = params[name].get("linear", params[name])
        found[f"{name}.weight"] = dense["kernel"].T
        found[f"{name}.bias"] = dense["bias"]
    return {name: np.array(x, np.float64) for name, x in found.items()}


@pytest.mark.slow
def test_steps_are_pytorchs(history):
    torch = pytest.importorskip("torch")
    states, rows = history
    twin, start = torch_twin(torch), named_by_torch(states[0])
    twin.load_state_dict({name: torch.tensor(x) for name, x in start.items()})
    kernels = [p for p in twin.parameters() if p.ndim > 1]
    others = [p for p in twin.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": DECAY}, {"params": others}],
        lr=RATE,
        momentum=MOMENTUM,
        nesterov=True,
    )
    objective = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for i, row in enumerate(rows):
        one = batch(i)
        images = (one["image"] - layers.IMAGENET_MEAN) / layers.IMAGENET_STD
        images = torch.from_numpy(images.astype(np.float64).transpose(0, 3, 1, 2))
        labels = torch.from_numpy(one["label"]).long()
        optimizer.zero_grad()
        logits = twin(images)
        loss = objective(logits, labels)
        loss.backward()
        norm = sum((p.grad**2).sum() for p in twin.parameters()) ** 0.5
        right = (logits.argmax(1) == labels).double().mean()
        expected = {"loss": loss, "gradient_norm": norm, "accuracy": right}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value.item(), rel=1e-5), (i, name)
        optimizer.step()
    found, expected = named_by_torch(states[-1]), twin.state_dict()
    for name, batch_variances in (("conv1", 16 * 6 * 6), ("conv2", 16 * 3 * 3)):
        # PyTorch puts unbiased variances, n / (n - 1) of ours, into the running one;
        # what is left of its first value is the same.
        name = f"{name}_norm.running_var"
        rest = 0.9**STEPS * start[name]
        n = batch_variances
        found[name] = rest + (found[name] - rest) * n / (n - 1)
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], 1e-5, 1e-6, err_msg=name)


def test_zero_logits_make_all_classes_equally_likely(step):
    network = chain()
    zero_logits(network)
    _, row = step(trainer(network).start(), batch(0))
    assert row["loss"] == pytest.approx(math.log(CLASSES), rel=1e-6)


@pytest.mark.slow
def test_a_batch_divided_over_devices_is_still_one_batch(ours, history):
    mesh = devices.mesh()
    assert mesh.size == 4
    states, rows = history
    everywhere = jax.NamedSharding(mesh, jax.P())
    start = jax.device_put(states[0], everywhere)
    divided = devices.divided(batch(0), mesh)
    assert divided["image"].addressable_shards[0].data.shape[0] == 4
    state, row = jax.jit(ours.step)(start, divided)
    assert_trees_close(state, states[1], 1e-5)
    assert_trees_close(jax.device_get(row), rows[0], 1e-5)


@pytest.mark.slow
def test_in_bfloat16_layers_compute_and_what_is_kept_is_float32(history):
    network = trainable(chain(), 0.0, jnp.bfloat16)
    network.eval()
    shapes = jax.eval_shape(network, jnp.zeros((1, 12, 12, 3)))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype(jnp.bfloat16)}
    half = trainer(chain(), jnp.bfloat16)
    states, rows = history
    state, row = jax.jit(half.step)(states[0], batch(0))
    kept = jax.tree.leaves(state._replace(step=None))
    assert {x.dtype for x in kept} == {np.dtype("float32")}
    assert row["loss"] == pytest.approx(rows[0]["loss"], rel=0.01)
    assert row["loss"] != rows[0]["loss"]


# What is kept.


def test_the_average_has_a_short_memory_at_first(history):
    states, _ = history

    def kept(state):
        return [np.array(x, np.float64) for x in jax.tree.leaves(state.average)]

    def now(state):
        leaves = jax.tree.leaves((state.params, state.statistics))
        return [np.array(x, np.float64) for x in leaves]

    expected = kept(states[0])
    for i, state in enumerate(states[1:]):
        decay = min(EMA, (1 + i) / (10 + i))  # which is EMA from the third step on
        pairs = zip(expected, now(state), strict=True)
        expected = [decay * old + (1 - decay) * new for old, new in pairs]
        for found, value in zip(kept(state), expected, strict=True):
            np.testing.assert_allclose(found, value, 1e-5, 1e-6)


@pytest.mark.slow
def test_folded_it_computes_what_it_computes_in_evaluation(ours):
    state = stirred(ours.start())
    state = state._replace(average=(state.params, state.statistics))
    network = trainable(chain(), 0.5, jnp.float32)
    nnx.update(network, *state.average)
    network.eval()
    images = batch(0)["image"].astype(np.float32)
    expected = nnx.jit(lambda network: network(images))(network)
    forward, plain = models.functional(chain())
    params = ours.average(state)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain)
    found = jax.jit(forward)(params, images)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        most = np.abs(expected[name]).max()
        np.testing.assert_allclose(x, expected[name], 0, 1e-5 * most, err_msg=name)


def test_what_is_kept_is_the_average(ours, history):
    state = history[0][-1]
    other = state._replace(params=None, statistics=None)
    assert_trees_close(ours.average(other), ours.average(state), 0)
    kernel = nnx.to_pure_dict(state.average[0])["fc5"]["linear"]["kernel"]
    np.testing.assert_array_equal(ours.average(state)["fc5"]["kernel"], kernel)


# Dropout.


@pytest.mark.slow
def test_what_hidden_dense_layers_put_out_is_dropped_and_nothing_else():
    network = trainable(chain(), 0.5, jnp.float32)
    network.fc3.bias = nnx.Param(jnp.full(10, 5.0))  # so that few are zero anyway
    for layer, shape in ((network.fc4.linear, (10, 12)), (network.fc5.linear, (12, 5))):
        layer.kernel = nnx.Param(jnp.eye(*shape))
        layer.bias = nnx.Param(jnp.ones(shape[1]))  # which is never dropped
    images = batch(0)["image"].astype(np.float32)
    forward = nnx.jit(lambda network: network(images))
    network.train()
    once, again = (jax.device_get(forward(network)) for _ in range(2))
    np.testing.assert_array_equal(once["fc3"], again["fc3"])
    for before, after in (("fc3", "fc4_pre"), ("fc4", "fc5")):
        width = min(once[before].shape[1], once[after].shape[1])
        x, y = once[before][:, :width], once[after][:, :width] - 1
        assert 0.3 < (y[x > 0] == 0).mean() < 0.7
        np.testing.assert_allclose(y[y > 0], 2 * x[y > 0], rtol=1e-5)
    network.eval()
    found = forward(network)
    np.testing.assert_allclose(found["fc4"][:, :10], found["fc3"] + 1, rtol=1e-6)


class Coins(nnx.Module):
    """Heads or tails: its logits tell which of them were dropped, and nothing else."""

    def __init__(self):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.bias = nnx.Param(jnp.zeros((1, 64)))

    def __call__(self, images):
        values = jnp.broadcast_to(jnp.linspace(1, 2, 64), (len(images), 64))
        return {"coins": self.dropout(values) + 0 * self.bias[...]}


@pytest.mark.slow
def test_what_is_dropped_depends_on_seed_and_step_alone():
    coins = [trainer(Coins(), seed=seed) for seed in (0, 1)]
    steps = [jax.jit(some.step) for some in coins]

    def losses(seed, first, batches):
        state, found = coins[seed].start()._replace(step=np.int32(first)), []
        for i in batches:
            one = batch(i) | {"label": np.zeros(16, np.int32)}
            state, row = steps[seed](state, one)
            found.append(float(row["loss"]))
        return found

    run = losses(0, 0, [1, 2, 3, 4])
    assert losses(0, 2, [5, 6]) == run[2:]
    assert len({*run, *losses(1, 0, [1, 2, 3, 4])}) == 8


# Dead units.


class Lamps(nnx.Module):
    """Units that are the brightest pixels' colours, and two that are always the same."""

    def __init__(self):
        self.bias = nnx.Param(jnp.array([[3.0, 0.0]]))

    def __call__(self, images):
        lamp = images - 128
        dense = jnp.broadcast_to(self.bias[...], (len(images), 2))
        return {
            "lamp_pre": lamp,
            "lamp": jax.nn.relu(lamp),
            "pool": jnp.zeros((len(images), 2, 2, 9)),  # has no ReLU
            "dense_pre": dense,
            "dense": jax.nn.relu(dense),
            "logits": jnp.zeros((len(images), CLASSES)),
        }


def test_a_unit_is_dead_if_no_image_activates_it_anywhere():
    lamps = trainer(Lamps())
    images = np.zeros((16, 12, 12, 3), np.uint8)
    images[7, 4, 2, 0] = 255  # one spot of one image
    images[..., 1] = 128  # which is not above zero
    _, row = jax.jit(lamps.step)(lamps.start(), batch(0) | {"image": images})
    # Green, blue, and the second of the dense units, of all five.
    assert row["dead"] == pytest.approx(3 / 5)


def test_dead_units_of_a_chain_are_those_of_its_hidden_layers(step, history):
    state = history[0][-1]
    params = nnx.to_pure_dict(state.params)
    params["conv1"]["norm"]["bias"] = jnp.array([-99.0] + [2.0] * 5)
    params["conv2"]["norm"]["bias"] = jnp.array([-99.0] * 3 + [2.0] * 5)
    params["fc3"]["bias"] = jnp.array([-1e6] * 4 + [1e6] * 6)
    params["fc4"]["linear"]["kernel"] = jnp.zeros((10, 12))
    params["fc4"]["linear"]["bias"] = jnp.array([0.0] * 2 + [1.0] * 10)
    changed = jax.tree.map(jnp.copy, state.params)
    nnx.replace_by_pure_dict(changed, params)
    _, row = step(state._replace(params=changed), batch(0))
    assert row["dead"] == pytest.approx((1 + 3 + 4 + 2) / (6 + 8 + 10 + 12))


# Other networks.


@pytest.mark.slow
def test_batch_norm_that_a_network_has_of_its_own_is_trained_and_kept():
    def build():
        rngs = nnx.Rngs(0)
        conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        parts = {
            "conv1": nnx.Sequential(conv, norm),
            "conv2": nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs),
            "fc3": layers.GridLinear(4, 1, CLASSES, rngs=rngs),
        }
        return layers.Chain(parts, None)

    def network():
        chain = filled(build)
        norm = chain.conv1.layers[1]
        norm.scale[...], norm.var[...] = jnp.ones(4), jnp.ones(4)
        return chain

    forward, before = models.functional(network())
    twin = trainer(network())
    state, _ = jax.jit(twin.step)(twin.start(), batch(0))
    params = twin.average(state)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, before)
    images = batch(0)["image"].astype(np.float32)
    maps = forward(params, images)
    assert np.isfinite(maps["fc3"]).all()
    x = forward(before, images)["conv1_pre"]  # as its statistics are 0 and 1
    # Flax's momentum is 0.99, and the average's decay 1/10 at first.
    expected = 0.9 * 0.01 * x.mean((0, 1, 2))
    mean = params["conv1"]["layers"][1]["mean"]
    np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-6)


# A network that is no chain.


class Branched(nnx.Module):
    """Two ways from the images to the logits, whose name is the first of the alphabet."""

    def __init__(self):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
        self.out = nnx.Linear(7, CLASSES, rngs=nnx.Rngs(1))

    def __call__(self, images):
        x = images / 255
        y = jax.nn.relu(self.conv(x))
        both = jnp.concatenate([x.mean((1, 2)), y.mean((1, 2))], -1)
        return {"conv": y, "answer": self.out(both)}


@pytest.mark.slow
def test_a_network_of_another_kind_learns_as_it_is():
    forward, before = models.functional(filled(Branched))
    one, rate = batch(0), 0.5
    images = one["image"].astype(np.float32)

    def loss(params):
        logits = forward(params, images)["answer"]
        own = jnp.take_along_axis(logits, one["label"][:, None], 1)[:, 0]
        return (jax.nn.logsumexp(logits, -1) - own).mean()

    network = trainable(filled(Branched), 0.5, jnp.bfloat16)
    mine = Trainer(network, optax.sgd(rate), smoothing=0, ema=0, seed=0)
    state, row = jax.jit(mine.step)(mine.start(), one)
    value, gradient = jax.jit(jax.value_and_grad(loss))(before)
    assert row["loss"] == pytest.approx(float(value), rel=1e-6)
    after = jax.tree.map(lambda x, dx: x - rate * dx, before, gradient)
    assert_trees_close(mine.average(state), after, 1e-6)


def test_logits_that_are_no_numbers_are_wrong():
    def forward(params, images):
        return {"logits": jnp.full((len(images), 7), jnp.nan)}

    batch = {"image": np.zeros((4, 2, 2, 3), "uint8"), "label": np.array([0, 1, 2, -1])}
    counts = evaluation.correct(forward, {}, batch)
    assert [int(counts[name]) for name in ("images", "top1", "top5")] == [3, 0, 0]
