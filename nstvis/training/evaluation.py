"""How often a network is right."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import devices
from nstvis.models import Forward, Params

Batch = Mapping[str, Array]


def correct(forward: Forward, params: Params, batch: Batch) -> dict[str, Array]:
    """Counts the labelled images, and those whose class is first or among five.

    A class that is only as likely as another counts as the later of the two, so that
    a network that says the same of all classes is never right.

    Args:
        forward: The network; the last of its activations are the logits.
        params: Its parameters.
        batch: `image` [batch, height, width, 3] and `label` [batch], -1 if there is
            none.
    """
    logits = list(forward(params, batch["image"].astype(jnp.float32)).values())[-1]
    labelled = batch["label"] >= 0
    own = jnp.take_along_axis(logits, jnp.maximum(batch["label"], 0)[:, None], 1)
    rank = (logits >= own).sum(-1)
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
    """Shares of the images whose class is first, and among five.

    Args:
        count: `correct` of a network, compiled.
        params: The network's parameters.
        batches: From `batches.evaluation`.

    Returns:
        `top1` and `top5` from 0 to 1, and `images`, how many were counted.

    Raises:
        ValueError: There is no labelled image that can be read.
    """
    mesh, total = devices.mesh(), None
    for batch in batches:
        counts = count(params, devices.divided(batch, mesh))
        total = counts if total is None else jax.tree.map(jnp.add, total, counts)
    found = {name: int(number) for name, number in (total or {}).items()}
    if not found.get("images"):
        raise ValueError("no image can be read that has a label")
    top1, top5 = (found[name] / found["images"] for name in ("top1", "top5"))
    return {"top1": top1, "top5": top5, "images": found["images"]}
