"""The scan of all units, against the network's forward pass and PyTorch.

    python benchmarks/scan.py

A scan's step keeps, of every unit of the layers after a ReLU and of the logits, the 18
highest and the 9 lowest activations, the highest of each of 200 classes, where they are,
and a histogram; in float32. It is compared to the network alone, compiled to return the
logits, and to PyTorch as its users would write it: channels last, a hook on each such
layer that takes its maximum over space and merges the 9 highest with `torch.topk`.

The step runs on batches of noise which are in memory and always new, after as many as
the table says; `first` are the first four, each image of which is in some unit's top.

From files, JPEGs of 500 x 375 are read, decoded, scaled and scanned, with everything on
the same cores, so that at best an image takes as long as its decoding and its forward
pass together: the bound. There are 256 different photographs under 5,120 names, so that
no unit's top changes after these. PyTorch's is a `DataLoader` with a worker per core.

Each side is a process of its own, and they take turns (a step and its forward pass in
the same process); while one works, the others are stopped. The tables give images per
second: the median of turns and the highest. MB is a process's peak memory.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import turns
from benchmarks.train import photograph

CLASSES, K = 200, 9
SIZES = {"pool": 2 * K, "k": K, "classes": CLASSES, "per_class": 1}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and what it is run on."""

    weights: str
    size: int  # of the images
    batch: int
    before: int  # batches before a step is measured
    steps: int  # in a turn
    files: int  # batches in a turn from files


CASES = {
    "alexnet_small": Case("bundled", 64, 128, before=100, steps=4, files=6),
    "alexnet": Case("random", 224, 32, before=200, steps=4, files=16),
}
Batches = Iterable[Mapping[str, Any]]
Run = Callable[[Batches], None]


def noise(case: Case) -> Iterator[Mapping[str, Any]]:
    """Batches without end, which cost what any batches cost."""
    import numpy as np

    rng, shape = np.random.default_rng(0), (case.batch, case.size, case.size, 3)
    for first in itertools.count(0, case.batch):
        yield {
            "image": rng.integers(0, 256, shape, np.uint8),
            "label": rng.integers(0, CLASSES, case.batch, np.int32),
            "index": np.arange(first, first + case.batch, dtype=np.int32),
        }


def photographs(folder: Path) -> None:
    """Writes 256 photographs, each of them under twenty names."""
    for i in range(256):
        names = [folder / f"{i % 8}" / f"{copy:02}_{i:03}.jpg" for copy in range(20)]
        names[0].parent.mkdir(exist_ok=True)
        names[0].write_bytes(photograph(i))
        for name in names[1:]:
            name.hardlink_to(names[0])


def units(model: str) -> dict[str, int]:
    """The layers that are scanned, and how many units each has."""
    import jax

    from nstvis import models

    forward, params = models.load(model, "random")
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    found, names = jax.eval_shape(forward, params, image), models.layers(model)
    scanned = [name for name in names if f"{name}_pre" in names] + names[-1:]
    return {name: found[name].shape[-1] for name in scanned}


def ours(model: str) -> tuple[Run, Callable[[], Run]]:
    """Our forward pass, and what starts a scan."""
    import jax
    import jax.numpy as jnp

    from nstvis import devices, models
    from nstvis.units import maxima

    forward, params = models.load(model, CASES[model].weights)
    mesh, scanned = devices.mesh(), units(model)
    scan = maxima.Scan(forward, dict.fromkeys(scanned, (0, 0)), 1, mesh)

    @jax.jit
    def bare(params: Any, image: jax.Array) -> jax.Array:
        return [*forward(params, image.astype(jnp.float32)).values()][-1]

    def run_forward(batches: Batches) -> None:
        logits = None
        for batch in batches:
            part = devices.divided(batch, mesh)
            jax.block_until_ready(logits)
            logits = bare(params, part["image"])
        jax.block_until_ready(logits)

    def start() -> Run:
        state = scan.start(sum(scanned.values()), **SIZES)

        def run(batches: Batches) -> None:
            nonlocal state
            for batch in batches:
                part = devices.divided(batch, mesh)
                jax.block_until_ready(state)
                state = scan.step(state, params, part)
            jax.block_until_ready(state)

        return run

    return run_forward, start


def torch_network(model: str) -> Any:
    """PyTorch's network; nothing of JAX is loaded."""
    from torch import nn

    window, stride, padding, cells, width, classes = {
        "alexnet_small": (7, 2, 3, 3, 768, CLASSES),
        "alexnet": (11, 4, 2, 6, 4096, 1000),
    }[model]
    network = nn.Sequential(
        *(nn.Conv2d(3, 64, window, stride, padding), nn.ReLU(inplace=True)),
        nn.MaxPool2d(3, 2),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)),
        nn.MaxPool2d(3, 2),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(cells),
        nn.Flatten(),
        *(nn.Linear(256 * cells**2, width), nn.ReLU(inplace=True)),
        *(nn.Linear(width, width), nn.ReLU(inplace=True)),
        nn.Linear(width, classes),
    )
    return network.eval()


