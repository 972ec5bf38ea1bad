"""The compiled programs of a style transfer, two for each size.

They are kept, so that transfers that differ in pictures and weights alone share them.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nstvis import devices, models
from nstvis.hoisting import hoisted
from nstvis.runs.registry import unknown
from nstvis.synthesis import blocks, losses, masks, minimize, style_losses
from nstvis.synthesis.divided import make_layouts
from nstvis.synthesis.layouts import Layout
from nstvis.synthesis.objective import (
    Guidance,
    Picture,
    Targets,
    make_objective,
    make_targets,
)
from nstvis.synthesis.offloaded import Offloaded
from nstvis.synthesis.optimizers import make_optimizer
from nstvis.synthesis.style_settings import Settings, layer_weights
from nstvis.units.receptive_fields import receptive_fields

logger = logging.getLogger(__name__)

# Settings that are data of the programs, or are seen in the shapes of the pictures.
_DATA = {
    *("alpha", "beta", "gamma", "style_blend", "seed"),
    *("start", "start_noise", "start_colors", "size", "scales", "schedule"),
    *("style_scale", "preserve_color", "content_masks", "style_masks", "block"),
}


class Size(NamedTuple):
    """One of the sizes that a transfer goes through.

    Attributes:
        content: Height and width of the canvas, margin included, in pixels.
        styles: Height and width of each style.
        regions: Colours of the masks; none without masks.
        steps: The first step and the one after the last.
    """

    content: tuple[int, int]
    styles: tuple[tuple[int, int], ...]
    regions: tuple[str, ...]
    steps: tuple[int, int]


class Programs(NamedTuple):
    """What is compiled for one size.

    Attributes:
        layout: The canvas's and the content's.
        style_layouts: The styles'.
        optimizer: The optimiser.
        targets: From parameters, content, styles, shares and weights to `Targets`.
        step: One step of `minimize`.
        flops: Floating-point operations of a step on each device, by XLA's count.
        memory: Bytes that they need on a device.
    """

    layout: Layout
    style_layouts: list[Layout]
    optimizer: optax.GradientTransformation
    targets: jax.stages.Compiled
    step: jax.stages.Compiled
    flops: float
    memory: int

    def start(self, canvas: jax.Array) -> minimize.State:
        """Returns the state before the first step, from a whole canvas."""
        return self.placed(minimize.start(canvas, self.optimizer))

    def placed(self, state: minimize.State) -> minimize.State:
        """Puts a state of a whole canvas where it is computed."""
        return self.layout.placed(state)


def network(settings: Settings) -> tuple[models.Forward, models.Params]:
    """Loads the settings' network, up to the last layer that is looked at.

    Raises:
        ValueError: There is no such network, weights or layer.
    """
    names = models.layers(settings.model)
    for name in (layers := _layers(settings)):
        if name not in names:
            raise ValueError(unknown(f"layer of {settings.model}", name, names))
    last = max(layers, key=names.index, default=names[0])
    forward, params = _load(
        settings.model,
        settings.weights,
        settings.preprocessing,
        settings.pooling,
        last,
        settings.seed,
        settings.precision,
    )
    scale = losses.UNITS[settings.units].white / 255
    return lambda params, images: forward(params, scale * images), params


def compiled(
    settings: Settings,
    size: Size,
    block: int,
    accelerator: Any = None,
) -> Programs:
    """Compiles the programs of one size, unless they are kept from another transfer.

    Args:
        settings: The settings.
        size: The size.
        block: Side of the blocks, in pixels; 0 for none.
        accelerator: The device that computes blocks of pictures on the host; None for
            pictures on the device, or devices, that compute them.
    """
    values = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(Settings)
        if field.name not in _DATA
    }
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return _compiled(json.dumps(values), size, block, device, accelerator)


def guidance(
    layout: Layout,
    network: tuple[models.Forward, models.Params],
    settings: Settings,
    shares: np.ndarray,
    regions: Sequence[str],
) -> Guidance:
    """Returns the guidance of a picture's regions at the style layers.

    Args:
        layout: Of the picture.
        network: Its function and parameters.
        settings: With the style layers.
        shares: The regions' shares of the pixels, `[regions, height, width]`.
        regions: Their colours.
    """
    forward, params = network
    seen, whole = (
        jax.eval_shape(forward, params, jax.ShapeDtypeStruct(shape, jnp.float32))
        for shape in (layout.seen, (1, *layout.size, 3))
    )
    fields = receptive_fields(forward, params, blocks.SIDE, blocks.SIDE)
    guidance = {}
    for layer in layer_weights(settings.style_layers):
        guides = masks.guidance(shares, fields[layer], whole[layer].shape[1:])
        guidance[layer] = {
            region: layout.cut(guide, layer, seen[layer].shape[1:3])
            for region, guide in zip(regions, guides, strict=True)
        }
    return guidance


@functools.lru_cache(2)
def _load(
    model: str,
    weights: str,
    preprocessing: str,
    pooling: str,
    last: str,
    seed: int,
    precision: str,
) -> tuple[models.Forward, models.Params]:
    return models.load(
        model,
        weights,
        preprocessing=preprocessing,
        pooling=pooling,
        last=last,
        seed=seed,
        precision=precision,
    )


@functools.lru_cache(32)
def _compiled(
    values: str, size: Size, block: int, device: Any, accelerator: Any
) -> Programs:
    settings = Settings(**json.loads(values))
    height, width = (n - 2 * settings.margin for n in size.content)
    logger.info("compiling a step at %d x %d pixels", width, height)
    forward, params = network(settings)
    layout, *style_layouts = layouts = _layouts(settings, size, block, accelerator)
    content, *styles = (
        _abstract(each, forward, params, settings, size.regions) for each in layouts
    )
    seen = str(layout.seen)
    prepare, rest = _prepared(forward, params, {each.seen for each in layouts})
    from_pictures = make_targets(rest, settings, layout, style_layouts)

    def targets(params: models.Params, *arguments: Any) -> Targets:
        made = from_pictures(prepare(params), *arguments)
        return made._replace(params={seen: made.params[seen]})

    shares = dict.fromkeys(size.regions or ("",), jnp.zeros(len(styles)))
    others = jax.device_put((shares, (jnp.float32(0),) * 3), layout.common)
    params = jax.device_put(params, layout.common)
    lowered = jax.jit(targets).lower(params, content, styles, *others)
    options = dict[str, bool | str](devices.compile_options())
    targets_program = lowered.compile(options)
    optimizer = make_optimizer(
        settings.optimizer,
        settings.learning_rate,
        settings.smoothing,
        layout,
        b2=settings.b2,
        annealed=range(*size.steps) if settings.annealing else None,
    )
    state = jax.eval_shape(_start(optimizer), content.pixels)
    shardings = layout.shardings(state)
    step = minimize.make_step(
        make_objective(rest, settings, layout),
        optimizer,
        minimize.within_range if settings.clip else lambda canvas: canvas,
        shardings,
    )
    made = _placed(lowered.out_info, targets_program.output_shardings)
    state = _placed(state, shardings) if shardings else state
    step_arguments = state, made, jax.random.key(0)
    step_program = step.lower(*step_arguments).compile(options)
    counted = step_program
    if accelerator:  # XLA does not see what it computes
        plain = make_objective(rest, settings, Layout(layout.size, layout.grid))
        counted = minimize.make_step(plain, optimizer).lower(*step_arguments)
    return Programs(
        layout,
        style_layouts,
        optimizer,
        targets_program,
        step_program,
        _flops(layout, counted),
        max(map(devices.needed_memory, (targets_program, step_program))),
    )


def _prepared(
    forward: models.Forward, params: models.Params, shapes: set[tuple[int, ...]]
) -> tuple[Any, models.Forward]:
    """Splits a network as `hoisted`, for images of several shapes."""
    parts = {
        str(shape): hoisted(forward, params, jax.ShapeDtypeStruct(shape, jnp.float32))
        for shape in shapes
    }

    def prepare(params: models.Params) -> dict[str, Any]:
        each = {shape: before(params) for shape, (before, _) in parts.items()}
        return each | {"": params}

    def rest(prepared: Any, images: jax.Array) -> dict[str, jax.Array]:
        if (shape := str(images.shape)) in parts:
            return parts[shape][1](prepared[shape], images)
        return forward(prepared[""], images)

    return prepare, rest


def _flops(layout: Layout, program: jax.stages.Compiled | jax.stages.Lowered) -> float:
    flops = (program.cost_analysis() or {}).get("flops", 0.0)
    return layout.count_each * flops  # as XLA counts a loop over blocks once


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _start(optimizer: optax.GradientTransformation):
    return functools.partial(minimize.start, optimizer=optimizer)


def _layers(settings: Settings) -> list[str]:
    content, style = map(
        layer_weights, (settings.content_layers, settings.style_layers)
    )
    return list({**content, **style})


def _layouts(
    settings: Settings, size: Size, block: int, accelerator: Any
) -> list[Layout]:
    """Returns the layouts of the canvas and of each style."""
    pictures = [size.content, *size.styles]
    if style_losses.find(settings.style_loss).statistics is None or not (
        block or accelerator or jax.device_count() > 1
    ):
        return [Layout(picture) for picture in pictures]
    forward, params = network(settings)
    fields = blocks.layer_fields(forward, params, _layers(settings))
    if accelerator:
        return [
            Offloaded(
                each, blocks.cut(each, blocks.counts(each, block), fields), accelerator
            )
            for each in pictures
        ]
    return make_layouts(size.content, settings.jitter, size.styles, fields, block)


def _abstract(
    layout: Layout,
    forward: models.Forward,
    params: models.Params,
    settings: Settings,
    regions: Sequence[str],
) -> Any:
    """Returns the shapes of a picture and of its regions' guidance."""
    image = jax.ShapeDtypeStruct(layout.seen, jnp.float32)
    maps = jax.eval_shape(forward, params, image)

    def guide(layer: str) -> jax.ShapeDtypeStruct:
        shape = layout.count, *maps[layer].shape[1:3]
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.of_blocks)

    guidance = {
        layer: dict.fromkeys(regions, guide(layer))
        for layer in (layer_weights(settings.style_layers) if regions else ())
    }
    pixels = jax.ShapeDtypeStruct(
        layout.shape, jnp.float32, sharding=layout.of_pictures
    )
    return Picture(pixels, guidance)  # pyright: ignore[reportArgumentType]
