"""Deconvnet attributions of AlexNet's units, against PyTorch with hooks.

    python benchmarks/attribution.py

For patches of 224-pixel photographs, one unit's activation is attributed to the pixels
by the deconvnet's rule. Ours is what `--experiment=units` does: windows of the images
around the receptive fields, in batches, cropped and scaled to be drawn. PyTorch's are
networks that end at the layer, with a hook on each ReLU, on whole images: in batches,
and one at a time, as the published tools do it. None of them draws.

Each side is a process of its own, and they take turns; while one works, the others are
stopped. The table gives pictures per second: the median of turns and the highest. From
the medians follows how long nine pictures of each of the 1,152 units take.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import turns
from benchmarks.train import photograph
from benchmarks.turns import Take

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

    forward, params = models.load("alexnet", "random")
    pictures, fields = Photographs(), receptive_fields(forward, params, SIZE, SIZE)
    images, units, positions = patches(layer, fields[layer].columns)
    activations = jax.jit(forward)(params, pictures.stack())
    rank, shape = np.arange(PICTURES), (UNITS[layer], PICTURES)
    image, score = np.full(shape, -1), np.zeros(shape, np.float32)
    position = np.zeros((*shape, 2), int)
    image[units, rank], position[units, rank] = images, positions
    score[units, rank] = np.asarray(activations[layer])[images, *positions.T, units]
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


def torch_network(layer: str) -> Any:
    """AlexNet up to a layer, whose ReLUs pass back what is above 0."""
    import torch
    from torch import nn

    shapes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1)]
    shapes += [(384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    parts: list[nn.Module] = []
    for number, shape in enumerate(shapes[: list(UNITS).index(layer) + 1]):
        parts += [nn.MaxPool2d(3, 2)] if number in (1, 2) else []
        relu = nn.ReLU()
        relu.register_full_backward_hook(
            lambda module, inwards, outwards: (outwards[0].clamp(min=0),)
        )
        parts += [nn.Conv2d(*shape), relu]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network: Any = nn.Sequential(*parts).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def theirs(layer: str, batch: int) -> Take:
    """The same in PyTorch, `batch` at a time."""
    import torch

    network, pictures = torch_network(layer), Photographs()
    stack = torch.from_numpy(pictures.stack()).permute(0, 3, 1, 2)
    whole = stack.contiguous(memory_format=torch.channels_last)
    columns = network(whole[:1]).shape[-1]
    images, units, positions = map(torch.from_numpy, patches(layer, columns))

    def take(batches: Sequence[Any]) -> None:
        for _, start in itertools.product(batches, range(0, PICTURES, batch)):
            some = slice(start, start + batch)
            pixels = whole[images[some]].requires_grad_()
            activations = network((pixels - 127) / 58)
            one = torch.arange(len(pixels)), units[some], *positions[some].T
            seed = torch.zeros_like(activations)
            seed[one] = activations[one].detach()
            activations.backward(seed)
            assert pixels.grad is not None

    return take


def work(side: str, layer: str) -> None:
    """A worker."""
    makers = {"ours": ours, "torch": lambda x: theirs(x, BATCH)}
    take = theirs(layer, 1) if side == "one" else makers[side](layer)
    turns.serve(PICTURES, itertools.repeat(None), {"pictures": take})


def main() -> None:
    """Prints the table, or is one of its workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        return work(flags.worker, flags.case)
    print(f"{len(os.sched_getaffinity(0))} cores; pictures/s: median / highest\n")
    print("| layer | ours | torch | torch, one at a time | ours : torch | : one |")
    print("|---" * 6 + "|")
    minutes = dict.fromkeys(("ours", "torch", "one"), 0.0)
    for layer, units in UNITS.items():
        sides = {side: ["pictures"] for side in minutes}
        told = turns.compare(__file__, layer, sides, 1)
        speeds = {side: turns.median(told[side, "pictures"]) for side in minutes}
        for side in minutes:
            minutes[side] += 9 * units / speeds[side] / 60
        cells = " | ".join(turns.both(told[side, "pictures"]) for side in minutes)
        ratios = [speeds["ours"] / speeds[side] for side in ("torch", "one")]
        print(f"| {layer} | {cells} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)
    cells = " | ".join(f"{minutes[side]:.1f} minutes" for side in minutes)
    ratios = [minutes[side] / minutes["ours"] for side in ("torch", "one")]
    print(f"| all 10,368 | {cells} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
