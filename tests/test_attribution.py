"""Attribution against NumPy, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from nstvis import attribution, models

# Stride and padding of the convolutions; a pooling is 3 x 3 with stride 2.
LATER = {"conv2": (1, 2), "pool2": None} | dict.fromkeys(
    ["conv3", "conv4", "conv5"], (1, 1)
)
CHAINS = {
    "alexnet_small": {"conv1": (2, 3), "pool1": None} | LATER,
    "alexnet": {"conv1": (4, 2), "pool1": None} | LATER,
}
SIZES = {"alexnet_small": 37, "alexnet": 71}
LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


def random_network(model, **options):
    """A network of 8 channels, with biases, so that a third of the units are inactive."""
    forward, params = models.load(model, "random", **options)
    rng, inputs = np.random.default_rng(1), 3
    for name in sorted(params):  # conv before fc
        rows = inputs * 9 if name == "fc6" else inputs
        kernel = np.asarray(params[name]["kernel"])[..., :rows, :8]
        deviation = np.sqrt(2 / kernel[..., 0].size).astype(np.float32)
        bias = rng.normal(0, 0.2, kernel.shape[-1:]).astype(np.float32)
        params[name] = {"kernel": kernel / kernel.std() * deviation, "bias": bias}
        inputs = kernel.shape[-1]
    return forward, params


def attribute(network, layer, seed="activation"):
    """Returns `attribution.attribute`, compiled."""

    @jax.jit
    def compiled(params, images, units, positions):
        return attribution.attribute(
            network, params, layer, images, units, positions, seed
        )

    return compiled


class Deconvnet:
    """Zeiler & Fergus's deconvnet, layer by layer, in float64."""

    def __init__(self, model, params, image):
        self.model, self.params, self.below, self.maps = model, params, {}, {}
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.std = 255 * np.array(std)
        x = (image.astype(float) - 255 * np.array(mean)) / self.std
        for name, how in CHAINS[model].items():
            self.below[name] = x
            x = self.pooled(x) if how is None else self.convolved(x, name, *how)
            self.maps[name] = x

    def windows(self, x, size, stride):
        shape = [(n - size) // stride + 1 for n in x.shape[:2]]
        for i, j in np.ndindex(*shape):
            yield (
                (i, j),
                (
                    slice(i * stride, i * stride + size),
                    slice(j * stride, j * stride + size),
                ),
            )

    def convolved(self, x, name, stride, pad):
        kernel = self.params[name]["kernel"].astype(float)
        x = np.pad(x, [(pad, pad), (pad, pad), (0, 0)])
        found = {
            place: np.tensordot(x[window], kernel, 3)
            for place, window in self.windows(x, len(kernel), stride)
        }
        side = max(found)[0] + 1
        y = np.stack(list(found.values())).reshape(side, side, -1)
        return np.maximum(y + self.params[name]["bias"], 0)

    def pooled(self, x):
        found = [x[window].max((0, 1)) for _, window in self.windows(x, 3, 2)]
        side = round(len(found) ** 0.5)
        return np.stack(found).reshape(side, side, -1)

    def projected(self, layer, unit, row, column):
        chain = CHAINS[self.model]
        back = np.zeros_like(self.maps[layer])
        back[row, column, unit] = self.maps[layer][row, column, unit]
        names = list(chain)
        for name in reversed(names[: names.index(layer) + 1]):
            how, below = chain[name], self.below[name]
            if how is None:
                back = self.unpooled(back, below)
            else:
                back = self.filtered(np.maximum(back, 0), name, below, *how)
        return back / self.std

    def unpooled(self, back, below):
        placed = np.zeros_like(below)
        for (i, j), window in self.windows(below, 3, 2):
            cells = below[window].reshape(9, -1)
            switches = np.unravel_index(cells.argmax(0), (3, 3))
            np.add.at(
                placed[window], (*switches, np.arange(len(back[i, j]))), back[i, j]
            )
        return placed

    def filtered(self, back, name, below, stride, pad):
        kernel = self.params[name]["kernel"].astype(float)
        placed = np.pad(np.zeros_like(below), [(pad, pad), (pad, pad), (0, 0)])
        for (i, j), window in self.windows(placed, len(kernel), stride):
            placed[window] += kernel @ back[i, j]
        return placed[pad : pad + below.shape[0], pad : pad + below.shape[1]]


def strongest(activations):
    """A channel for each image and where it is highest."""
    n, _, columns, _ = activations.shape
    units = np.argsort(-activations.max((0, 1, 2)))[:n]
    maps = activations[np.arange(n), ..., units].reshape(n, -1)
    return units, np.stack(np.divmod(maps.argmax(1), columns), 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", CHAINS)
def test_deconvnet_is_that_of_the_paper_in_all_layers(model):
    forward, params = random_network(model, last="conv5")
    images = noise(2, SIZES[model], SIZES[model], 3)
    network = attribution.ruled(forward, "deconvnet")
    oracles = [Deconvnet(model, params, image) for image in images]
    activations = jax.jit(forward)(params, images)
    where = {layer: strongest(np.asarray(activations[layer])) for layer in LAYERS}

    @jax.jit
    def attributions(params, images, where):
        return {
            layer: attribution.attribute(network, params, layer, images, *where[layer])
            for layer in LAYERS
        }

    for layer, (found, scores) in attributions(params, images, where).items():
        units, positions = where[layer]
        for i, oracle in enumerate(oracles):
            wanted = oracle.projected(layer, units[i], *positions[i])
            assert np.abs(wanted).max() > 0
            np.testing.assert_allclose(
                found[i], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
            )
            wanted = oracle.maps[layer][*positions[i], units[i]]
            np.testing.assert_allclose(scores[i], wanted, rtol=1e-5)


def places(activations):
    """A unit for each image, and a position, where they are high."""
    if activations.ndim == 4:
        return strongest(activations)
    return activations.argmax(1), np.zeros((len(activations), 2), int)


@pytest.mark.slow
def test_gradient_is_the_gradient():
    forward, params = random_network("alexnet_small")
    images, layers = noise(2, 56, 56, 3), ["conv1_pre", "conv3", "fc8"]
    activations = jax.jit(forward)(params, images)
    where = {layer: places(np.asarray(activations[layer])) for layer in layers}
    network = attribution.ruled(forward, "gradient")

    @jax.jit
    def attributions(params, images, where):
        return {
            (layer, seed): attribution.attribute(
                network, params, layer, images, *where[layer], seed
            )
            for layer in layers
            for seed in ("one", "activation")
        }

    @jax.jit
    def gradients(params, images, where):
        def activation(image, layer, unit, position):
            x = forward(params, image[None])[layer][0]
            return x[*position, unit] if x.ndim == 3 else x[unit]

        grad = jax.value_and_grad(activation)
        return {
            layer: jax.vmap(lambda *at, layer=layer: grad(at[0], layer, *at[1:]))(
                images, *where[layer]
            )
            for layer in layers
        }

    found = attributions(params, images, where)
    for layer, (values, wanted) in gradients(params, images, where).items():
        largest = np.abs(wanted).max((1, 2, 3), keepdims=True)
        assert (largest > 0).all()
        pixels, scores = found[layer, "one"]
        np.testing.assert_allclose(scores, values, rtol=1e-4)
        np.testing.assert_allclose(
            pixels / largest, wanted / largest, rtol=0, atol=1e-5
        )
        largest *= np.abs(values)[:, None, None, None]
        pixels, _ = found[layer, "activation"]
        scaled = values[:, None, None, None] * wanted
        np.testing.assert_allclose(
            pixels / largest, scaled / largest, rtol=0, atol=1e-4
        )


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_rules_differ_on_the_network_that_is_shipped():
    forward, params = models.load("alexnet_small", "bundled", last="conv4")
    images = noise(1, 64, 64, 3)
    units, positions = strongest(np.asarray(jax.jit(forward)(params, images)["conv4"]))
    found = {}
    for rule in attribution.RULES:
        network = attribution.ruled(forward, rule)
        picture, score = attribute(network, "conv4")(params, images, units, positions)
        assert score[0] > 0
        found[rule] = np.asarray(picture).ravel()
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        a, b = found[attribution.RULES[one]], found[attribution.RULES[other]]
        assert np.corrcoef(a, b)[0, 1] < 0.95


# What comes back from above is 1, -2, 3, -4 times the images' colours' derivative.
@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("gradient", [1, -2, 0, 0]),
        ("guided", [1, 0, 0, 0]),
        ("deconvnet", [1, 0, 3, 0]),
    ],
)
def test_rules_on_a_single_relu(rule, wanted):
    weights = jnp.array([1.0, -2, 3, -4])[None, None, None]

    def forward(params, images):
        return {"all": jnp.sum(jax.nn.relu(images) * params, -1, keepdims=True)}

    images = jnp.array([1.0, 1, -1, -1])[None, None, None]
    network = attribution.ruled(forward, rule)
    where = images, jnp.array([0]), jnp.zeros((1, 2), int)
    found, _ = attribute(network, "all", "one")(weights, *where)
    assert found.ravel().tolist() == wanted


