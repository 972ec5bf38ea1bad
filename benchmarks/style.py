"""Style transfer: a step of ours against the same step in plain PyTorch.

    python benchmarks/style.py

Both have random weights of the same shapes, the same pictures and the same objective:
Gram losses at four or five layers, content at one, total variation, Adam. AlexNet and
VGG-19 have max-pooling, vgg_small average pooling. PyTorch's is written as
neural-style-pt is. For one case there is also PyTorch with glibc's allocator as it is
by default; for another, a picture in blocks is compared with the same one as a whole.
Last comes the time to the first picture of a small run of the default
command, import and compilation included.
"""

import itertools
import os
import subprocess
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

# Network, width and height, and steps in a turn.
CASES = [
    ("alexnet", 256, 192, 10),
    ("alexnet", 512, 384, 5),
    ("vgg_small", 384, 288, 5),
    ("vgg19", 256, 192, 2),
    ("vgg19", 512, 384, 2),
]
QUICK = CASES[::2][:2] + CASES[3:4]
UNTUNED = CASES[3]
BLOCKS = ("vgg_small", 1024, 768, 1)
BLOCK = 512  # pixels
# Layers of content and style, and pooling.
NETWORKS = {
    "alexnet": ("conv3", "conv1,conv2,conv3,conv4,conv5", "max"),
    "vgg19": ("conv4_2", "conv1_1,conv2_1,conv3_1,conv4_1,conv5_1", "max"),
    "vgg_small": ("conv3_2", "conv1_1,conv2_1,conv3_1,conv4_1", "average"),
}
ALPHA, BETA, GAMMA, RATE = 5.0, 100.0, 1e-3, 1.0  # neural-style's


def pictures(width: int, height: int) -> Any:
    """Returns two pictures of noise, which cost what any pictures cost."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, height, width, 3), np.uint8)


def ours(model: str, width: int, height: int, block: int = 0) -> Take:
    """Our steps."""
    import jax
    from PIL import Image

    from nstvis.synthesis.style import StyleTransfer
    from nstvis.synthesis.style_settings import Settings

    content_layers, style_layers, pooling = NETWORKS[model]
    settings = Settings(
        model=model,
        weights="random",
        pooling=pooling,
        content_layers=content_layers,
        style_layers=style_layers,
        style_loss="gram",
        units="neural_style",
        alpha=ALPHA,
        beta=BETA,
        gamma=GAMMA,
        tv_power=1,
        size=max(width, height),
        scales=1,
        steps=10_000,
        learning_rate=RATE,
        smoothing=0.0,
        jitter=0,
        margin=0,
        annealing=False,
        block=block,
    )
    content, style = map(Image.fromarray, pictures(width, height))
    moments = StyleTransfer(content, [style], settings).run()
    next(moments)  # before the first step

    def take(batches: Sequence[Any]) -> None:
        moment = None
        for _ in batches:
            moment = next(moments)
        jax.block_until_ready(moment)

    return take


def theirs(model: str, width: int, height: int) -> Take:
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    from benchmarks import torch_networks

    content_layer, style_layers, pooling = NETWORKS[model]
    layers = style_layers.split(",")
    pool = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
    network = torch_networks.convolutions(model, max(layers), pool=pool)
    network.requires_grad_(False)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        x, seen = torch_networks.normalized(x), {}
        for name, layer in network.named_children():
            x = seen[name] = layer(x)
        return seen

    def gram(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)[0]
        return flat @ flat.T / x.numel()

    both = torch.from_numpy(pictures(width, height)).permute(0, 3, 1, 2).float()
    target = forward(both[:1])[content_layer]
    painted = forward(both[1:])
    grams = {name: gram(painted[name]) for name in layers}
    canvas = (128 + 40 * torch.randn_like(both[:1])).clamp(0, 255).requires_grad_()
    optimizer = torch.optim.Adam([canvas], lr=RATE, betas=(0.9, 0.99), fused=True)

    def take(batches: Sequence[Any]) -> None:
        for _ in batches:
            optimizer.zero_grad()
            seen = forward(canvas)
            loss = ALPHA * functional.mse_loss(seen[content_layer], target)
            for name in layers:
                loss += BETA * functional.mse_loss(gram(seen[name]), grams[name])
            down, right = canvas.diff(dim=2).abs().sum(), canvas.diff(dim=3).abs().sum()
            (loss + GAMMA * (down + right)).backward()
            optimizer.step()
            with torch.no_grad():
                canvas.clamp_(0, 255)

    return take


def work(side: str, case: str) -> None:
    """Takes steps."""
    model, *size = case.split(",")
    width, height = map(int, size)
    if side == "ours_blocks":
        take = ours(model, width, height, BLOCK)
    else:
        take = (ours if side == "ours" else theirs)(model, width, height)
    turns.serve(1, itertools.repeat(None), {"step": take})


def first_picture() -> float:
    """Returns the seconds that the default command takes for 64 pixels and 10 steps."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["--config.size=64", "--config.steps=10", "--config.scales=1"]
        command = [sys.executable, "launch.py", "--experiment=style", *small]
        began = time.perf_counter()
        subprocess.run(
            [*command, f"--workdir={folder}/run"],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"XDG_CACHE_HOME": folder},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - began


def rows(measure: Measure, quick: bool) -> Iterator[Row | str]:
    """Measures each network at each size."""
    for case in QUICK if quick else CASES:
        model, width, height, steps = case
        tasks = ["ours step", "torch step"]
        tasks += ["torch_untuned step"] * (case == UNTUNED)
        ours, *others = measure(f"{model},{width},{height}", tasks, steps)
        names = ["PyTorch", "PyTorch, its allocator untuned"]
        for against, theirs in zip(names, others, strict=False):
            yield Row(f"{model} {width}x{height}", against, ours, theirs)
    if not quick:
        model, width, height, steps = BLOCKS
        tasks = ["ours_blocks step", "ours step"]
        both = measure(f"{model},{width},{height}", tasks, steps)
        name = f"{model} {width}x{height} in blocks of {BLOCK}"
        yield Row(name, "the whole picture", *both)
        yield f"First picture, nothing compiled before: {first_picture():.1f} s."


if __name__ == "__main__":
    report.main("steps/s", work, rows)
