"""Training: our step and our input pipeline against plain PyTorch's.

    python benchmarks/train.py

The step is that of `--experiment=train` (alexnet_small with batch norm and dropout, SGD
with Nesterov momentum, smoothed labels, averaged weights), in float32 on batches of 128
images of noise which are in memory. PyTorch's network is the same, channels last.

The input is decoded, cropped, resized, mirrored, coloured and batched; on one core, to
which all threads of a process are pinned. `primitives` are PNGs of 64 x 64 which we
read from disk, `photographs` JPEGs of 500 x 375 in memory. PyTorch's is a `DataLoader`
without workers over the same bytes, in memory, with torchvision's operations on Pillow;
it ends with floats in 0..1, ours with the bytes that the step takes. `evaluation`
neither crops at random nor mirrors nor colours.

Each side is a process of its own, and they take turns; while one works, the other is
stopped. The tables give images per second (the median of turns and the highest) and the
ratio of ours to PyTorch's: higher is better. Last comes what share of the time the
input makes the step wait: the whole loop against steps on one batch again and again,
and the time that the loop waits for batches.
"""

import argparse
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

from benchmarks import turns
from benchmarks.turns import Take
from nstvis import crops

BATCH = 128
CLASSES = 200
# What is done, to which images, of what side in pixels, in turns of how many batches.
STEPS = [("step", "noise", 48, 2), ("step", "noise", 64, 2)]
INPUT = [
    ("training", "primitives", 64, 8),
    ("evaluation", "primitives", 64, 12),
    ("training", "photographs", 64, 3),
    ("training", "photographs", 224, 3),
    ("evaluation", "photographs", 224, 3),
]


def noise(size: int) -> dict[str, Any]:
    """A batch that costs what any batch costs."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, size, size, 3), np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, BATCH, np.int32)}


def jax_step() -> Take:
    """Our step, compiled as the experiment compiles it."""
    import jax
    import jax.numpy as jnp

    from nstvis import models
    from nstvis.training import schedule
    from nstvis.training.settings import Settings
    from nstvis.training.step import Trainer, trainable

    settings = Settings()
    network = models.network(settings.model, "random", classes=CLASSES, seed=0)
    trainer = Trainer(
        trainable(network, settings.dropout, jnp.float32),
        schedule.optimizer(1e-3, settings.weight_decay),
        smoothing=settings.smoothing,
        ema=settings.ema,
        seed=0,
    )
    step = jax.jit(trainer.step, donate_argnums=0)
    state = jax.device_put(trainer.start())

    def take(batches: Sequence[Any]) -> None:
        nonlocal state
        for batch in batches:
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return take


def torch_network(dropout: float):
    """PyTorch's alexnet_small with batch norm; nothing of JAX is loaded."""
    from torch import nn

    def conv(inputs: int, outputs: int, window: int, stride: int = 1) -> list:
        layer = nn.Conv2d(inputs, outputs, window, stride, window // 2)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *conv(3, 64, 7, 2),
        nn.MaxPool2d(3, 2),
        *conv(64, 192, 5),
        nn.MaxPool2d(3, 2),
        *conv(192, 384, 3),
        *conv(384, 256, 3),
        *conv(256, 256, 3),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        *(nn.Linear(256 * 9, 768), nn.ReLU(inplace=True), nn.Dropout(dropout)),
        *(nn.Linear(768, 768), nn.ReLU(inplace=True), nn.Dropout(dropout)),
        nn.Linear(768, CLASSES),
    )


def torch_step() -> Take:
    """The same step in plain PyTorch."""
    import torch
    from torch.optim import swa_utils

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network: Any = torch_network(0.5)
    network = network.to(memory_format=torch.channels_last)
    average = swa_utils.get_ema_multi_avg_fn(0.999)
    averaged = swa_utils.AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": 5e-4}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True)
    objective = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)

    def take(batches: Sequence[Any]) -> None:
        for batch in batches:
            image, label = map(torch.from_numpy, (batch["image"], batch["label"]))
            image = (image.permute(0, 3, 1, 2).float() - mean) / std
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

    classes = ("photograph",)


def source(kind: str) -> Any:
    """The encoded images that both sides read."""
    from nstvis import data

    if kind == "primitives":
        return data.load("primitives", "train")
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
    from nstvis import pipeline
    from nstvis.training.settings import Settings

    settings, images = Settings(), source(kind)
    common: Any = {"damaged": pipeline.Damaged(Path(os.devnull)), "workers": 0}
    if task == "evaluation":
        dataset = pipeline.evaluation(images, size, BATCH, **common)
    else:
        how = crops.Augmentation(crop=settings.crop, color=settings.color)
        dataset = pipeline.training(
            images, size, BATCH, seed=0, augmentation=how, **common
        )
    return taking(iter(dataset) for _ in itertools.count())


def random_crop(picture: Any, size: int, rng: Any) -> Any:
    """Torchvision's `RandomResizedCrop`, flip and `ColorJitter`, on Pillow."""
    from PIL import Image, ImageEnhance

    while True:
        area = picture.width * picture.height * rng.uniform(0.5, 1)
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
        picture = getattr(ImageEnhance, kind)(picture).enhance(rng.uniform(0.8, 1.2))
    return picture


def torch_input(task: str, kind: str, size: int) -> Take:
    """The same with `torch.utils.data`, as its users write it."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)
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
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            return pixels.contiguous().float() / 255, example.label

    loader = DataLoader(Pictures(), BATCH, shuffle=task == "training", drop_last=True)
    return taking(iter(loader) for _ in itertools.count())


def work(side: str, task: str, kind: str, size: int) -> None:
    """A worker."""
    if task == "step":
        batches: Iterator[Any] = itertools.repeat(noise(size))
        take = (jax_step if side == "ours" else torch_step)()
    else:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        batches = itertools.repeat(None)
        take = (our_input if side == "ours" else torch_input)(task, kind, size)
    turns.serve(BATCH, batches, {task: take})


def row(task: str, kind: str, size: int, count: int) -> str:
    """One row of a table."""
    sides = {side: [task] for side in ("ours", "torch")}
    measured = turns.compare(__file__, f"{task},{kind},{size}", sides, count)
    speeds = " | ".join(map(turns.both, measured.values()))
    ours, theirs = map(turns.median, measured.values())
    return f"| {task} | {kind} | {size} | {speeds} | {ours / theirs:.2f} |"


def waiting(count: int = 4) -> str:
    """How the whole loop, with its input, compares to steps on the same batch."""
    import jax

    from nstvis.training.loop import TrainingRun
    from nstvis.training.settings import Settings

    blocked, seconds = 0.0, {"loop": [], "same": []}
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(Settings(validation=""), Path(folder))
        state, first = run.start(), run.batch(1)
        for turn in range(turns.TURNS + 1):
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
        f"s per step: {loop / count:.3f} with the input, {same / count:.3f} without:"
        f" waits {(loop - same) / loop:.1%};"
        f" for batches {blocked / sum(seconds['loop']):.1%}"
    )


def main() -> None:
    """Prints the tables, or is one of their workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        task, kind, size = flags.case.split(",")
        return work(flags.worker, task, kind, int(size))
    print(f"{len(os.sched_getaffinity(0))} cores; images/s: median / highest")
    for cases in (STEPS, INPUT):
        print("\n| task | images | pixels | ours | torch | ratio |")
        print("|---|---|---|---|---|---|")
        for case in cases:
            print(row(*case), flush=True)
    print(f"\n{waiting()}")


if __name__ == "__main__":
    main()