@jax.custom_jvp
def own_rule(x):
    return 2 * x


own_rule.defjvp(lambda primals, tangents: (own_rule(*primals), 3 * tangents[0]))


@jax.custom_vjp
def hidden(x):
    return jax.nn.relu(x)


hidden.defvjp(lambda x: (hidden(x), x > 0), lambda passed, back: (back * passed,))
NUMBERS = np.full((1, 1, 1, 3), 1.5, np.float32)
RELUS = {
    "jax.nn.relu": jax.nn.relu,
    "nnx.relu": nnx.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "turned maximum": lambda x: jnp.maximum(0.0, x),
    "zeros": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "clip": lambda x: jnp.clip(x, 0),
    "lax.max": lambda x: lax.max(x, jnp.float32(0)),
    "in a jitted function": jax.jit(jax.nn.relu),
    "in a remat": jax.checkpoint(lambda x: jax.nn.relu(x)),
    "in a vmap": jax.vmap(jax.nn.relu),
    "with numbers of its own": jax.jit(lambda x: jax.nn.relu(x * NUMBERS) / NUMBERS),
}
NONLINEAR = {
    "where": lambda x: jnp.where(x > 0, x, 0),
    "product": lambda x: x * (x > 0),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "abs": lambda x: (x + abs(x)) / 2,
    "another threshold": lambda x: jnp.maximum(x, 1),
    "maxout": lambda x: jnp.maximum(x, -x),
    "scan": lambda x: lax.scan(lambda y, _: (jax.nn.relu(y), None), x, length=1)[0],
    "custom_vjp": hidden,
}