def theirs(model: str) -> tuple[Run, Callable[[], Run]]:
    """The same in PyTorch: the forward pass, and what starts a scan."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = torch_network(model).to(memory_format=torch.channels_last)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    index = torch.empty(0)

    @torch.no_grad()
    def run_forward(batches: Batches) -> None:
        nonlocal index
        for batch in batches:
            index = torch.as_tensor(batch["index"])
            images = torch.as_tensor(batch["image"]).permute(0, 3, 1, 2)
            network((images.float() - mean) / std)

    def start() -> Run:
        best = {}

        def hook(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
            score, place = output.reshape(*output.shape[:2], -1).max(2)
            found = [score, index[:, None].expand_as(place), place]
            if layer in best:
                pairs = zip(best[layer], found, strict=True)
                found = [torch.cat(pair) for pair in pairs]
            score, which = found[0].topk(min(K, len(found[0])), 0)
            best[layer] = score, found[1].gather(0, which), found[2].gather(0, which)

        scanned = [x for x in network if isinstance(x, nn.ReLU)] + [network[-1]]

        def run(batches: Batches) -> None:
            handles = [layer.register_forward_hook(hook) for layer in scanned]
            run_forward(batches)
            for handle in handles:
                handle.remove()

        return run

    return run_forward, start


def our_photographs(folder: str, case: Case) -> Iterator[Any]:
    """The batches of `nstvis.pipeline`, made by threads."""
    from nstvis import data, pipeline

    source, damaged = data.load(f"folder:{folder}", "train"), Path(os.devnull)
    made = pipeline.evaluation(
        source,
        case.size,
        case.batch,
        damaged=pipeline.Damaged(damaged),
        workers=0,
    )
    return itertools.chain.from_iterable(iter(made) for _ in itertools.count())


class Pictures:
    """The same files for PyTorch."""

    def __init__(self, folder: str, size: int):
        self._paths, self._size = sorted(Path(folder).rglob("*.jpg")), size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np
        from PIL import Image, ImageOps

        picture = Image.open(self._paths[index]).convert("RGB")
        size = (self._size, self._size)
        picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
        return {"image": np.array(picture), "index": index}


def their_photographs(folder: str, case: Case) -> Iterator[Any]:
    """The batches of a `DataLoader`."""
    from torch.utils.data import DataLoader

    made: Any = DataLoader(
        Pictures(folder, case.size),  # pyright: ignore[reportArgumentType]
        case.batch,
        num_workers=len(os.sched_getaffinity(0)),
        multiprocessing_context="fork",
    )
    return itertools.chain.from_iterable(iter(made) for _ in itertools.count())


def step_worker(side: str, model: str) -> None:
    """Does steps and forward passes in turn."""
    forward, start = (ours if side == "ours" else theirs)(model)
    images, scan = noise(CASES[model]), start()
    if side == "ours":  # PyTorch does the same for every batch
        scan(itertools.islice(images, CASES[model].before))
    tasks = {"forward": forward, "scan": scan, "first": lambda part: start()(part)}
    turns.serve(CASES[model].batch, images, tasks)


def files_worker(side: str, model: str, folder: str) -> None:
    """Decodes, or runs the network, or does both and scans."""
    case = CASES[model]
    if side == "forward":
        batches = itertools.repeat(next(noise(case)))
        return turns.serve(case.batch, batches, {side: ours(model)[0]})
    if side == "torch":
        run, images = theirs(model)[1](), their_photographs(folder, case)
    else:
        run = list if side == "decode" else ours(model)[1]()
        images = our_photographs(folder, case)

    def take(batches: Sequence[Any]) -> None:
        run(next(images) for _ in batches)

    turns.serve(case.batch, itertools.repeat(None), {side: take})


def step_row(model: str) -> str:
    """One row of the table of steps."""
    sides = {"ours": ["forward", "scan", "first"], "torch": ["forward", "scan"]}
    case = CASES[model]
    told = turns.compare(__file__, f"step,{model}", sides, case.steps)
    forward, scan, _, _, theirs = map(turns.median, told.values())
    speeds = " | ".join(map(turns.both, told.values()))
    peaks = [told[side, "scan"][-1].peak for side in sides]
    return (
        f"| {model} | {case.before * case.batch} | {speeds} | {scan / forward:.2f} |"
        f" {scan / theirs:.2f} | {peaks[0]:.0f} | {peaks[1]:.0f} |"
    )


def files_row(model: str, folder: str) -> str:
    """One row of the table of scans from files."""
    sides = {side: [side] for side in ("decode", "forward", "scan", "torch")}
    case = CASES[model]
    told = turns.compare(__file__, f"files,{model},{folder}", sides, case.files)
    decode, forward, scan, theirs = map(turns.median, told.values())
    bound = 1 / (1 / decode + 1 / forward)
    speeds = " | ".join(map(turns.both, told.values()))
    return (
        f"| {model} | {case.size} | {speeds} | {bound:.0f} | {scan / bound:.2f} |"
        f" {scan / theirs:.2f} |"
    )


def state(model: str) -> str:
    """How large a scan's state is."""
    import jax

    from nstvis.units import maxima

    count = sum(units(model).values())
    parts = jax.eval_shape(lambda: maxima.start(count, **SIZES))._asdict()
    sizes = {
        name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part)) / 1e6
        for name, part in parts.items()
    }
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
    told = ", ".join(f"{name} {size:.1f}" for name, size in largest)
    return (
        f"{model}: {count} units, a state of {sum(sizes.values()):.1f} MB ({told});"
        f" the {K} highest alone, with image and position: {count * K * 12 / 1e6:.1f} MB"
    )


def main() -> None:
    """Prints the tables, or is one of their workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        kind, *rest = flags.case.split(",", 2)
        return {"step": step_worker, "files": files_worker}[kind](flags.worker, *rest)
    print(f"{len(os.sched_getaffinity(0))} cores; images/s: median / highest\n")
    print(
        "| step | images before | forward | scan | first | torch's forward |"
        " torch's scan | scan : forward | ours : torch's | MB | torch's MB |"
    )
    print("|---" * 11 + "|")
    for model in CASES:
        print(step_row(model), flush=True)
    print(
        "\n| from files | pixels | decode | forward | scan | torch's scan | bound |"
        " scan : bound | ours : torch's |"
    )
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        for model in CASES:
            print(files_row(model, folder), flush=True)
    print()
    for model in CASES:
        print(state(model))


if __name__ == "__main__":
    main()
