"""Training: our step and our input pipeline against plain PyTorch's.

    python benchmarks/train.py

The step is that of `--experiment=train` (batch norm, dropout, SGD with Nesterov momentum,
smoothed labels, averaged weights; ours also measures the gradient's norm, the accuracy
and the share of dead units), in float32 on batches of 128 images of noise which are in
memory. PyTorch's network is the same.

The input is decoded, cropped, resized, mirrored, coloured and batched; on one core, to
which all threads of a process are pinned. `primitives` are PNGs of 64 x 64, `photographs`
JPEGs of 500 x 375, all of them in memory. PyTorch's is a `DataLoader` without workers,
with torchvision's operations on Pillow; both end with the bytes that a step takes.
`evaluation` neither crops at random nor mirrors nor colours.

Last comes what share of the time the input makes our step wait: the whole loop against
steps on one batch again and again, and the time that the loop waits for batches.
"""

import contextlib
import io
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import report, turns
from benchmarks.report import Measure, Row
from benchmarks.turns import Take

BATCH, CLASSES = 128, 31
DROPOUT, DECAY, SMOOTHING, EMA, CROP, COLOR = 0.1, 5e-4, 0.1, 0.999, 0.5, 0.2
# What is done, by which network or to which images, of what side in pixels, in turns of
# how many batches.
CASES = [
    ("step", "alexnet_small", 48, 2),
    ("step", "alexnet_small", 64, 2),
    ("step", "vgg_small", 48, 2),
    ("training", "primitives", 64, 8),
    ("evaluation", "primitives", 64, 12),
    ("training", "photographs", 64, 3),
    ("training", "photographs", 224, 3),
    ("evaluation", "photographs", 224, 3),
]
QUICK = CASES[:1] + CASES[2:4]


def settings(model: str = "alexnet_small") -> Any:
    """Returns the settings of `--experiment=train` that both sides have."""
    from nstvis.training.settings import Settings

    return Settings(
        model=model,
        batch=BATCH,
        validation="",
        dropout=DROPOUT,
        weight_decay=DECAY,
        smoothing=SMOOTHING,
        ema=EMA,
        crop=CROP,
        color=COLOR,
    )


def noise(size: int) -> dict[str, Any]:
    """Returns a batch that costs what any batch costs."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, size, size, 3), np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, BATCH, np.int32)}


def our_step(model: str, size: int) -> Take:
    """Our steps, as the experiment takes them."""
    import jax

    from nstvis import devices
    from nstvis.training.loop import TrainingRun

    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(settings(model), Path(folder))
        state = run.start()
    mesh, batch = devices.mesh(), noise(size)

    def take(batches: Sequence[Any]) -> None:
        nonlocal state
        for _ in batches:
            state, _ = run.step(state, 1, devices.divided(batch, mesh))
        jax.block_until_ready(state)

    return take


def torch_step(model: str, size: int) -> Take:
    """The same in PyTorch."""
    import torch
    from torch.optim import swa_utils

    from benchmarks import torch_networks

    network = torch_networks.classifier(
        model, classes=CLASSES, norm=True, dropout=DROPOUT
    )
    average = swa_utils.get_ema_multi_avg_fn(EMA)
    averaged = swa_utils.AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others}]
    how: Any = {"momentum": 0.9, "nesterov": True, "fused": True}
    optimizer = torch.optim.SGD(groups, lr=1e-3, **how)
    objective = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    batch = noise(size)

    def take(batches: Sequence[Any]) -> None:
        for _ in batches:
            image, label = map(torch.from_numpy, (batch["image"], batch["label"]))
            image = torch_networks.normalized(image.permute(0, 3, 1, 2))
            optimizer.zero_grad()
            objective(network(image), label.long()).backward()
            optimizer.step()
            averaged.update_parameters(network)

    return take


def photograph(seed: int) -> bytes:
    """A JPEG whose detail falls off as a photograph's, about 100 kB."""
    import numpy as np
    from PIL import Image

    rng, size = np.random.default_rng(seed), (500, 375)
    picture = np.full((size[1], size[0], 3), 128.0)
    for cells in (3, 6, 12, 25, 50, 100, 200, 400):
        # Mostly grey: colours differ less from place to place than brightness does.
        grain = rng.normal(size=(cells, cells, 1)) + 0.4 * rng.normal(
            size=(cells, cells, 3)
        )
        pixels = np.clip(128 + 25 * grain, 0, 255).astype(np.uint8)
        layer = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        picture += np.asarray(layer, float) - 128
    file = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=88
    )
    return file.getvalue()


class Memory(list):
    """A data set in memory."""

    classes = ("image",)


def source(kind: str) -> Any:
    """The encoded images that both sides read."""
    from nstvis import data

    if kind == "primitives":
        drawn = data.load("primitives", "train")
        return Memory(drawn[i] for i in range(len(drawn)))
    examples = [data.Example(f"{i}", 0, photograph(i)) for i in range(BATCH)]
    return Memory(examples * 20)


