"""Neural style transfer (Gatys, Ecker & Bethge 2015, arXiv:1508.06576).

    picture = stylize(Image.open("bridge.jpg"), [Image.open("starry_night.jpg")])

A generated image G starts as noise and its pixels are moved to minimise
J(G) = alpha J_content(C, G) + beta J_style(S, G) + gamma TV(G).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from PIL import Image

from nstvis import devices, images, models
from nstvis.runs.registry import unknown
from nstvis.synthesis import losses, minimize
from nstvis.synthesis.style_settings import (
    LEARNING_RATES,
    SHORTEST_SIDE,
    Settings,
    check,
    layer_weights,
    long_sides,
    style_blend,
)

logger = logging.getLogger(__name__)


class Aim(NamedTuple):
    """What the canvas is compared with, at one size.

    Attributes:
        params: The network's.
        content: The content picture, `[1, height, width, 3]`.
        features: Its activations P at the content layers.
        grams: The Gram matrices A / M of the style at the style layers.
        content_factors: Weight times unit of each content layer's canonical loss.
        style_factors: Likewise of each style layer's.
    """

    params: models.Params
    content: Array
    features: dict[str, Array]
    grams: dict[str, Array]
    content_factors: dict[str, Array | float]
    style_factors: dict[str, Array | float]


class Moment(NamedTuple):
    """One moment of a transfer.

    Attributes:
        step: Steps done.
        state: The loop's state, valid until the next moment.
        metrics: J, J_content, J_style and more of the last step; None before the first.
    """

    step: int
    state: minimize.State
    metrics: minimize.Metrics | None


def stylize(
    content: Image.Image,
    styles: Sequence[Image.Image],
    settings: Settings | None = None,
) -> Image.Image:
    """Paints `content` in the style of `styles`.

    Returns:
        A picture with the content's aspect ratio and transparency.

    Raises:
        ValueError: A setting names something that does not exist.
        MemoryError: The picture is too large for the memory that is free.
    """
    painting = StyleTransfer(content, styles, settings or Settings())
    *_, last = painting.run()
    return painting.picture(last.state)


class StyleTransfer:
    """A transfer made ready: network loaded, a step compiled for every size.

    Attributes:
        steps: Steps in all.
    """

    def __init__(
        self,
        content: Image.Image,
        styles: Sequence[Image.Image],
        settings: Settings,
    ):
        """Raises what `stylize` does."""
        check(settings, len(styles))
        self.settings = settings
        self.content = images.normalized(content)
        self._styles = [images.normalized(style) for style in styles]
        if settings.preserve_color == "histogram":
            self._styles = [_recolored(s, self.content) for s in self._styles]
        forward, self._params = _network(settings)
        aim = jax.jit(make_aim(forward, settings))
        self._optimizer = make_optimizer(settings)
        objective = make_objective(forward, settings)
        step = minimize.make_step(objective, self._optimizer)
        self._sides = long_sides(self.content.size, settings)
        self._programs = [self._compile(aim, step, side) for side in self._sides]
        self.steps = settings.steps * len(self._sides)
        self._check_memory()

    def run(
        self,
        done: int = 0,
        restore: Callable[[minimize.State], minimize.State] = lambda state: state,
    ) -> Iterator[Moment]:
        """Yields the moment before the first step, and those after each step.

        Args:
            done: Steps that an earlier run has done, to go on from there.
            restore: Returns that run's state, given a fresh one of the same size.
        """
        key, canvas_key = jax.random.split(jax.random.key(self.settings.seed))
        each = self.settings.steps
        first = max(0, done - 1) // each
        state = None
        for i, side in enumerate(self._sides[first:], first):
            take_aim, program = self._programs[i]
            aim = take_aim(self._params, *self._pictures(side))
            if state is None:
                canvas = first_canvas(aim.content, self.settings, canvas_key)
                state = restore(minimize.start(canvas, self._optimizer))
                yield Moment(done, state, None)
            else:
                height, width = aim.content.shape[1:3]
                state = minimize.enlarge(state, self._optimizer, height, width)
            _log_objective(aim, self.settings)
            steps = range(max(i * each, done), (i + 1) * each)
            taken = minimize.minimize(program, state, aim, key, steps)
            for number, (state, metrics) in zip(steps, taken, strict=True):
                yield Moment(number + 1, state, metrics)

    def array(self, state: minimize.State) -> np.ndarray:
        """Returns the best canvas so far, `[height, width, 3]`, 0..255."""
        array = np.array(state.best[0])  # a copy: the buffer will be donated
        if self.settings.preserve_color == "luminance":
            content = images.resize(self.content, max(array.shape))
            array = images.keep_luminance(array, images.to_array(content))
        return array

    def picture(self, state: minimize.State) -> Image.Image:
        """Renders the best canvas so far, with the content's transparency."""
        transparent = self.content.mode == "RGBA"
        alpha = self.content.getchannel("A") if transparent else None
        return images.to_image(self.array(state), alpha)

    def flops(self, step: int) -> float:
        """Floating point operations of a step, counted from 1, by XLA's account."""
        _, program = self._programs[(step - 1) // self.settings.steps]
        return (program.cost_analysis() or {}).get("flops", 0.0)

    def _pictures(self, side: int) -> tuple[Array, list[Array]]:
        """The content with this long side, and the styles as the settings scale them."""
        styles = []
        for style in self._styles:
            least = math.ceil(SHORTEST_SIDE * max(style.size) / min(style.size))
            wanted = max(least, round(side * self.settings.style_scale))
            styles.append(_batch(images.resize(style, wanted)))
        return _batch(images.resize(self.content, side)), styles

    def _compile(
        self, take_aim: Any, step: Any, side: int
    ) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
        """Compiles what takes aim and what makes a step, at one size."""
        options = devices.compile_options()
        lowered = take_aim.lower(self._params, *self._pictures(side))
        aim = lowered.out_info
        state = jax.eval_shape(
            lambda canvas: minimize.start(canvas, self._optimizer), aim.content
        )
        stepping = step.lower(state, aim, jax.random.key(0))
        return lowered.compile(options), stepping.compile(options)

    def _check_memory(self) -> None:
        """Compares what the largest size needs with what there is, and says both."""
        need = max(map(devices.needed_memory, self._programs[-1]))
        free = devices.free_memory()
        width, height = images.fitted_size(self.content.size, self._sides[-1])
        have = f"{need / 1e9:.2f} GB of memory, {free / 1e9:.1f} GB are free"
        logger.info("a step at %d x %d pixels needs %s", width, height, have)
        if need > free:
            fixed = sum(x.nbytes for x in jax.tree.leaves(self._params))
            share = max(0, free - fixed) / (need - fixed)
            fits = int(self._sides[-1] * (0.9 * share) ** 0.5)
            hint = f", {fits} should fit" if fits >= SHORTEST_SIDE else ""
            raise MemoryError(
                f"a step at {width} x {height} pixels needs {have}: lower the size"
                f"{hint}"
            )


def make_aim(
    forward: models.Forward, settings: Settings
) -> Callable[[models.Params, Array, list[Array]], Aim]:
    """Returns the function from parameters, content and styles to an `Aim`."""
    units = losses.UNITS[settings.units]
    content_weights = layer_weights(settings.content_layers)
    style_weights = layer_weights(settings.style_layers)

    def aim(params: models.Params, content: Array, styles: list[Array]) -> Aim:
        activations = forward(params, content)
        features = {name: activations[name] for name in content_weights}
        shares = jnp.asarray(style_blend(settings.style_blend, len(styles)))
        painted = [forward(params, style) for style in styles]
        for name in {**content_weights, **style_weights}:
            if any(one[name].size == 0 for one in [activations, *painted]):
                raise ValueError(
                    f"{name} sees nothing of a picture this small: raise size, lower"
                    " scales, or leave that layer out"
                )
        grams = {
            name: jnp.tensordot(
                shares, jnp.stack([losses.gram(one[name]) for one in painted]), 1
            )
            for name in style_weights
        }
        return Aim(
            params,
            content,
            features,
            grams,
            {k: w * units.content(features[k]) for k, w in content_weights.items()},
            {k: w * units.style(grams[k]) for k, w in style_weights.items()},
        )

    return aim


def make_objective(forward: models.Forward, settings: Settings) -> minimize.Objective:
    """Returns J(G) = alpha J_content + beta J_style + gamma TV, for `minimize`.

    Its data is an `Aim`. With jitter, the canvas and the content are rolled alike by a
    random number of pixels first, so that no pixel keeps its place in the network's
    strides.
    """
    units = losses.UNITS[settings.units]
    jitter = 0 if settings.optimizer == "lbfgs" else settings.jitter

    def objective(canvas: Array, aim: Aim, key: Array) -> tuple[Array, dict]:
        targets = aim.features
        variation = units.variation(canvas) * losses.total_variation(
            canvas, settings.tv_power
        )
        if jitter > 1:
            shift = jax.random.randint(key, (2,), 0, jitter)
            canvas = jnp.roll(canvas, shift, (1, 2))
            targets = forward(aim.params, jnp.roll(aim.content, shift, (1, 2)))
        features = forward(aim.params, canvas)
        content = sum(
            factor * losses.content_loss(features[name], targets[name])
            for name, factor in aim.content_factors.items()
        )
        style = sum(
            factor * losses.style_loss(features[name], aim.grams[name])
            for name, factor in aim.style_factors.items()
        )
        loss = settings.alpha * content + settings.beta * style
        loss += settings.gamma * variation
        return loss, {"J_content": content, "J_style": style, "TV": variation}

    return objective


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Returns the optimiser that the settings name.

    Raises:
        ValueError: There is none of that name, or it needs a learning rate.
    """
    name = settings.optimizer
    if name not in LEARNING_RATES:
        raise ValueError(unknown("optimizer", name, LEARNING_RATES))
    if name == "gd" and settings.units != "balanced" and not settings.learning_rate:
        raise ValueError(
            f"losses in units={settings.units} have no usual size: give gd a"
            " learning_rate that suits them"
        )
    rate = settings.learning_rate or LEARNING_RATES[name]
    if name == "adam":
        smoothing = minimize.smooth_gradient(settings.smoothing)
        return optax.chain(smoothing, optax.adam(rate, b2=0.99))
    if name == "lbfgs":
        return optax.lbfgs(rate, memory_size=10)
    return optax.sgd(rate)


def first_canvas(content: Array, settings: Settings, key: Array) -> Array:
    """Returns where G starts: noise, the content, or a picture scaled to its size."""
    if settings.start == "noise":
        noise = 128 + 40 * jax.random.normal(key, content.shape)
        return jnp.clip(noise, 0, 255)
    if settings.start == "content":
        return content
    height, width = content.shape[1:3]
    return _batch(images.read(settings.start).resize((width, height)))


def _network(settings: Settings) -> tuple[models.Forward, models.Params]:
    names = models.layers(settings.model)
    wanted = {
        **layer_weights(settings.content_layers),
        **layer_weights(settings.style_layers),
    }
    for name in wanted:
        if name not in names:
            raise ValueError(unknown(f"layer of {settings.model}", name, names))
    if settings.weights == "random":
        logger.warning(
            "the filters are random (seed %d), not trained: expect texture rather than"
            " strokes",
            settings.seed,
        )
    return models.load(
        settings.model,
        settings.weights,
        pooling=settings.pooling,
        last=max(wanted, key=names.index, default=names[0]),
        seed=settings.seed,
    )


def _recolored(style: Image.Image, content: Image.Image) -> Image.Image:
    arrays = images.to_array(style), images.to_array(content)
    return images.to_image(images.match_colors(*arrays))


def _batch(image: Image.Image) -> Array:
    return jnp.asarray(images.to_array(image))[None]


def _log_objective(aim: Aim, settings: Settings) -> None:
    """Says what is minimised in the canonical units, whatever those of the settings."""
    height, width = aim.content.shape[1:3]
    terms = [
        f"{settings.alpha * float(factor):.3g} J_content({name})"
        for name, factor in aim.content_factors.items()
    ] + [
        f"{settings.beta * float(factor):.3g} E({name})"
        for name, factor in aim.style_factors.items()
    ]
    units = losses.UNITS[settings.units]
    terms.append(f"{settings.gamma * units.variation(aim.content):.3g} TV")
    logger.info("%d x %d: J = %s", width, height, " + ".join(terms))
