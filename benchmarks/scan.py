"""The scan of all units, against the network's forward pass and PyTorch.

    python benchmarks/scan.py

A scan's step keeps, of every unit of the layers after a ReLU and of the logits, the 18
highest and the 9 lowest activations, the highest of each of 200 classes, where they are,
and a histogram; in float32. It is compared to the network alone, compiled to return the
logits, and to PyTorch as its users would write it: a hook on each such layer that takes
its maximum over space and merges the 9 highest with `torch.topk`.

The step runs on batches of noise which are in memory and always new, after as many that
few of them are still in some unit's top; `first images` are the first four batches, each
image of which is.

From files, JPEGs of 500 x 375 are read, decoded, scaled and scanned, with everything on
the same cores, so that at best an image takes as long as its decoding and its forward
pass together: the bound. There are 256 different photographs under 5,120 names, so that
no unit's top changes after these. PyTorch's is a `DataLoader` with a worker per core.
"""

import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import report, turns
from benchmarks.report import Measure, Row
from benchmarks.train import photograph
from benchmarks.turns import Turn

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


def units(forward: Any, params: Any) -> dict[str, int]:
    """The layers that are scanned, and how many units each has."""
    from nstvis import models

    counts = models.units(forward, params, 64)
    scanned = [name for name in counts if f"{name}_pre" in counts]
    return {name: counts[name] for name in [*scanned, [*counts][-1]]}


def ours(model: str) -> tuple[Run, Callable[[], Run]]:
    """Our forward pass, and what starts a scan."""
    import jax
    import jax.numpy as jnp

    from nstvis import devices, models
    from nstvis.units import maxima

    forward, params = models.load(model, CASES[model].weights)
    mesh, scanned = devices.mesh(), units(forward, params)
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


def theirs(model: str) -> tuple[Run, Callable[[], Run]]:
    """The same in PyTorch: the forward pass, and what starts a scan."""
    import torch
    from torch import nn
    from torch.nn import functional

    from benchmarks import torch_networks

    network, index = torch_networks.classifier(model).eval(), torch.empty(0)

    @torch.no_grad()
    def run_forward(batches: Batches) -> None:
        nonlocal index
        for batch in batches:
            index = torch.as_tensor(batch["index"])
            images = torch.as_tensor(batch["image"]).permute(0, 3, 1, 2)
            network(torch_networks.normalized(images))

    def start() -> Run:
        best = {}

        def hook(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
            maps = output if output.ndim == 4 else output[..., None, None]
            pooled = functional.adaptive_max_pool2d(maps, 1, return_indices=True)
            score, place = (x.flatten(1) for x in pooled)
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


def step_worker(side: str, model: str, before: str) -> None:
    """Does steps and forward passes in turn."""
    forward, start = (ours if side == "ours" else theirs)(model)
    images, scan = noise(CASES[model]), start()
    if side == "ours":  # PyTorch does the same for every batch
        scan(itertools.islice(images, int(before)))
    tasks = {"forward": forward, "scan": scan, "first": lambda part: start()(part)}
    turns.serve(CASES[model].batch, images, tasks)


def files_worker(side: str, model: str, folder: str) -> None:
    """Decodes, or runs the network, or does both and scans."""
    case = CASES[model]
    if side == "forward":
        batches = itertools.repeat(next(noise(case)))
        return turns.serve(case.batch, batches, {"task": ours(model)[0]})
    if side == "torch":
        run, images = theirs(model)[1](), their_photographs(folder, case)
    else:
        run = list if side == "decode" else ours(model)[1]()
        images = our_photographs(folder, case)

    def take(batches: Sequence[Any]) -> None:
        run(next(images) for _ in batches)

    turns.serve(case.batch, itertools.repeat(None), {"task": take})


def work(side: str, case: str) -> None:
    """Scans, from memory or from files."""
    kind, *rest = case.split(",", 2)
    {"step": step_worker, "files": files_worker}[kind](side, *rest)


def step_rows(measure: Measure, model: str, before: int) -> Iterator[Row]:
    """Measures steps of the scan."""
    tasks = ["ours forward", "ours scan", "ours first", "torch forward", "torch scan"]
    case = CASES[model]
    forward, scan, first, their_forward, their_scan = measure(
        f"step,{model},{before}", tasks, case.steps
    )
    name = f"{model}, {case.size} px"
    yield Row(f"forward pass of {name}", "PyTorch's", forward, their_forward)
    yield Row(f"scan step of {name}", "PyTorch's scan", scan, their_scan)
    yield Row(f"scan step of {name}, first images", "PyTorch's scan", first, their_scan)
    alone = [turn._replace(peak=None) for turn in forward]  # in the same process
    yield Row(f"scan step of {name}", "our forward pass (scan : forward)", scan, alone)


def files_rows(measure: Measure, model: str, folder: str) -> Iterator[Row]:
    """Measures scans from files."""
    tasks = ["decode task", "forward task", "scan task", "torch task"]
    case = CASES[model]
    decode, forward, scan, theirs = measure(
        f"files,{model},{folder}", tasks, case.files
    )
    bound = [
        Turn(1 / (1 / a.speed + 1 / b.speed), None)
        for a, b in zip(decode, forward, strict=True)
    ]
    name = f"scan of JPEGs by {model}, {case.size} px"
    yield Row(name, "PyTorch's scan", scan, theirs)
    yield Row(name, "the bound", scan, bound)


def state(model: str) -> str:
    """How large a scan's state is on a device."""
    import jax

    from nstvis import models
    from nstvis.units import maxima

    count = sum(units(*models.load(model, "random")).values())
    parts = jax.eval_shape(lambda: maxima.start(count, **SIZES))._asdict()
    del parts["by_class"]  # which is on the host
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


def rows(measure: Measure, quick: bool) -> Iterator[Row | str]:
    """Measures steps, and scans from files."""
    cases = dict(list(CASES.items())[:1]) if quick else CASES
    for model, case in cases.items():
        yield from step_rows(measure, model, 10 if quick else case.before)
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder))
        for model in cases:
            yield from files_rows(measure, model, folder)
    for model in cases:
        yield state(model)


if __name__ == "__main__":
    report.main("images/s", work, rows)
