"""Neural style transfer (Gatys, Ecker & Bethge 2015, arXiv:1508.06576).

    picture = stylize(Image.open("bridge.jpg"), [Image.open("starry_night.jpg")])

A generated image G starts as noise, and gradient descent changes its pixels to minimise
J(G) = alpha J_content(C, G) + beta J_style(S, G) + gamma TV(G).
"""

import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from PIL import Image

from nstvis import devices, images, models
from nstvis.hoisting import hoisted
from nstvis.layers import CAFFE_MEAN
from nstvis.runs.registry import unknown
from nstvis.synthesis import canvas, losses, minimize
from nstvis.synthesis.objective import Targets, make_objective, make_targets
from nstvis.synthesis.optimizers import make_optimizer
from nstvis.synthesis.style_settings import (
    SHORTEST_SIDE,
    Settings,
    check,
    layer_weights,
    long_sides,
    style_blend,
)

logger = logging.getLogger(__name__)


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


class Programs(NamedTuple):
    """What is compiled for one size.

    Attributes:
        targets: From parameters, content and styles to `Targets`.
        step: One step of `minimize`.
        flops: Floating-point operations of a step, by XLA's count.
    """

    targets: jax.stages.Compiled
    step: jax.stages.Compiled
    flops: float


def stylize(
    content: Image.Image,
    styles: Sequence[Image.Image],
    settings: Settings | None = None,
) -> Image.Image:
    """Paints `content` in the style of `styles`.

    Returns:
        A picture with the content's aspect ratio and transparency.

    Raises:
        ValueError: A setting is out of its bounds, or names what does not exist.
        MemoryError: The picture is too large for the memory that is free.
    """
    transfer = StyleTransfer(content, styles, settings or Settings())
    *_, last = transfer.run()
    return transfer.picture(last.state)


class StyleTransfer:
    """A transfer that is ready to run, with a step compiled for every size.

    Attributes:
        costs: Floating-point operations of all steps, in order.
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
        self._forward, self._params = _network(settings)
        self._optimizer = make_optimizer(
            settings.optimizer,
            settings.learning_rate,
            settings.smoothing,
            settings.b2,
            settings.steps if settings.annealing else 0,
        )
        self._sides = long_sides(self.content.size, settings)
        self._programs = [self._compile(side) for side in self._sides]
        self.costs = [p.flops for p in self._programs for _ in range(settings.steps)]
        self._check_memory()

    def run(
        self,
        done: int = 0,
        restore: Callable[[minimize.State], minimize.State] = lambda state: state,
    ) -> Iterator[Moment]:
        """Yields the moment before the first step, and those after each step.

        Args:
            done: Steps that an earlier run has done, after which to resume.
            restore: Returns that run's state, given a fresh one of the same size.
        """
        key, canvas_key = jax.random.split(jax.random.key(self.settings.seed))
        per_size = self.settings.steps
        first = max(0, done - 1) // per_size
        state = None
        for i, side in enumerate(self._sides[first:], first):
            content, styles = self._pictures(side)
            targets = self._programs[i].targets(self._params, content, styles)
            if state is None:
                start = first_canvas(content, styles, self.settings, canvas_key)
                state = restore(minimize.start(start, self._optimizer))
                yield Moment(done, state, None)
            else:
                size, margin = targets.content.shape[1:3], self.settings.margin
                state = minimize.enlarge(state, self._optimizer, size, margin)
            _log_objective(targets, self.settings)
            steps = range(max(i * per_size, done), (i + 1) * per_size)
            step = self._programs[i].step
            taken = minimize.minimize(step, state, targets, key, steps)
            for number, (state, metrics) in zip(steps, taken, strict=True):
                yield Moment(number + 1, state, metrics)

    def array(self, state: minimize.State) -> np.ndarray:
        """Returns the best canvas so far, `[height, width, 3]`, 0..255."""
        best = canvas.cropped(state.best, self.settings.margin)
        array = np.array(best[0]).clip(0, 255)  # a copy: the buffer will be donated
        if self.settings.preserve_color == "luminance":
            content = images.resize(self.content, max(array.shape))
            array = images.keep_luminance(array, images.to_array(content))
        return array

    def picture(self, state: minimize.State) -> Image.Image:
        """Renders the best canvas so far, with the content's transparency."""
        transparent = self.content.mode == "RGBA"
        alpha = self.content.getchannel("A") if transparent else None
        return images.to_image(self.array(state), alpha)

    def write(
        self, path: pathlib.Path, state: minimize.State, note: dict[str, Any]
    ) -> None:
        """Writes the best canvas so far with a note; .tif gets 16 bits per channel."""
        picture = self.picture(state)
        if path.suffix.lower() not in (".tif", ".tiff"):
            return images.write(path, picture, note)
        array = self.array(state)
        if picture.mode == "RGBA":
            array = np.dstack([array, np.asarray(picture.getchannel("A"))])
        images.write(path, array, note)

    def _pictures(self, side: int) -> tuple[Array, list[Array]]:
        """The content with this long side and its margin, and the styles, scaled."""
        styles = []
        for style in self._styles:
            least = math.ceil(SHORTEST_SIDE * max(style.size) / min(style.size))
            long_side = max(least, round(side * self.settings.style_scale))
            styles.append(canvas.from_image(images.resize(style, long_side)))
        content = canvas.from_image(images.resize(self.content, side))
        return canvas.framed(content, self.settings.margin), styles

    def _compile(self, side: int) -> Programs:
        """Compiles what computes the targets and what makes a step, at one size."""
        options = dict[str, bool | str](devices.compile_options())
        content, styles = self._pictures(side)
        prepare, network = hoisted(self._forward, self._params, content)
        from_pictures = make_targets(self._forward, self.settings)

        def targets(params: models.Params, content: Array, styles: list) -> Targets:
            made = from_pictures(params, content, styles)
            return made._replace(params=prepare(params))

        lowered = jax.jit(targets).lower(self._params, content, styles)
        state = jax.eval_shape(
            lambda content: minimize.start(content, self._optimizer), content
        )
        step = minimize.make_step(
            make_objective(network, self.settings),
            self._optimizer,
            minimize.within_range if self.settings.clip else lambda canvas: canvas,
        )
        lowered_step = step.lower(state, lowered.out_info, jax.random.key(0))
        compiled = lowered_step.compile(options)
        flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
        return Programs(lowered.compile(options), compiled, flops)

    def _check_memory(self) -> None:
        """Compares what the largest size needs with what there is, and logs both."""
        largest = self._programs[-1]
        need = max(map(devices.needed_memory, (largest.targets, largest.step)))
        free = devices.free_memory()
        width, height = images.fitted_size(self.content.size, self._sides[-1])
        have = f"{need / 1e9:.2f} GB of memory, {free / 1e9:.1f} GB are free"
        logger.info("a step at %d x %d pixels needs %s", width, height, have)
        if need > free:
            fixed = sum(x.nbytes for x in jax.tree.leaves(self._params))
            share = max(0, free - fixed) / (need - fixed)
            both = 2 * self.settings.margin
            fits = int((self._sides[-1] + both) * (0.9 * share) ** 0.5) - both
            hint = f", {fits} should fit" if fits >= SHORTEST_SIDE else ""
            raise MemoryError(
                f"a step at {width} x {height} pixels needs {have}: lower the size"
                f"{hint}"
            )


