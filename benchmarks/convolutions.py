"""One convolution and its gradients, against XLA's own and PyTorch's.

    python benchmarks/convolutions.py

These lines are the reasons of `layers.winograd_tile`: the shapes are those of the networks
here, in a batch or for a single picture; `tile` is the side of the tiles that Winograd's
algorithm computes, or 0 where XLA's convolution is taken, with our gradients. In batches
there are both gradients, as in training. A single picture has only the image's, and the
filters are transformed before, as in style transfer. `XLA` is
`lax.conv_general_dilated` with the gradients that JAX derives.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import report, turns
from benchmarks.report import Measure, Row
from benchmarks.turns import Take

# Batch, height, width, inputs, outputs, side of the kernel.
SHAPES = [
    (1, 384, 512, 64, 64, 3),
    (1, 192, 256, 128, 128, 3),
    (1, 144, 192, 32, 64, 3),
    (1, 48, 64, 512, 512, 3),
    (1, 12, 16, 512, 512, 3),
    (1, 31, 23, 64, 192, 5),
    (128, 48, 48, 3, 32, 3),
    (128, 48, 48, 32, 32, 3),
    (128, 12, 12, 128, 128, 3),
    (128, 7, 7, 192, 384, 3),
    (128, 5, 5, 384, 256, 3),
    (128, 11, 11, 64, 192, 5),
]
QUICK = SHAPES[1::4]


def arrays(shape: Sequence[int]) -> list[Any]:
    """Returns images, kernels and the gradient of what they make, of noise."""
    import numpy as np

    batch, height, width, inputs, outputs, size = shape
    rng = np.random.default_rng(0)
    shapes = (
        (batch, height, width, inputs),
        (size, size, inputs, outputs),
        (batch, height, width, outputs),
    )
    return [rng.standard_normal(x, np.float32) for x in shapes]


def jax_side(shape: Sequence[int], chosen: bool) -> Take:
    """Ours, or XLA's."""
    import jax

    from nstvis import devices, hoisting, layers

    def convolve(kernel: Any, x: Any) -> dict[str, Any]:
        size = (1, shape[-1] // 2)
        return {
            "y": (layers.convolve if chosen else layers.xla_convolve)(x, kernel, *size)
        }

    x, kernel, gradient = jax.device_put(arrays(shape))
    network: Any = convolve
    if shape[0] == 1:
        prepare, network = hoisting.hoisted(convolve, kernel, x)
        kernel = jax.jit(prepare)(kernel)

    def step(kernel: Any, x: Any) -> Any:
        if shape[0] == 1:
            y, pull = jax.vjp(lambda x: network(kernel, x), x)
        else:
            y, pull = jax.vjp(network, kernel, x)
        return y, pull({"y": gradient})

    data = kernel, x
    compiled = jax.jit(step).lower(*data).compile(dict(devices.compile_options()))

    def take(batches: Sequence[Any]) -> None:
        for _ in batches:
            jax.block_until_ready(compiled(*data))

    return take


def torch_side(shape: Sequence[int]) -> Take:
    """PyTorch's."""
    import torch

    x, kernel, gradient = map(torch.from_numpy, arrays(shape))
    x, gradient = x.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    kernel = kernel.permute(3, 2, 0, 1).to(memory_format=torch.channels_last)
    x, kernel = x.requires_grad_(), kernel.detach().requires_grad_()

    def take(batches: Sequence[Any]) -> None:
        for _ in batches:
            y = torch.nn.functional.conv2d(x, kernel, padding=shape[-1] // 2)
            torch.autograd.grad(y, (x,) if shape[0] == 1 else (x, kernel), gradient)

    return take


def work(side: str, case: str) -> None:
    """Convolves."""
    shape = [int(n) for n in case.split("x")]
    is_torch = side == "torch"
    take = torch_side(shape) if is_torch else jax_side(shape, side == "ours")
    turns.serve(1, itertools.repeat(None), {"step": take})


def rows(measure: Measure, quick: bool) -> Iterator[Row | str]:
    """Measures shape by shape."""
    import jax

    from nstvis import layers

    for shape in QUICK if quick else SHAPES:
        batch, height, width, inputs, outputs, size = shape
        x = jax.ShapeDtypeStruct((batch, height, width, inputs), "float32")
        kernel = jax.ShapeDtypeStruct((size, size, inputs, outputs), "float32")
        tile = layers.winograd_tile(x, kernel, 1, size // 2)  # pyright: ignore[reportArgumentType]
        name = (
            f"{batch} x {height}x{width}, {size}x{size}, {inputs} to {outputs},"
            f" tile {tile}"
        )
        tasks = ["ours step", "xla step", "torch step"]
        ours, xla, torch = measure("x".join(map(str, shape)), tasks, 5)
        yield Row(name, "XLA", ours, xla)
        yield Row(name, "PyTorch", ours, torch)


if __name__ == "__main__":
    report.main("steps/s", work, rows)
