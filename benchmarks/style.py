"""Style transfer: a step of ours against the same step in plain PyTorch.

    python benchmarks/style.py

Both run on the same cores with random weights of the same shapes, and with the same
pictures and objective (Gram losses at five layers, content at one, total variation,
Adam), each in a process of its own, taking turns of a few steps. The table gives
seconds per step (means of turns: the least and the median), GFLOP/s by XLA's count of
the step, and the process's peak memory. Last comes the time to the first picture of a
small run of the default command, import and compilation included.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
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
# Of PyTorch's networks: inputs, outputs and window; and the layers after a pooling.
CONVOLUTIONS = {
    "alexnet": {
        "conv1": (3, 64, 11),
        "conv2": (64, 192, 5),
        "conv3": (192, 384, 3),
        "conv4": (384, 256, 3),
        "conv5": (256, 256, 3),
    },
    "vgg19": {
        "conv1_1": (3, 64, 3),
        "conv1_2": (64, 64, 3),
        "conv2_1": (64, 128, 3),
        "conv2_2": (128, 128, 3),
        "conv3_1": (128, 256, 3),
        "conv3_2": (256, 256, 3),
        "conv3_3": (256, 256, 3),
        "conv3_4": (256, 256, 3),
        "conv4_1": (256, 512, 3),
        "conv4_2": (512, 512, 3),
        "conv4_3": (512, 512, 3),
        "conv4_4": (512, 512, 3),
        "conv5_1": (512, 512, 3),
    },
}
POOLED = {
    "alexnet": ("conv2", "conv3"),
    "vgg19": ("conv2_1", "conv3_1", "conv4_1", "conv5_1"),
}
TURNS = 8


def settings(model: str, size: tuple[int, int]):
    """The same work for both, in neural-style's units."""
    from nstvis.synthesis.style_settings import Settings

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
        smoothing=0.0,
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
    transfer = StyleTransfer(content, [style], settings(model, size))
    moments = transfer.run()

    def take(n: int) -> None:
        for _ in range(n):
            moment = next(moments)
        jax.block_until_ready(moment.state)

    take(1)  # the moment before the first step
    return take, transfer.costs[0]


def torch_stepper(model: str, size: tuple[int, int]):
    """The same in PyTorch, as neural-style-pt writes it; nothing of JAX is loaded."""
    import numpy as np
    import torch
    from torch.nn import functional

    content_layer, style_layers = LAYERS[model][0], LAYERS[model][1].split(",")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    weights = {}
    for name, (inputs, outputs, window) in CONVOLUTIONS[model].items():
        shape = (outputs, inputs, window, window)
        scale = (2 / (inputs * window**2)) ** 0.5
        kernel = scale * rng.standard_normal(shape, np.float32)
        weights[name] = (
            torch.from_numpy(kernel.astype(np.float32)),
            torch.zeros(outputs),
        )
    strides = {"conv1": (4, 2)} if model == "alexnet" else {}
    window = 3 if model == "alexnet" else 2
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        x, activations = (x - mean) / std, {}
        for name, (kernel, bias) in weights.items():
            if name in POOLED[model]:
                x = functional.max_pool2d(x, window, 2)
            stride, padding = strides.get(name, (1, kernel.shape[-1] // 2))
            x = functional.relu(functional.conv2d(x, kernel, bias, stride, padding))
            activations[name] = x
        return activations

    def gram(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)[0]
        return flat @ flat.T / x.numel()

    def tensor(picture) -> torch.Tensor:
        array = np.array(picture, np.float32)
        return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()

    content, style = map(tensor, pictures(size))
    with torch.no_grad():
        target = forward(content)[content_layer]
        grams = {k: gram(v) for k, v in forward(style).items() if k in style_layers}
    canvas = (128 + 40 * torch.randn(content.shape)).clamp(0, 255).requires_grad_()
    optimizer = torch.optim.Adam([canvas], lr=1.0, betas=(0.9, 0.99))

    def take(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            activations = forward(canvas)
            loss = 5 * functional.mse_loss(activations[content_layer], target)
            for name in style_layers:
                loss = loss + 100 * functional.mse_loss(
                    gram(activations[name]), grams[name]
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
    # Both inherit this process's cores, so they are pinned to the same ones.
    flops = {side: ask(worker)["flops"] for side, worker in workers.items()}["jax"]
    steps = "2" if model == "vgg19" else "10"
    answers = {side: [] for side in workers}
    for _ in range(TURNS):
        for side, worker in workers.items():
            answers[side].append(ask(worker, steps))
    for worker in workers.values():
        worker.communicate()
    times = {side: [t["seconds"] for t in rows] for side, rows in answers.items()}
    ratio = statistics.median(times["jax"]) / statistics.median(times["torch"])
    row = f"| {model} | {size[0]}x{size[1]} |"
    for side in workers:
        least, median = min(times[side]), statistics.median(times[side])
        speed, peak = flops / median / 1e9, answers[side][-1]["peak"]
        row += f" {least:.3f} / {median:.3f} | {speed:.0f} | {peak:.0f} |"
    return f"{row} {ratio:.2f} |"


def first_picture() -> float:
    """Seconds that the default command takes for 64 pixels and 10 steps."""
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
    print(f"first picture, nothing compiled before: {first_picture():.1f} s")


if __name__ == "__main__":
    main()
