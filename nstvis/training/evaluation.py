"""Top-1 and top-5 accuracy."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import devices
from nstvis.models import Forward, Params
from nstvis.training.step import Batch


def correct(forward: Forward, params: Params, batch: Batch) -> dict[str, Array]:
    """Counts the labelled images, and those whose class ranks first or in the top five.

    A tie counts against the network, or one with constant logits would be right; so
    does NaN.

    Args:
        forward: The network; the last of its activations are the logits.
        params: Its parameters.
        batch: `image` [batch, height, width, 3] and `label` [batch], -1 if there is
            none.

    Returns:
        `images`, `top1` and `top5`.
    """
    logits = list(forward(params, batch["image"].astype(jnp.float32)).values())[-1]
    labelled = batch["label"] >= 0
    label = jnp.maximum(batch["label"], 0)[:, None]
    rank = (~(logits < jnp.take_along_axis(logits, label, 1))).sum(-1)
    return {
        "images": labelled.sum(),
        "top1": ((rank <= 1) & labelled).sum(),
        "top5": ((rank <= 5) & labelled).sum(),
    }


def accuracy(
    count: Callable[[Params, Batch], dict[str, Array]],
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, float]:
    """Computes the shares of images whose class ranks first, and in the top five.

    Args:
        count: `correct` of a network, compiled.
        params: The network's parameters.
        batches: From `pipeline.evaluation`.

    Returns:
        `top1` and `top5` from 0 to 1, and `images`, how many were counted.

    Raises:
        ValueError: There is no labelled image that can be decoded.
    """
    mesh, total = devices.mesh(), None
    for batch in batches:
        counts = count(params, devices.divided(batch, mesh))
        total = counts if total is None else jax.tree.map(jnp.add, total, counts)
    sums = {name: int(number) for name, number in (total or {}).items()}
    if not sums.get("images"):
        raise ValueError("no image can be read that has a label")
    top1, top5 = (sums[name] / sums["images"] for name in ("top1", "top5"))
    return {"top1": top1, "top5": top5, "images": sums["images"]}
