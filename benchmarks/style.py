"""Style transfer: a step of ours against the same step in plain PyTorch.

    python benchmarks/style.py

Both run on the same cores with the same random weights, pictures and objective (Gram
losses at five layers, content at one, total variation, Adam), each in a process of its
own, taking turns of a few steps. The table gives seconds per step, GFLOP/s by XLA's
count of the step, and the process's peak memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

CASES = [
    (model, size) for model in ("alexnet", "vgg19") for size in ((256, 192), (512, 384))
]
LAYERS = {
    "alexnet": ("conv3", "conv1,conv2,conv3,conv4,conv5"),
    "vgg19": ("conv4_2", "conv1_1,conv2_1,conv3_1,conv4_1,conv5_1"),
}
TURNS = 6


def settings(model: str, size: tuple[int, int]):
    """The same work for both, in neural-style's units."""
    from nstvis.synthesis.style import Settings

    content, style = LAYERS[model]
    return Settings(
        model=model,
        weights="random",
        content_layers=content,
        style_layers=style,
        units="neural_style",
        alpha=5.0,
        beta=100.0,
        gamma=1e-3,
        tv_power=1,
        size=max(size),
        scales=1,
        steps=10_000,
        learning_rate=1.0,
        jitter=0,
    )


def pictures(size: tuple[int, int]):
    """Two pictures of noise, which cost what any pictures cost."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise[0]), Image.fromarray(noise[1])


def jax_stepper(model: str, size: tuple[int, int]):
    """Returns a function that takes n steps and waits for them, and a step's FLOP."""
    import jax

    from nstvis.synthesis.style import StyleTransfer

    content, style = pictures(size)
    painting = StyleTransfer(content, [style], settings(model, size))
    moments = painting.run()

    def take(n: int) -> None:
        for _ in range(n):
            moment = next(moments)
        jax.block_until_ready(moment.state)

    take(1)  # the moment before the first step
    return take, painting.flops(1)


def torch_stepper(model: str, size: tuple[int, int]):
    """The same in PyTorch, as neural-style-pt writes it."""
    import numpy as np
    import torch
    from torch.nn import functional

    from nstvis import images, models

    chosen = settings(model, size)
    style_layers = chosen.style_layers.split(",")
    _, params = models.load(model, "random", last=style_layers[-1])
    names = models.layers(model)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    weights = {
        name: (
            torch.from_numpy(np.array(p["kernel"]).transpose(3, 2, 0, 1).copy()),
            torch.from_numpy(np.array(p["bias"])),
        )
        for name, p in params.items()
    }
    strides = {"conv1": (4, 2)} if model == "alexnet" else {}
    window = 3 if model == "alexnet" else 2
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        x, activations = (x - mean) / std, {}
        for name in names[: names.index(style_layers[-1]) + 1]:
            if name.startswith("pool"):
                x = functional.max_pool2d(x, window, 2)
            elif name in weights:
                kernel, bias = weights[name]
                stride, padding = strides.get(name, (1, kernel.shape[-1] // 2))
                x = functional.relu(functional.conv2d(x, kernel, bias, stride, padding))
                activations[name] = x
        return activations

    def gram(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)[0]
        return flat @ flat.T / x.numel()

    def tensor(picture) -> torch.Tensor:
        return torch.from_numpy(images.to_array(picture)).permute(2, 0, 1)[None].clone()

    content, style = map(tensor, pictures(size))
    with torch.no_grad():
        target = forward(content)[chosen.content_layers]
        grams = {k: gram(v) for k, v in forward(style).items() if k in style_layers}
    canvas = (128 + 40 * torch.randn(content.shape)).clamp(0, 255).requires_grad_()
    optimizer = torch.optim.Adam([canvas], lr=1.0, betas=(0.9, 0.99))

    def take(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            features = forward(canvas)
            loss = 5 * functional.mse_loss(features[chosen.content_layers], target)
            for name in style_layers:
                loss = loss + 100 * functional.mse_loss(
                    gram(features[name]), grams[name]
                )
            down, right = canvas.diff(dim=2).abs().sum(), canvas.diff(dim=3).abs().sum()
            loss = loss + 1e-3 * (down + right)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                canvas.clamp_(0, 255)

    return take, 0.0


def work(side: str, model: str, size: tuple[int, int]) -> None:
    """A worker: takes as many steps as each line of its input says."""
    take, flops = (jax_stepper if side == "jax" else torch_stepper)(model, size)
    take(3)
    print(json.dumps({"flops": flops}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        take(int(line))
        seconds = (time.perf_counter() - began) / int(line)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def ask(worker: subprocess.Popen, line: str | None = None) -> dict:
    """Sends a line to a worker and waits for its answer."""
    assert worker.stdin is not None and worker.stdout is not None
    if line is not None:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def compare(model: str, size: tuple[int, int]) -> str:
    """One row of the table."""
    command = [
        sys.executable,
        __file__,
        f"--model={model}",
        f"--size={size[0]}x{size[1]}",
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {
        side: subprocess.Popen([*command, f"--worker={side}"], **pipes)
        for side in ("jax", "torch")
    }
    flops = {side: ask(worker)["flops"] for side, worker in workers.items()}["jax"]
    steps = "2" if model == "vgg19" else "10"
    told = {side: [] for side in workers}
    for _ in range(TURNS):
        for side, worker in workers.items():
            told[side].append(ask(worker, steps))
    for worker in workers.values():
        worker.communicate()
    times = {side: [t["seconds"] for t in rows] for side, rows in told.items()}
    ratio = statistics.median(times["jax"]) / statistics.median(times["torch"])
    row = f"| {model} | {size[0]}x{size[1]} |"
    for side in workers:
        least, median = min(times[side]), statistics.median(times[side])
        speed, peak = flops / median / 1e9, told[side][-1]["peak"]
        row += f" {least:.3f} / {median:.3f} | {speed:.0f} | {peak:.0f} |"
    return f"{row} {ratio:.2f} |"


def main() -> None:
    """Prints the table, or is one of its workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--model", default="")
    parser.add_argument("--size", default="0x0")
    flags = parser.parse_args()
    width, height = map(int, flags.size.split("x"))
    if flags.worker:
        return work(flags.worker, flags.model, (width, height))
    print(f"{len(os.sched_getaffinity(0))} cores; s per step: min / median")
    print("| network | size | ours | GFLOP/s | MB | torch | GFLOP/s | MB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model, size in CASES:
        print(compare(model, size), flush=True)


if __name__ == "__main__":
    main()