def taking(passes: Iterator[Any]) -> Take:
    """Takes batches of passes over the data, one after another."""
    made = itertools.chain.from_iterable(passes)

    def take(batches: Sequence[Any]) -> None:
        for _ in batches:
            next(made)

    return take


def our_input(task: str, kind: str, size: int) -> Take:
    """The batches of `nstvis.pipeline`, made by threads."""
    from nstvis import crops, pipeline

    images = source(kind)
    common: Any = {"damaged": pipeline.Damaged(Path(os.devnull)), "workers": 0}
    if task == "evaluation":
        dataset = pipeline.evaluation(images, size, BATCH, **common)
    else:
        how = crops.Augmentation(crop=CROP, color=COLOR)
        dataset = pipeline.training(
            images, size, BATCH, seed=0, augmentation=how, **common
        )
    return taking(iter(dataset) for _ in itertools.count())


def random_crop(picture: Any, size: int, rng: Any) -> Any:
    """Torchvision's `RandomResizedCrop`, flip and `ColorJitter`, on Pillow."""
    from PIL import Image, ImageEnhance

    while True:
        area = picture.width * picture.height * rng.uniform(CROP, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = round(math.sqrt(area * aspect))
        height = round(math.sqrt(area / aspect))
        if width <= picture.width and height <= picture.height:
            break
    left, top = (
        rng.integers(0, picture.width - width + 1),
        rng.integers(0, picture.height - height + 1),
    )
    picture = picture.crop((left, top, left + width, top + height))
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for kind in ("Brightness", "Contrast", "Color"):
        picture = getattr(ImageEnhance, kind)(picture).enhance(
            rng.uniform(1 - COLOR, 1 + COLOR)
        )
    return picture


def torch_input(task: str, kind: str, size: int) -> Take:
    """The same with `torch.utils.data`, as its users write it."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps
    from torch.utils.data import DataLoader, Dataset

    rng, examples = np.random.default_rng(0), list(source(kind))

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int):
            example = examples[index]
            picture = Image.open(io.BytesIO(example.encoded)).convert("RGB")
            if task == "training":
                picture = random_crop(picture, size, rng)
            else:
                bilinear = Image.Resampling.BILINEAR
                picture = ImageOps.fit(picture, (size, size), bilinear)
            return torch.from_numpy(np.array(picture)), example.label

    loader = DataLoader(Pictures(), BATCH, shuffle=task == "training", drop_last=True)
    return taking(iter(loader) for _ in itertools.count())


def work(side: str, case: str) -> None:
    """Takes steps, or makes batches."""
    task, what, size = case.split(",")
    if task == "step":
        take = (our_step if side == "ours" else torch_step)(what, int(size))
    else:
        take = (our_input if side == "ours" else torch_input)(task, what, int(size))
    turns.serve(BATCH, itertools.repeat(None), {"task": take})


def waiting(count: int = 4) -> str:
    """How the whole loop, with its input, compares to steps on the same batch."""
    import jax

    from nstvis.training.loop import TrainingRun

    turns.ours_setup()
    blocked, seconds = 0.0, {"loop": [], "same": []}
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(settings(), Path(folder))
        state, first = run.start(), run.batch(1)
        for turn in range(8):
            for name, times in seconds.items():
                time.sleep(1)  # until what is made ahead is made
                began = time.perf_counter()
                for _ in range(count):
                    asked = time.perf_counter()
                    batch = run.batch(1) if name == "loop" else first
                    blocked += time.perf_counter() - asked
                    state, _ = run.step(state, 1, batch)
                jax.block_until_ready(state)
                times.append(time.perf_counter() - began)
            if not turn:  # which compiled
                blocked, seconds = 0.0, {"loop": [], "same": []}
    loop, same = (statistics.median(seconds[name]) for name in ("loop", "same"))
    return (
        f"A step of the whole loop takes {loop / count:.3f} s, {same / count:.3f} s with"
        f" a batch that is there already, {(loop - same) / loop:.1%} less; the loop waits"
        f" for batches for {blocked / sum(seconds['loop']):.1%} of its time."
    )


def rows(measure: Measure, quick: bool) -> Iterator[Row | str]:
    """Measures steps and inputs."""
    for task, what, size, count in QUICK if quick else CASES:
        cores = contextlib.nullcontext() if task == "step" else turns.one_core()
        with cores:
            sides = measure(f"{task},{what},{size}", ["ours task", "torch task"], count)
        name = "step of" if task == "step" else f"{task} batches of"
        yield Row(f"{name} {what}, {size} px", "PyTorch", *sides)
    if not quick:
        yield waiting()


if __name__ == "__main__":
    report.main("images/s", work, rows)