def first_canvas(
    content: Array, styles: Sequence[Array], settings: Settings, key: Array
) -> Array:
    """Returns where G starts: a kind of `STARTS`, or a picture scaled to its size.

    G and the content have the settings' margin.
    """
    if settings.start == "noise":
        return canvas.white_noise(key, content.shape)
    if settings.start == "mean":
        faint = 1e-3 * jax.random.normal(key, content.shape)
        return (faint + CAFFE_MEAN) * (255 / losses.UNITS[settings.units].white)
    if settings.start == "content":
        if settings.start_colors == "style":
            shares = style_blend(settings.style_blend, len(styles))
            content = canvas.recolored(content, styles, shares)
        noise = settings.start_noise * canvas.white_noise(key, content.shape)
        return minimize.within_range((1 - settings.start_noise) * content + noise)
    height, width = (length - 2 * settings.margin for length in content.shape[1:3])
    picture = images.read(settings.start).resize((width, height))
    return canvas.framed(canvas.from_image(picture), settings.margin)


def find_layers(settings: Settings) -> list[str]:
    """Returns the layers that the settings name, from the lowest to the highest.

    Raises:
        ValueError: The network has no such layer.
    """
    names = models.layers(settings.model)
    layers = {
        **layer_weights(settings.content_layers),
        **layer_weights(settings.style_layers),
    }
    for name in layers:
        if name not in names:
            raise ValueError(unknown(f"layer of {settings.model}", name, names))
    return sorted(layers, key=names.index)


def _network(settings: Settings) -> tuple[models.Forward, models.Params]:
    layers = find_layers(settings)
    if settings.weights == "random":
        logger.warning(
            "the filters are random (seed %d), not trained: expect texture rather than"
            " strokes",
            settings.seed,
        )
    forward, params = models.load(
        settings.model,
        settings.weights,
        preprocessing=settings.preprocessing,
        pooling=settings.pooling,
        last=layers[-1],
        seed=settings.seed,
    )
    scale = losses.UNITS[settings.units].white / 255
    return lambda params, images: forward(params, scale * images), params


def _recolored(style: Image.Image, content: Image.Image) -> Image.Image:
    arrays = images.to_array(style), images.to_array(content)
    return images.to_image(images.match_colors(*arrays))


def _log_objective(targets: Targets, settings: Settings) -> None:
    """Logs what is minimised, in canonical units whatever those of the settings."""
    height, width = canvas.cropped(targets.content, settings.margin).shape[1:3]
    gram = settings.style_loss == "gram"
    symbol = "E" if gram else pathlib.PurePath(settings.style_loss).stem
    terms = [
        f"{settings.alpha * float(factor):.3g} J_content({name})"
        for name, factor in targets.content_factors.items()
    ] + [
        f"{settings.beta * float(factor):.3g} {symbol}({name})"
        for name, factor in targets.style_factors.items()
    ]
    units = losses.UNITS[settings.units]
    terms.append(f"{settings.gamma * units.variation(targets.content):.3g} TV")
    logger.info("%d x %d: J = %s", width, height, " + ".join(terms))