def two_layers(between):
    """A network of two layers with a function between them."""

    def forward(params, images):
        x = between(images @ params)
        return {"first": x, "second": x @ params}

    return forward


def attributed(forward, rule):
    params = jnp.array([[1.0, -2, 0.5], [-1, 1, -1], [0.5, 1, -2]])
    images = jnp.asarray(noise(2, 1, 1, 3) - 127)
    network = attribution.ruled(forward, rule)
    where = images, jnp.array([0, 2]), jnp.zeros((2, 2), int)
    return attribute(network, "second", "one")(params, *where)[0]


@functools.cache
def with_relu(rule):
    return attributed(two_layers(jax.nn.relu), rule)


@pytest.mark.slow
@pytest.mark.parametrize("relu", RELUS)
def test_every_relu_gets_the_rule(relu):
    forward = two_layers(RELUS[relu])
    gradient = attributed(forward, "gradient")
    for rule in ("guided", "deconvnet"):
        assert not np.allclose(with_relu(rule), gradient)
        np.testing.assert_allclose(
            attributed(forward, rule), with_relu(rule), rtol=1e-5
        )


@pytest.mark.parametrize("nonlinearity", NONLINEAR)
def test_what_is_no_relu_is_refused(nonlinearity):
    alone = NONLINEAR[nonlinearity]
    for function in (alone, lambda x: alone(jax.nn.relu(x) - 1)):
        for rule in ("guided", "deconvnet"):
            with pytest.raises(ValueError, match="write it as jax.nn.relu"):
                attributed(two_layers(function), rule)


def test_a_network_without_relu_is_refused():
    for rule in ("guided", "deconvnet"):
        with pytest.raises(ValueError, match=f"no ReLU, which {rule} is a rule for"):
            attributed(two_layers(lambda x: x), rule)


def test_the_order_of_activations_is_the_network_s():
    forward = two_layers(jax.nn.relu)

    def turned(params, images):
        return dict(reversed(forward(params, images).items()))

    network = attribution.ruled(turned, "guided")
    assert list(network(jnp.eye(3), jnp.ones((1, 3)))) == ["second", "first"]


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="did you mean 'guided'"):
        attribution.ruled(two_layers(jax.nn.relu), "guidde")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "pooling"),
    [("alexnet_small", "max"), ("alexnet_small", "average"), ("zfnet", "max")],
)
def test_rules_change_no_activation(model, pooling):
    forward, params = random_network(model, pooling=pooling, last="pool5")
    images = noise(1, 80, 80, 3)
    ruled = attribution.ruled(forward, "deconvnet")
    wanted, found = (jax.jit(network)(params, images) for network in (forward, ruled))
    counts = models.units(forward, params, 80)
    assert list(models.units(ruled, params, 80).items()) == list(counts.items())
    for name in counts:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_the_first_maximum_is_switched_in_any_max_pooling():
    images = np.ones((1, 5, 5, 3), np.float32)

    def forward(params, images):
        x = jax.nn.relu(images)
        return {"pool": nnx.max_pool(x, (3, 3), strides=(2, 2))}

    network = attribution.ruled(forward, "deconvnet")
    arguments = images, jnp.array([1]), jnp.array([[1, 0]])
    found, _ = attribution.attribute(network, {}, "pool", *arguments)
    assert np.argwhere(np.asarray(found[0])).tolist() == [[2, 0, 1]]


def test_what_has_a_gradient_of_its_own_and_no_relu_keeps_it():
    found = attributed(two_layers(lambda x: own_rule(jax.nn.relu(x))), "guided")
    wanted = with_relu("guided")
    np.testing.assert_allclose(found, 3 * wanted, rtol=1e-5)


def test_softmax_and_normalisation_go_back_by_their_gradients():
    def forward(params, images):
        x = jnp.stack([jax.nn.relu(images @ params)] * 2).mean(0)
        x = x / jnp.sqrt(1 + jnp.mean(x**2, -1, keepdims=True))
        return {"first": x, "second": jax.nn.softmax(x)}

    found = attributed(forward, "guided")
    assert np.isfinite(found).all() and np.abs(found).max() > 0
