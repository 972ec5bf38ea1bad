"""Neural style transfer (Gatys, Ecker & Bethge 2015, arXiv:1508.06576).

    picture = stylize(Image.open("bridge.jpg"), [Image.open("starry_night.jpg")])

A generated image G starts as noise, and gradient descent changes its pixels to minimise
J(G) = alpha J_content(C, G) + beta J_style(S, G) + gamma TV(G).
"""

import copy
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from nstvis import decoding, devices, images
from nstvis.layers import CAFFE_MEAN
from nstvis.synthesis import canvas, losses, masks, minimize, programs, style_settings
from nstvis.synthesis.fitting import programs_that_fit
from nstvis.synthesis.layouts import Layout
from nstvis.synthesis.objective import Guidance, Picture, Targets
from nstvis.synthesis.style_settings import (
    SHORTEST_SIDE,
    Settings,
    check,
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
        self._quiet = False
        self.settings = settings
        self.content = decoding.normalized(content)
        self._styles = [decoding.normalized(style) for style in styles]
        self._regions = self._read_masks()
        if settings.preserve_color == "histogram":
            self._styles = [_recolored(s, self.content) for s in self._styles]
        self._network = programs.network(settings)
        if settings.weights == "random":
            logger.warning(
                "the filters are random (seed %d), not trained: expect texture rather"
                " than strokes",
                settings.seed,
            )
        self._sizes = self._list_sizes()
        self._programs = programs_that_fit(settings, self._sizes)
        devices.give_memory_back()  # what the compiler took
        self.costs = [
            each.flops
            for size, each in zip(self._sizes, self._programs, strict=True)
            for _ in range(*size.steps)
        ]

    def with_content(self, content: Image.Image) -> Self:
        """Returns a transfer for another content of the same size, with what is compiled.

        It says nothing of its objective, and its styles are this one's, those that were
        recoloured (`preserve_color=histogram`) included.

        Raises:
            ValueError: The content is of another size.
        """
        other = copy.copy(self)
        other.content, other._quiet = decoding.normalized(content), True
        if other.content.size != self.content.size:
            sizes = (f"{w} x {h}" for w, h in (other.content.size, self.content.size))
            raise ValueError(f"a content of {' pixels in a transfer of '.join(sizes)}")
        return other

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
        before = None
        for size, program in zip(self._sizes, self._programs, strict=True):
            if size.steps[1] < max(done, 1):
                continue
            content, styles = self._pictures(size, program.layout)
            if before is None:
                canvas_key = program.layout.on_host(canvas_key)
                start = first_canvas(content, styles, self.settings, canvas_key)
                state = restore(program.start(start))
                del start  # of which the state has copies
            else:
                state = self._enlarged(state, before, program)  # pyright: ignore[reportPossiblyUnbound]
            jax.block_until_ready(state)
            devices.give_memory_back()  # what was only needed on the way
            if before is None:
                yield Moment(done, state, None)
                devices.give_memory_back()
            targets = self._targets(program, content, styles)
            del content, styles  # which may be as large as all the rest
            devices.give_memory_back()
            steps = range(max(done, size.steps[0]), size.steps[1])
            in_blocks = program.layout.count_each > 1
            # A step in flight has its memory already.
            ahead = 1 if in_blocks else minimize.RUN_AHEAD
            taken = minimize.minimize(program.step, state, targets, key, steps, ahead)
            began = time.monotonic()
            for number, (state, metrics) in zip(steps, taken, strict=True):
                if in_blocks and number == steps.start:
                    jax.block_until_ready(metrics)
                    _log_time(program, len(steps), time.monotonic() - began)
                yield Moment(number + 1, state, metrics)
                if in_blocks:
                    jax.block_until_ready(metrics)
                    devices.give_memory_back()  # what the step and the moment took
            before = program

    def array(self, state: minimize.State) -> np.ndarray:
        """Returns the best canvas so far, `[height, width, 3]`, 0..255."""
        best = np.asarray(self._layout(state).joined(state.best))
        array = canvas.cropped(best, self._margin)[0].clip(
            0, 255
        )  # a copy: the buffer will be donated
        if self.settings.preserve_color == "luminance":
            content = images.resize(self.content, max(array.shape))
            return images.keep_luminance(array, images.to_array(content))
        return array

    def picture(self, state: minimize.State) -> Image.Image:
        """Renders the best canvas so far, with the content's transparency."""
        return images.to_image(self.array(state), self._alpha())

    def write(
        self, path: pathlib.Path, state: minimize.State, note: dict[str, Any]
    ) -> None:
        """Writes the best canvas so far with a note; .tif gets 16 bits per channel.

        All hosts call it, as the canvas may be divided over them, and the lead writes.
        """
        array, alpha = self.array(state), self._alpha()
        if not devices.is_lead():
            return
        if path.suffix.lower() not in (".tif", ".tiff"):
            return images.write(path, images.to_image(array, alpha), note)
        if alpha:
            height, width, _ = array.shape
            alpha = alpha.resize((width, height), Image.Resampling.LANCZOS)
            array = np.dstack([array, np.asarray(alpha)])
        images.write(path, array, note)

    def _alpha(self) -> Image.Image | None:
        """Returns the content's opacity, if any of it is transparent."""
        return self.content.getchannel("A") if self.content.mode == "RGBA" else None

    def whole(self, state: minimize.State) -> minimize.State:
        """Returns a state of whole pictures, on this host's first device."""
        return self._layout(state).joined(state)

    def placed(self, state: minimize.State) -> minimize.State:
        """Puts a state of whole pictures of the last size where it is computed."""
        return self._programs[-1].placed(state)

    def _layout(self, state: minimize.State) -> Layout:
        layouts = (program.layout for program in self._programs)
        return next(each for each in layouts if each.shape == state.best.shape)

    @property
    def _margin(self) -> int:
        return self.settings.margin

    def _list_sizes(self) -> list[programs.Size]:
        """Lists the sizes to go through, from coarse to fine."""
        sizes, first = [], 0
        colors = self._regions.colors if self._regions else ()
        for side, steps in style_settings.sizes(self.content.size, self.settings):
            (width, height), *styles = (
                images.fitted_size(picture.size, long_side)
                for picture, long_side in self._scaled(side)
            )
            content = height + 2 * self._margin, width + 2 * self._margin
            styles = tuple((height, width) for width, height in styles)
            numbers = first, first + steps
            sizes.append(programs.Size(content, styles, colors, numbers))
            _, first = numbers
        return sizes

    def _scaled(self, side: int) -> Iterator[tuple[Image.Image, int]]:
        """Yields the content and the styles, each with its long side."""
        yield self.content, side
        for style in self._styles:
            least = math.ceil(SHORTEST_SIDE * max(style.size) / min(style.size))
            yield style, max(least, round(side * self.settings.style_scale))

    def _pictures(
        self, size: programs.Size, layout: Layout
    ) -> tuple[Array, list[Array]]:
        """The content with its margin, and the styles, of one size."""
        side = max(size.content) - 2 * self._margin
        content, *styles = (
            layout.on_host(canvas.from_image(images.resize(*each)))
            for each in self._scaled(side)
        )
        return canvas.framed(content, self._margin), styles

    def _targets(
        self, program: programs.Programs, content: Array, styles: Sequence[Array]
    ) -> Targets:
        _, params = self._network
        layout = program.layout
        of_content, *of_styles = self._guidance(program)
        painted = [
            Picture(each.spread(style), guidance)
            for each, style, guidance in zip(
                program.style_layouts, styles, of_styles, strict=True
            )
        ]
        settings = self.settings
        weights = tuple(
            jnp.float32(x) for x in (settings.alpha, settings.beta, settings.gamma)
        )
        common = params, self._shares(), weights
        params, *others = jax.device_put(common, layout.common)
        shown = Picture(layout.spread(content), of_content)
        targets = program.targets(params, shown, painted, *others)
        if not self._quiet:
            _log_objective(targets, settings, layout.size)
        return targets

    def _enlarged(
        self,
        state: minimize.State,
        before: programs.Programs,
        program: programs.Programs,
    ) -> minimize.State:
        """Carries a state to the next size."""
        whole = before.layout.joined(state)
        size = program.layout.size
        state = minimize.enlarge(whole, program.optimizer, size, self._margin)
        return program.placed(state)

    def _read_masks(self) -> masks.Regions | None:
        if not self.settings.content_masks:
            return None
        return masks.read(
            self.content.size,
            self.settings.content_masks,
            [style.size for style in self._styles],
            [name.strip() for name in self.settings.style_masks.split(",")],
        )

    def _shares(self) -> dict[str, Array]:
        """The styles' shares in each region, of those that have it."""
        blend = np.array(style_blend(self.settings.style_blend, len(self._styles)))
        if not self._regions:
            return {"": jnp.asarray(blend, jnp.float32)}
        shares = {}
        for region, color in enumerate(self._regions.colors):
            parts = blend * [(style == region).any() for style in self._regions.styles]
            if not parts.sum():
                raise ValueError(f"style_blend leaves nothing for the region {color}")
            shares[color] = jnp.asarray(parts / parts.sum(), jnp.float32)
        return shares

    def _guidance(self, program: programs.Programs) -> Iterator[Guidance]:
        """Yields the guidance of the content's regions, then of each style's."""
        layouts = [program.layout, *program.style_layouts]
        if not self._regions:
            yield from ({} for _ in layouts)
            return
        indices = [self._regions.content, *self._regions.styles]
        margins = [self._margin, *[0] * len(self._styles)]
        for layout, index, margin in zip(layouts, indices, margins, strict=True):
            height, width = (n - 2 * margin for n in layout.size)
            count = len(self._regions.colors)
            shares = masks.scaled(index, count, (width, height))
            around = (0, 0), (margin, margin), (margin, margin)
            shares = np.pad(shares, around, "reflect")
            yield programs.guidance(
                layout, self._network, self.settings, shares, self._regions.colors
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


def _recolored(style: Image.Image, content: Image.Image) -> Image.Image:
    arrays = images.to_array(style), images.to_array(content)
    return images.to_image(images.match_colors(*arrays))


def _log_objective(targets: Targets, settings: Settings, size: tuple[int, int]) -> None:
    """Logs what is minimised, in canonical units whatever those of the settings."""
    height, width = (length - 2 * settings.margin for length in size)
    gram = settings.style_loss == "gram"
    symbol = "E" if gram else pathlib.PurePath(settings.style_loss).stem
    terms = [
        f"{settings.alpha * float(factor):.3g} J_content({name})"
        for name, factor in targets.content_factors.items()
    ] + [
        f"{settings.beta * float(factor):.3g} {symbol}({name})"
        for name, factor in targets.style_factors.items()
    ]
    terms.append(f"{settings.gamma * float(targets.variation_factor):.3g} TV")
    logger.info("%d x %d: J = %s", width, height, " + ".join(terms))


def _log_time(program: programs.Programs, steps: int, seconds: float) -> None:
    """Tells how long a size takes, from the time of its first step."""
    minutes, count = steps * seconds / 60, program.layout.count
    logger.info("%d steps in %d blocks: about %.1f minutes", steps, count, minutes)
