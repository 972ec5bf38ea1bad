"""J(G) = alpha J_content(C, G) + beta J_style(S, G) + gamma TV(G).

The objective of style transfer and of reconstructions (Gatys, Ecker & Bethge 2015,
arXiv:1508.06576, equation 7, with the total variation of later implementations). It is a
function of sums over positions, so that a picture may be cut into blocks and divided over
devices (`layouts`), and each of its regions have a style of its own (`masks`).
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from nstvis import models
from nstvis.synthesis import losses, minimize, style_losses
from nstvis.synthesis.blocks import Block
from nstvis.synthesis.layouts import Layout, OfBlock
from nstvis.synthesis.style_losses import StyleLoss
from nstvis.synthesis.style_settings import Settings, layer_weights

# By layer, and by the colour of a region in the masks: T at the positions of each block,
# `[blocks, height, width]`. Empty without masks.
Guidance = Mapping[str, Mapping[str, Array]]
# The styles' shares in each region, `[styles]`; the only region is "" without masks.
Shares = Mapping[str, Array]
# Alpha, beta and gamma.
Weights = tuple[Array | float, Array | float, Array | float]


class Picture(NamedTuple):
    """A picture that a network is shown.

    Attributes:
        pixels: As its layout divides them.
        guidance: Of its regions.
    """

    pixels: Array
    guidance: Guidance


class Targets(NamedTuple):
    """What the canvas is compared with, at one size.

    Styles and their factors are by layer, or by layer and region, as in "conv1 #ff0000".

    Attributes:
        params: The network's, or what it prepares from them.
        content: The content's pixels, if they are to be rolled at every step.
        activations: Its activations P at the content layers, each block's own part along
            the first axis.
        guidance: Of the content's regions.
        styles: The style losses, with their targets.
        style_factors: Weight times unit of each.
        content_factors: Likewise of each content layer's canonical loss.
        variation_factor: Unit of the total variation.
        weights: Alpha, beta and gamma, which are data so that one program serves all.
    """

    params: Any
    content: Any
    activations: dict[str, Array]
    guidance: Guidance
    styles: dict[str, StyleLoss]
    style_factors: dict[str, Array | float]
    content_factors: dict[str, Array | float]
    variation_factor: Array | float
    weights: Weights


class Sums(NamedTuple):
    """Sums over positions, of a block or of the whole picture.

    Attributes:
        content: J_content of each layer.
        style: What the style losses take, keyed like `Targets.styles`.
    """

    content: dict[str, Array]
    style: dict[str, Any]


def make_targets(
    forward: models.Forward,
    settings: Settings,
    layout: Layout,
    style_layouts: Sequence[Layout],
) -> Callable[[models.Params, Picture, Sequence[Picture], Shares, Weights], Targets]:
    """Returns the function from parameters, pictures, shares and weights to `Targets`.

    Args:
        forward: The network.
        settings: What is compared.
        layout: The content's, and the canvas's.
        style_layouts: The styles'.
    """
    units = losses.UNITS[settings.units]
    content_weights = layer_weights(settings.content_layers)
    layers = [*content_weights, *layer_weights(settings.style_layers)]
    seen = _make_seen(forward, layout, content_weights)

    def targets(
        params: models.Params,
        content: Picture,
        styles: Sequence[Picture],
        shares: Shares,
        weights: Weights,
    ) -> Targets:
        for each in (*style_layouts, layout):  # of the last, which are needed below
            shapes = _shapes(forward, params, each, layers)
        activations, squares = layout.mapped(seen, content.pixels, params)
        painted = [
            style_sums(forward, settings, each, params, style)
            for each, style in zip(style_layouts, styles, strict=True)
        ]
        content_factors = {
            name: weight * units.content(squares[name].sum(), math.prod(shapes[name]))
            for name, weight in content_weights.items()
        }
        return Targets(
            params,
            content.pixels if _jitter(settings) else None,
            activations,
            content.guidance,
            *_style_targets(settings, shapes, painted, shares),
            content_factors=content_factors,
            variation_factor=units.variation(math.prod(layout.size) * 3),
            weights=weights,
        )

    return targets


def _make_seen(
    forward: models.Forward, layout: Layout, layers: Iterable[str]
) -> OfBlock:
    """Returns what maps a block to its own activations, and their sums of squares."""

    def seen(pixels, block, _, params):
        found = forward(params, pixels)
        parts = {name: layout.own_part(block, name, found[name][0]) for name in layers}
        squares = {
            name: 2 * losses.content_loss(part, jnp.zeros(()), owned)
            for name, (part, owned) in parts.items()
        }
        return {name: part for name, (part, _) in parts.items()}, squares

    return seen


def _style_targets(
    settings: Settings,
    shapes: Mapping[str, tuple[int, ...]],
    painted: Sequence[Mapping[str, Any]],
    shares: Shares,
) -> tuple[dict[str, StyleLoss], dict[str, Array | float]]:
    """Returns the style losses, and the factor of each."""
    make_loss = style_losses.find(settings.style_loss).make
    unit = losses.UNITS[settings.units].style
    terms, factors = {}, {}
    for layer, weight in layer_weights(settings.style_layers).items():
        for region, parts in shares.items():
            name = term(layer, region)
            loss = make_loss([sums[name] for sums in painted], parts)
            scale = unit(shapes[layer][-1]) if unit else loss.scale
            terms[name], factors[name] = loss, weight * scale / len(shares)
    return terms, factors


def make_objective(
    forward: models.Forward, settings: Settings, layout: Layout
) -> minimize.Objective:
    """Returns J, for `minimize`; its data are `Targets`.

    With jitter, the canvas and the content are rolled alike by a random number of pixels
    first, so that no pixel keeps its place in the network's strides.
    """
    jitter = _jitter(settings)

    def sums(pixels, block, own, params):
        wanted, guidance = own
        if jitter:  # the content's pixels are channels beside the canvas's
            pixels, content = jnp.split(pixels, 2, -1)
            wanted = forward(params, lax.stop_gradient(content))
            wanted = {
                name: layout.own_part(block, name, wanted[name][0])[0]
                for name in layer_weights(settings.content_layers)
            }
        found = forward(params, pixels)
        content = {
            name: _content_loss(layout, block, name, found[name], target)
            for name, target in wanted.items()
        }
        return Sums(content, _style(found, block, guidance, settings, layout))

    def objective(canvas: Array, targets: Targets, key: Array) -> tuple[Array, dict]:
        if settings.optimizer == "lbfgs":  # needs the same objective at every step
            key = jax.random.key(0)
        picture, shift, activations = canvas, None, targets.activations
        if jitter:
            shift = jax.random.randint(key, (2,), 0, jitter)
            picture = jnp.concatenate([canvas, targets.content], -1)
            activations = {}
        each = activations, targets.guidance
        total, variation = layout.total(
            sums, picture, each, targets.params, shift, settings.tv_power
        )
        return loss(total, variation, targets, key)

    return objective


def loss(
    sums: Sums, variation: Array, targets: Targets, key: Array
) -> tuple[Array, dict]:
    """Computes J and its terms.

    Args:
        sums: Of the whole picture.
        variation: Its total variation.
        targets: What they are compared with.
        key: For style losses that are random.
    """
    alpha, beta, gamma = targets.weights
    variation *= targets.variation_factor
    content = sum(
        factor * sums.content[name] for name, factor in targets.content_factors.items()
    )
    style = sum(
        factor * targets.styles[name](sums.style[name], _term_key(key, name))
        for name, factor in targets.style_factors.items()
    )
    total = alpha * content + beta * style + gamma * variation
    return total, {"J_content": content, "J_style": style, "TV": variation}


def style_sums(
    forward: models.Forward,
    settings: Settings,
    layout: Layout,
    params: models.Params,
    picture: Picture,
) -> dict[str, Any]:
    """Returns what the style losses take of a picture, keyed like `Targets.styles`."""

    def sums(pixels, block, guidance, params):
        return _style(forward(params, pixels), block, guidance, settings, layout)

    total, _ = layout.total(sums, picture.pixels, picture.guidance, params)
    return total


def whole_sums(
    activations: Mapping[str, Array], targets: Targets, settings: Settings
) -> Sums:
    """Returns the sums over a picture's positions, from its activations."""
    content = {
        name: losses.content_loss(activations[name], x)
        for name, x in targets.activations.items()
    }
    return Sums(content, _style(activations, None, {}, settings, None))


