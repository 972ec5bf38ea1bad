"""Training against PyTorch, NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nstvis import devices, layers, training

CLASSES = 5


def chain(seed=0):
    rngs = nnx.Rngs(seed)
    return layers.Chain(
        {
            "conv1": layers.conv(3, 6, 3, stride=2, rngs=rngs),
            "pool1": layers.pool("max", 2, 2),
            "conv2": layers.conv(6, 8, 3, rngs=rngs),
            "fc3": layers.GridLinear(8, 2, 10, rngs=rngs),
            "fc4": nnx.Linear(10, 12, rngs=rngs),
            "fc5": nnx.Linear(12, CLASSES, rngs=rngs),
        },
        None,
    )


def trainer(dropout=0.0, dtype=jnp.float32, seed=0, ema=0.9, optimizer=None):
    return training.Trainer(
        training.trainable(chain(), dropout, dtype),
        optimizer or optax.sgd(0.05, momentum=0.9, nesterov=True),
        smoothing=0.1,
        ema=ema,
        seed=seed,
    )


def batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 12, 12, 3), np.uint8),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
    }


def trained(trainer, steps=4, state=None):
    step, state = jax.jit(trainer.step), state or trainer.start()
    rows = []
    for i in range(steps):
        state, row = step(state, batch(i))
        rows.append(jax.device_get(row))
    return state, rows


def torch_twin(torch, start):
    nn = torch.nn
    twin = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(6, 8, 3, 1, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ReLU(),
        nn.Linear(10, 12),
        nn.ReLU(),
        nn.Linear(12, CLASSES),
    )
    params = nnx.to_pure_dict(start)
    with torch.no_grad():
        for place, name in {0: "conv1", 4: "conv2"}.items():
            kernel = np.array(params[name]["conv"]["kernel"]).transpose(3, 2, 0, 1)
            twin[place].weight.copy_(torch.from_numpy(kernel.copy()))
            twin[place].bias.copy_(
                torch.from_numpy(np.array(params[name]["conv"]["bias"]))
            )
        for place, name in {9: "fc3", 11: "fc4", 13: "fc5"}.items():
            dense = params[name].get("linear", params[name])
            twin[place].weight.copy_(
                torch.from_numpy(np.array(dense["kernel"]).T.copy())
            )
            twin[place].bias.copy_(torch.from_numpy(np.array(dense["bias"])))
    return twin


def test_steps_are_pytorch_s():
    torch = pytest.importorskip("torch")
    ours = trainer()
    twin = torch_twin(torch, ours.start().params)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    objective = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    state, rows = trained(ours)
    for i, row in enumerate(rows):
        one = batch(i)
        images = (
            one["image"].astype(np.float32) - layers.IMAGENET_MEAN
        ) / layers.IMAGENET_STD
        optimizer.zero_grad()
        logits = twin(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)))
        loss = objective(logits, torch.from_numpy(one["label"]).long())
        loss.backward()
        norm = sum((p.grad**2).sum() for p in twin.parameters()) ** 0.5
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(norm.item(), rel=1e-3)
        right = (logits.argmax(1).numpy() == one["label"]).mean()
        assert row["accuracy"] == pytest.approx(right)
        optimizer.step()
    params, statistics = map(nnx.to_pure_dict, (state.params, state.statistics))
    for place, name in {0: "conv1", 4: "conv2"}.items():
        kernel = twin[place].weight.detach().numpy().transpose(2, 3, 1, 0)
        np.testing.assert_allclose(params[name]["conv"]["kernel"], kernel, atol=2e-4)
        norm = twin[place + 1]
        scale = norm.weight.detach().numpy()
        np.testing.assert_allclose(params[name]["norm"]["scale"], scale, atol=2e-4)
        found = statistics[name]["norm"]
        np.testing.assert_allclose(found["mean"], norm.running_mean, atol=2e-4)
        # PyTorch's running variance is unbiased: n / (n - 1) of ours, but for the 1 that
        # both begin with.
        n = 16 * (6 * 6 if name == "conv1" else 3 * 3)
        began = 0.9**4
        unbiased = (found["var"] - began) * n / (n - 1) + began
        np.testing.assert_allclose(unbiased, norm.running_var, rtol=1e-3, atol=2e-4)
    dense = twin[13].weight.detach().numpy().T
    np.testing.assert_allclose(params["fc5"]["linear"]["kernel"], dense, atol=2e-4)


def test_folded_the_network_says_what_it_says_in_evaluation():
    ours = trainer(ema=0.0)
    state, _ = trained(ours)
    network = ours._network(*state.average)
    network.eval()
    images = batch(9)["image"].astype(np.float32)
    expected = list(network(images).values())[-1]
    plain = nnx.split(chain())[0]
    folded = ours.average(state)
    logits = list(nnx.merge(plain, nnx.State(folded))(images).values())[-1]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_the_average_forgets_the_start_first_and_then_slowly():
    ours, ema = trainer(ema=0.2), 0.2
    step, state = jax.jit(ours.step), ours.start()
    expected = [np.array(x, np.float64) for x in jax.tree.leaves(state.params)]
    for i in range(5):
        state, _ = step(state, batch(i))
        decay = min(ema, (1 + i) / (10 + i))
        now = jax.tree.leaves(state.params)
        expected = [
            decay * a + (1 - decay) * np.array(x) for a, x in zip(expected, now)
        ]
        found = jax.tree.leaves(state.average[0])
        for a, x in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, x, atol=1e-6)


def test_all_classes_are_equally_likely_at_first():
    _, rows = trained(trainer(), steps=1)
    assert rows[0]["loss"] == pytest.approx(np.log(CLASSES), rel=1e-5)


def test_what_hidden_dense_layers_put_out_is_dropped_and_nothing_else():
    network = training.trainable(chain(), 0.5, jnp.float32)
    dropped = [
        n for n in network.names if isinstance(getattr(network, n), training.Dropped)
    ]
    assert dropped == ["fc4", "fc5"]
    network.fc4.linear.kernel[...] = jnp.eye(10, 12)
    network.fc4.linear.bias[...] = jnp.zeros(12)
    images = batch()["image"].astype(np.float32)
    network.train()
    found = network(images)
    before, after = np.array(found["fc3"]), np.array(found["fc4"])[:, :10]
    alive = before > 0
    share = (after[alive] == 0).mean()
    assert 0.3 < share < 0.7
    kept = alive & (after > 0)
    np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-5)
    network.eval()
    found = network(images)
    np.testing.assert_allclose(found["fc4"][:, :10], found["fc3"], rtol=1e-5)


def test_what_is_dropped_depends_on_seed_and_step_alone():
    start, _ = trained(trainer(), steps=2)  # whose logits are not zero
    steps = [jax.jit(trainer(dropout=0.5, seed=seed).step) for seed in (0, 1)]

    def loss(seed, step):
        state = start._replace(step=jnp.array(step, jnp.int32))
        return float(steps[seed](state, batch())[1]["loss"])

    once = loss(0, 7)
    assert loss(0, 7) == once
    assert len({once, loss(0, 8), loss(1, 7)}) == 3


def test_dead_units_are_those_that_no_image_activates():
    ours = trainer()
    state = ours.start()
    params = nnx.to_pure_dict(state.params)
    # Of 6 + 8 + 10 + 12 hidden units.
    params["conv1"]["norm"]["bias"] = jnp.full(6, 9.0)
    params["conv2"]["norm"]["bias"] = jnp.array([-99.0] * 3 + [9.0] * 5)
    params["fc3"]["bias"] = jnp.array([-1e6] * 4 + [1e6] * 6)
    params["fc4"]["linear"]["kernel"] = jnp.zeros((10, 12))
    params["fc4"]["linear"]["bias"] = jnp.array([0.0] * 2 + [1.0] * 10)
    changed = jax.tree.map(lambda x: x, state.params)
    nnx.replace_by_pure_dict(changed, params)
    _, row = jax.jit(ours.step)(state._replace(params=changed), batch())
    assert row["dead"] == pytest.approx((3 + 4 + 2) / 36)


def test_batch_norm_sees_the_batch_of_all_devices():
    ours = trainer()
    alone, rows = trained(ours, steps=1)
    mesh = devices.mesh()
    assert mesh.size == 4
    everywhere = jax.NamedSharding(mesh, jax.P())
    state = jax.device_put(ours.start(), everywhere)
    together, row = jax.jit(ours.step)(state, devices.divided(batch(0), mesh))
    assert row["loss"] == pytest.approx(float(rows[0]["loss"]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_in_bfloat16_what_is_kept_is_float32():
    state, rows = trained(trainer(dtype=jnp.bfloat16), steps=3)
    kinds = {x.dtype for x in jax.tree.leaves(state._replace(step=jnp.zeros(())))}
    assert kinds == {np.dtype("float32")}
    _, exact = trained(trainer(), steps=3)
    losses = [[float(row["loss"]) for row in some] for some in (rows, exact)]
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert losses[0] != losses[1]


class Branched(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
        self.out = nnx.Linear(4, CLASSES, rngs=nnx.Rngs(1))

    def __call__(self, images):
        x = jax.nn.relu(self.conv(images / 255)) + 1
        return {"conv": x, "out": self.out(x.mean((1, 2)))}


def test_a_network_of_another_kind_learns_as_it_is():
    network = training.trainable(Branched(), 0.5, jnp.float32)
    assert isinstance(network, Branched)
    ours = training.Trainer(network, optax.sgd(0.5), smoothing=0, ema=0, seed=0)
    step, state, one = jax.jit(ours.step), ours.start(), batch()
    losses = []
    for _ in range(20):
        state, row = step(state, one)
        losses.append(float(row["loss"]))
    assert losses[-1] < losses[0]
    params = ours.average(state)
    assert jax.tree.map(jnp.shape, params) == {
        "conv": {"kernel": (3, 3, 3, 4), "bias": (4,)},
        "out": {"kernel": (4, CLASSES), "bias": (CLASSES,)},
    }
