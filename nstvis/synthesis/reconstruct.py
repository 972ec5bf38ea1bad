"""Reconstructions: pictures with the activations, or the style, that a layer has.

From noise, gradient descent finds a picture with the content's activations in one layer,
for each layer (Mahendran & Vedaldi 2015, arXiv:1412.0035), and pictures with the style's
Gram matrices in the first layer, the first two, and so on (Gatys, Ecker & Bethge 2015,
arXiv:1508.06576, Figure 1). One program optimises all of them at once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image, ImageOps

from nstvis import devices, images, models
from nstvis.hoisting import hoisted
from nstvis.runs import config
from nstvis.runs.config import Network, Seed, bounded, chosen
from nstvis.runs.registry import unknown
from nstvis.synthesis import canvas, losses, minimize, objective, style_settings
from nstvis.synthesis.layouts import Layout
from nstvis.synthesis.objective import Picture, Targets
from nstvis.synthesis.optimizers import make_optimizer


@dataclasses.dataclass(kw_only=True)
class Settings(Seed, Network):
    """What to reconstruct from which layers, and how."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "vgg_small"
    # Layers, separated by commas; all convolutions, after the ReLU, if empty.
    layers: str = ""
    # Pooling of the network.
    pooling: str = chosen("average", "max")
    # Long side of the pictures, in pixels.
    size: int = bounded(192, least=1, most=8192)
    # Adam's steps.
    steps: int = bounded(300, least=1, most=1_000_000)
    # Length of a step.
    learning_rate: float = bounded(4.0, above=0, most=1e6)
    # Weight of the mean squared difference of neighbouring pixels, which smooths.
    gamma: float = bounded(1e-4, least=0, most=1e12)
    # Largest number of pixels by which pictures of the style are rolled at random at
    # every step.
    jitter: int = bounded(8, least=0, most=1024)

    def check(self) -> None:
        """Raises a ValueError if a layer is named twice."""
        config.names("layers", self.layers)


# Pixels that are painted beyond all edges and then cropped, as in a style transfer.
_MARGIN = 16

# What each of n pictures is compared with, whose factors are `[n]`, 0 where a picture is
# not optimised for a layer; and the limits `[n]` of their random rolls.
Data = tuple[Targets, Array]


class Reconstruction:
    """All pictures, and the step that is compiled for them.

    Attributes:
        originals: The content, scaled, and the style, cropped to its size.
        layers: From the lowest to the highest.
        names: Of the pictures: one of each layer, then one of the first layer, one of
            the first two, and so on.
        flops: Floating-point operations of a step, by XLA's count.
    """

    def __init__(self, content: Image.Image, style: Image.Image, settings: Settings):
        """Raises a ValueError if a setting is out of its bounds."""
        config.check(settings)
        content = images.resize(content.convert("RGB"), settings.size)
        cropped = ImageOps.fit(
            style.convert("RGB"), content.size, Image.Resampling.LANCZOS
        )
        self.originals, self.layers = (content, cropped), find_layers(settings)
        spans = [self.layers[0], *(f"{self.layers[0]}-{x}" for x in self.layers[1:])]
        self.names = [f"content_{x}" for x in self.layers]
        self.names += [f"style_{x}" for x in spans]
        forward, params = models.load(
            settings.model,
            settings.weights,
            preprocessing=settings.preprocessing,
            pooling=settings.pooling,
            last=self.layers[-1],
            seed=settings.seed,
        )
        width, height = (n + 2 * _MARGIN for n in content.size)
        layout = Layout((height, width))
        self._optimizer = make_optimizer("adam", settings.learning_rate, 0.5, layout)
        self._keys = jax.random.split(jax.random.key(settings.seed), len(self.names))
        pictures = (
            canvas.framed(canvas.from_image(x), _MARGIN) for x in self.originals
        )
        make = make_targets(forward, self.layers, settings)
        targets, limits = jax.jit(make)(params, *pictures)
        states, options = jax.eval_shape(self.start), devices.compile_options()
        shape = len(self.names), *states.canvas.shape[2:]
        seen = jax.ShapeDtypeStruct(shape, jnp.float32)
        prepare, network = hoisted(forward, params, seen)
        self._data = targets._replace(params=jax.jit(prepare)(params)), limits
        step = minimize.make_batched_step(
            make_objectives(network, self.layers, settings), self._optimizer
        )
        lowered = step.lower(states, self._data, self._keys)
        self._step = lowered.compile(dict[str, bool | str](options))
        self.flops = (self._step.cost_analysis() or {}).get("flops", 0.0)

    def start(self) -> minimize.State:
        """Returns the state before the first step: different noise for each picture."""
        width, height = (n + 2 * _MARGIN for n in self.originals[0].size)

        def start(key: Array) -> minimize.State:
            noise = canvas.white_noise(key, (1, height, width, 3))
            return minimize.start(noise, self._optimizer)

        return jax.vmap(start)(self._keys)

    def run(
        self, state: minimize.State, steps: range
    ) -> Iterator[tuple[minimize.State, dict[str, Array]]]:
        """Yields the state, valid until the next one, and each picture's loss."""
        arguments = self._step, state, self._data, self._keys, steps
        for following, metrics in minimize.minimize(*arguments):
            losses = {name: metrics["J"][i] for i, name in enumerate(self.names)}
            yield following, losses

    def pictures(self, state: minimize.State) -> list[Image.Image]:
        """Renders the best picture of each name so far."""
        best = np.asarray(state.best)
        return [images.to_image(canvas.cropped(x, _MARGIN)[0]) for x in best]