def term(layer: str, region: str) -> str:
    """Returns the name of a layer's style loss in a region."""
    return f"{layer} {region}" if region else layer


def _style(
    activations: Mapping[str, Array],
    block: Block | None,
    guidance: Guidance,
    settings: Settings,
    layout: Layout | None,
) -> dict[str, Any]:
    statistics = style_losses.find(settings.style_loss).statistics
    found = {}
    for layer in layer_weights(settings.style_layers):
        x = activations[layer]
        owned = layout and layout.owned(block, layer, x)
        for region, guide in guidance.get(layer, {"": None}).items():
            if guide is not None and owned is not None:
                guide = owned * guide
            guide = owned if guide is None else guide
            found[term(layer, region)] = (
                statistics(x, guide) if statistics else x.astype(jnp.float32)
            )
    return found


def _content_loss(
    layout: Layout, block: Block | None, layer: str, activations: Array, target: Array
) -> Array:
    """J_content of the positions that a block owns; the target is of its own part."""
    activations, owned = layout.own_part(block, layer, activations[0])
    return losses.content_loss(activations, target, owned)


def _shapes(
    forward: models.Forward,
    params: models.Params,
    layout: Layout,
    layers: Sequence[str],
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a whole picture's activations."""
    image = jax.ShapeDtypeStruct((1, *layout.size, 3), jnp.float32)
    activations = jax.eval_shape(forward, params, image)
    for name in layers:
        if not math.prod(activations[name].shape):
            raise ValueError(
                f"{name} sees nothing of a picture this small: raise size, lower scales,"
                " or leave that layer out"
            )
    return {name: x.shape for name, x in activations.items()}


def _jitter(settings: Settings) -> int:
    """Returns the pixels below which pictures are rolled; 0 if they are not."""
    fixed = settings.optimizer == "lbfgs" or settings.jitter < 2
    return 0 if fixed else settings.jitter


def _term_key(key: Array, name: str) -> Array:
    """A key for one style loss, independent of the others' and of the jitter's."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
