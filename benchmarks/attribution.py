"""Deconvnet attributions of AlexNet's units, against PyTorch with hooks.

    python benchmarks/attribution.py

For patches of 224-pixel photographs, one unit's activation is attributed to the pixels
by the deconvnet's rule. Ours is what `--experiment=units` does: windows of the images
around the receptive fields, in batches, cropped and scaled to be drawn. PyTorch's are
networks that end at the layer, with a hook on each ReLU, on whole images: in batches,
and one at a time, as the published tools do it. None of them draws.

The last rows are nine pictures of each of the 1,152 units: 10,368 of them.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import report, turns
from benchmarks.report import Measure, Row
from benchmarks.train import photograph
from benchmarks.turns import Take, Turn

SIZE, BATCH, PICTURES = 224, 32, 96
UNITS = {"conv1": 64, "conv2": 192, "conv3": 384, "conv4": 256, "conv5": 256}


class Photographs:
    """As `nstvis.units.patches.Images` shows them."""

    size = SIZE

    def __init__(self) -> None:
        import io

        import numpy as np
        from PIL import Image, ImageOps

        self._images = [
            np.asarray(
                ImageOps.fit(Image.open(io.BytesIO(photograph(i))), (SIZE, SIZE))
            )
            for i in range(BATCH)
        ]

    def __getitem__(self, index: int) -> Any:
        return self._images[index]

    def stack(self) -> Any:
        import numpy as np

        return np.stack(self._images).astype(np.float32)


def patches(layer: str, columns: int) -> tuple[Any, Any, Any]:
    """Returns images, units and positions of what is attributed."""
    import numpy as np

    rng = np.random.default_rng(0)
    units = rng.permutation(UNITS[layer])[:PICTURES]
    units = np.resize(units, PICTURES)
    return (
        np.arange(PICTURES) % BATCH,
        units,
        rng.integers(0, columns, (PICTURES, 2)),
    )


def ours(layer: str) -> Take:
    """Our attributions, as a survey of units makes them."""
    import jax
    import numpy as np

    from nstvis import attribution, models
    from nstvis.units import patch_attributions
    from nstvis.units.receptive_fields import receptive_fields
    from nstvis.units.table import Layer, RankedPatches

    forward, params = models.load("alexnet", "random", last=layer)
    pictures, fields = Photographs(), receptive_fields(forward, params, SIZE, SIZE)
    images, units, positions = patches(layer, fields[layer].columns)
    activations = jax.jit(lambda *x: forward(*x)[layer])(params, pictures.stack())
    rank, shape = np.arange(PICTURES), (UNITS[layer], PICTURES)
    image, score = np.full(shape, -1), np.zeros(shape, np.float32)
    position = np.zeros((*shape, 2), int)
    image[units, rank], position[units, rank] = images, positions
    score[units, rank] = np.asarray(activations)[images, *positions.T, units]
    box = fields[layer].boxes(np.arange(shape[0])[:, None], position)
    top, none = (
        RankedPatches(score=score, image=image, position=position, box=box),
        score,
    )
    wanted = Layer(
        top=top,
        least=top,
        by_class=top,
        mean=none,
        std=none,
        sparsity=none,
        histogram=none,
        class_mean=none,
    )
    network = attribution.ruled(forward, "deconvnet")

    def take(batches: Sequence[Any]) -> None:
        for _ in batches:
            made = patch_attributions.project(
                *(network, params, layer, wanted, fields[layer]),
                *(pictures, BATCH),  # pyright: ignore[reportArgumentType]
            )
            assert sum(len(cells) for *_, cells in made) == PICTURES

    return take


def theirs(layer: str, batch: int) -> Take:
    """The same in PyTorch, `batch` at a time."""
    import torch
    from torch import nn

    from benchmarks import torch_networks

    network = torch_networks.convolutions("alexnet", layer, inplace=False)
    network.requires_grad_(False)
    for relu in (x for x in network if isinstance(x, nn.ReLU)):
        relu.register_full_backward_hook(
            lambda module, inwards, outwards: (outwards[0].clamp(min=0),)
        )
    whole = torch.from_numpy(Photographs().stack()).permute(0, 3, 1, 2)
    columns = network(whole[:1]).shape[-1]
    images, units, positions = map(torch.from_numpy, patches(layer, columns))

    def take(batches: Sequence[Any]) -> None:
        for _, start in itertools.product(batches, range(0, PICTURES, batch)):
            some = slice(start, start + batch)
            pixels = whole[images[some]].requires_grad_()
            activations = network(torch_networks.normalized(pixels))
            one = torch.arange(len(pixels)), units[some], *positions[some].T
            seed = torch.zeros_like(activations)
            seed[one] = activations[one].detach()
            activations.backward(seed)
            assert pixels.grad is not None

    return take


def work(side: str, layer: str) -> None:
    """Attributes activations."""
    makers = {
        "ours": ours,
        "torch": lambda layer: theirs(layer, BATCH),
        "torch_one": lambda layer: theirs(layer, 1),
    }
    turns.serve(PICTURES, itertools.repeat(None), {"task": makers[side](layer)})


def total(layers: Sequence[Sequence[Turn]]) -> list[Turn]:
    """From the turns of all layers to those in which each had nine pictures a unit."""
    wanted = [9 * count for count in UNITS.values()]
    return [
        Turn(
            sum(wanted) / sum(n / x.speed for n, x in zip(wanted, turn, strict=True)),
            max(x.peak or 0 for x in turn),
        )
        for turn in zip(*layers, strict=True)
    ]


def rows(measure: Measure, quick: bool) -> Iterator[Row | str]:
    """Measures each layer, and adds them up."""
    tasks = ["ours task", "torch task", "torch_one task"]
    against = ["PyTorch, in batches", "PyTorch, one at a time"]
    measured = []
    for layer in ("conv2", "conv5") if quick else UNITS:
        ours, *others = measure(layer, tasks, 1)
        measured.append([ours, *others])
        for name, theirs in zip(against, others, strict=True):
            yield Row(layer, name, ours, theirs)
    if quick:
        return
    ours, *others = map(total, zip(*measured, strict=True))
    for name, theirs in zip(against, others, strict=True):
        yield Row(f"all {9 * sum(UNITS.values()):,}", name, ours, theirs)
    minutes = [9 * sum(UNITS.values()) / turns.median(x) / 60 for x in [ours, *others]]
    told = ", ".join(f"{x:.1f}" for x in minutes)
    yield f"All of them take {told} minutes: ours, PyTorch in batches, one at a time."


if __name__ == "__main__":
    report.main("pictures/s", work, rows)