def make_targets(
    forward: models.Forward, layers: Sequence[str], settings: Settings
) -> Callable[[models.Params, Array, Array], Data]:
    """Returns the function from parameters, content and style to the pictures' data.

    Pictures of the style are rolled, so that the network's strides leave no grid: a
    style does not depend on the place.
    """
    count = len(layers)
    one, none = np.eye(count), np.zeros((count, count))
    up_to = np.tril(np.ones_like(one)) / np.arange(1, count + 1)[:, None]
    content_weights = np.vstack([one, none]).astype(np.float32)
    style_weights = np.vstack([none, up_to]).astype(np.float32)
    weights = _objective_settings(layers, settings)

    def data(params: models.Params, content: Array, style: Array) -> Data:
        _, height, width, _ = content.shape
        layout = Layout((height, width))
        make = objective.make_targets(forward, weights, layout, [layout])
        pictures = Picture(content, {}), [Picture(style, {})]
        terms = weights.alpha, weights.beta, weights.gamma
        targets = make(params, *pictures, {"": jnp.ones(1)}, terms)
        content_factors, style_factors = (
            {name: weights[:, layers.index(name)] * x for name, x in factors.items()}
            for weights, factors in [
                (content_weights, targets.content_factors),
                (style_weights, targets.style_factors),
            ]
        )
        targets = targets._replace(
            content_factors=content_factors, style_factors=style_factors
        )
        return targets, jnp.array([1] * count + [settings.jitter + 1] * count)

    return data


def make_objectives(
    forward: models.Forward, layers: Sequence[str], settings: Settings
) -> minimize.Objective:
    """Returns each picture's J, for `make_batched_step`; its data are `Data`."""
    weights = _objective_settings(layers, settings)

    def objectives(pictures: Array, data: Data, keys: Array) -> tuple[Array, dict]:
        targets, limits = data

        def rolled(picture: Array, key: Array, below: Array) -> Array:
            shift = jax.random.randint(key, (2,), 0, below)
            return jnp.roll(picture[0], shift, (0, 1))

        seen = jax.vmap(rolled)(pictures, keys, limits)
        activations = {k: x[:, None] for k, x in forward(targets.params, seen).items()}

        def loss(picture, activations, content_factors, style_factors, key):
            own = targets._replace(
                content_factors=content_factors, style_factors=style_factors
            )
            sums = objective.whole_sums(activations, own, weights)
            variation = losses.total_variation(picture, weights.tv_power)
            return objective.loss(sums, variation, own, key)[0]

        factors = targets.content_factors, targets.style_factors
        return jax.vmap(loss)(pictures, activations, *factors, keys), {}

    return objectives


def find_layers(settings: Settings) -> list[str]:
    """Returns the layers that the settings name, from the lowest to the highest.

    Raises:
        ValueError: The network has no such layer, or no convolutions.
    """
    known = models.layers(settings.model)
    convolutions = [x for x in known if x.startswith("conv") and not x.endswith("_pre")]
    layers = config.names("layers", settings.layers) or convolutions
    for name in layers:
        if name not in known:
            raise ValueError(unknown(f"layer of {settings.model}", name, known))
    if not layers:
        raise ValueError(
            f"no layer of {settings.model} starts with conv: name some in layers, of"
            f" {', '.join(known)}"
        )
    return sorted(layers, key=known.index)


def psnr(picture: Image.Image, original: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / mean squared error)."""
    errors = images.to_array(picture) - images.to_array(original)
    return float(10 * np.log10(255**2 / np.maximum(np.mean(errors**2), 1e-12)))


def _objective_settings(
    layers: Sequence[str], settings: Settings
) -> style_settings.Settings:
    """The objective's: every layer with weight 1, and alpha = beta = 1."""
    names = ",".join(layers)
    return style_settings.Settings(
        content_layers=names,
        style_layers=names,
        style_loss="gram",
        alpha=1.0,
        beta=1.0,
        gamma=settings.gamma,
    )
