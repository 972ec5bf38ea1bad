"""J(G) = alpha J_content(C, G) + beta J_style(S, G) + gamma TV(G).

The objective of style transfer and of reconstructions (Gatys, Ecker & Bethge 2015,
arXiv:1508.06576, equation 7, with the total variation of later implementations).
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from nstvis import models
from nstvis.synthesis import losses, minimize, style_losses
from nstvis.synthesis.style_losses import StyleLoss
from nstvis.synthesis.style_settings import Settings, layer_weights, style_blend


class Targets(NamedTuple):
    """What the canvas is compared with, at one size.

    Attributes:
        params: The network's, or what it prepares from them.
        content: The content picture, `[1, height, width, 3]`.
        activations: Its activations P at the content layers.
        styles: The style losses at the style layers, with their targets.
        content_factors: Weight times unit of each content layer's canonical loss.
        style_factors: Likewise of each style layer's.
    """

    params: Any
    content: Array
    activations: dict[str, Array]
    styles: dict[str, StyleLoss]
    content_factors: dict[str, Array | float]
    style_factors: dict[str, Array | float]


def make_targets(
    forward: models.Forward, settings: Settings
) -> Callable[[models.Params, Array, list[Array]], Targets]:
    """Returns the function from parameters, content and styles to `Targets`."""
    units = losses.UNITS[settings.units]
    make_loss = style_losses.find(settings.style_loss)
    content_weights = layer_weights(settings.content_layers)
    style_weights = layer_weights(settings.style_layers)

    def style_unit(loss: StyleLoss, channels: int) -> Array | float:
        return units.style(channels) if units.style else loss.scale

    def targets(params: models.Params, content: Array, styles: list[Array]) -> Targets:
        seen, *painted = (forward(params, image) for image in [content, *styles])
        for name in {**content_weights, **style_weights}:
            if any(activations[name].size == 0 for activations in [seen, *painted]):
                raise ValueError(
                    f"{name} sees nothing of a picture this small: raise size, lower"
                    " scales, or leave that layer out"
                )
        shares = jnp.asarray(style_blend(settings.style_blend, len(styles)))
        by_layer = {
            name: make_loss([activations[name] for activations in painted], shares)
            for name in style_weights
        }
        return Targets(
            params,
            content,
            {name: seen[name] for name in content_weights},
            by_layer,
            {k: w * units.content(seen[k]) for k, w in content_weights.items()},
            {
                k: w * style_unit(by_layer[k], seen[k].shape[-1])
                for k, w in style_weights.items()
            },
        )

    return targets


def make_objective(forward: models.Forward, settings: Settings) -> minimize.Objective:
    """Returns J, for `minimize`; its data are `Targets`.

    With jitter, the canvas and the content are rolled alike by a random number of pixels
    first, so that no pixel keeps its place in the network's strides.
    """
    fixed = settings.optimizer == "lbfgs"  # needs the same objective at every step
    jitter = 0 if fixed else settings.jitter

    def objective(canvas: Array, targets: Targets, key: Array) -> tuple[Array, dict]:
        if fixed:
            key = jax.random.key(settings.seed)
        seen = canvas
        if jitter > 1:
            shift = jax.random.randint(key, (2,), 0, jitter)
            seen, content = (
                jnp.roll(x, shift, (1, 2)) for x in (canvas, targets.content)
            )
            activations = forward(targets.params, content)
            targets = targets._replace(activations=activations)
        activations = forward(targets.params, seen)
        return total_loss(canvas, activations, targets, key, settings)

    return objective


def total_loss(
    canvas: Array,
    activations: dict[str, Array],
    targets: Targets,
    key: Array,
    settings: Settings,
) -> tuple[Array, dict]:
    """Computes J and its terms.

    Args:
        canvas: The picture G, `[1, height, width, 3]`.
        activations: The network's for it, or for it rolled.
        targets: What those are compared with.
        key: For style losses that are random.
        settings: Weights, units and power.
    """
    unit = losses.UNITS[settings.units].variation(canvas)
    variation = unit * losses.total_variation(canvas, settings.tv_power)
    content = sum(
        factor * losses.content_loss(activations[name], targets.activations[name])
        for name, factor in targets.content_factors.items()
    )
    style = sum(
        factor * targets.styles[name](activations[name], _layer_key(key, name))
        for name, factor in targets.style_factors.items()
    )
    loss = settings.alpha * content + settings.beta * style
    loss += settings.gamma * variation
    return loss, {"J_content": content, "J_style": style, "TV": variation}


def _layer_key(key: Array, layer: str) -> Array:
    """A key for one layer, independent of the other layers' and of the jitter's."""
    return jax.random.fold_in(key, zlib.crc32(layer.encode()))
