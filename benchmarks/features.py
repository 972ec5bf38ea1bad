"""Feature visualisation: 16 units of conv5 at once, against the same loop in PyTorch.

    python benchmarks/features.py

Both take the steps of `--experiment=features` with its default settings and the bundled
network's layers: pictures of 96 pixels are drawn from Fourier coefficients, randomly
shifted, scaled and rotated, each by its own amounts, and Adam raises the units'
activations before the ReLU, less the total variation. PyTorch's moves pictures with
`grid_sample`, after a circular pad, as it knows no periodic pictures.
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

MODEL, LAYER, UNITS = "alexnet_small", "conv5", range(16)
SIZE, JITTER, SCALE, ROTATE, VARIATION, RATE = 96, 8, 0.1, 5.0, 300.0, 0.1
PAD = 20  # pixels, at least as many as a corner moves
# A square root of the covariance of colours, whose columns are their components.
COLORS = [[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]


def ours() -> Take:
    """Our steps."""
    import jax

    from nstvis import models
    from nstvis.synthesis.features import Search, Settings

    settings = Settings(
        objective="unit",
        canvas="fourier",
        size=SIZE,
        steps=1_000_000,
        jitter=JITTER,
        scale=SCALE,
        rotate=ROTATE,
        tv=VARIATION,
        learning_rate=RATE,
    )
    search = Search(*models.load(MODEL), LAYER, settings, len(UNITS))
    states = search.run(UNITS)

    def take(batches: Sequence[Any]) -> None:
        state = None
        for _ in batches:
            state = next(states)
        jax.block_until_ready(state)

    return take


def draw(numbers: Any) -> Any:
    """From coefficients, `[n, 3, size, size // 2 + 1, 2]`, to pictures, 0..255."""
    import torch

    size = numbers.shape[2]
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    scale = size / (4 * torch.hypot(rows, columns).clamp(min=1 / size))
    spectrum = scale * torch.view_as_complex(numbers)
    colors = torch.tensor(COLORS) / torch.tensor(COLORS).norm(dim=0).max()
    components = torch.fft.irfft2(spectrum, (size, size))
    return 255 * torch.einsum("nchw,rc->nrhw", components, colors).sigmoid()


def moved(pictures: Any, shift: Any, factor: Any, degrees: Any) -> Any:
    """Shifts pictures, then scales and rotates them, each by its own amounts.

    Args:
        pictures: `[n, 3, size, size]`, periodic.
        shift: Pixels down and to the right, `[n, 2]`.
        factor: Above 1 enlarges, `[n]`.
        degrees: Counterclockwise, `[n]`.
    """
    import torch
    from torch.nn import functional

    padded = functional.pad(pictures, [PAD] * 4, "circular")
    last, angle = padded.shape[-1] - 1, torch.deg2rad(degrees)
    inner = (pictures.shape[-1] - 1) / last / factor
    cosine, sine = inner * torch.cos(angle), inner * torch.sin(angle)
    down, right = (-2 * shift / last).T
    to_x, to_y = [cosine, -sine, right], [sine, cosine, down]
    back = torch.stack([torch.stack(to_x, 1), torch.stack(to_y, 1)], 1)
    grid = functional.affine_grid(back, list(pictures.shape), align_corners=True)
    return functional.grid_sample(padded, grid, align_corners=True)


def theirs() -> Take:
    """The same in PyTorch."""
    import torch

    from benchmarks import torch_networks

    network = torch_networks.convolutions(MODEL, LAYER)[:-1]  # without the ReLU
    network.requires_grad_(False)
    n, units = len(UNITS), torch.arange(len(UNITS))
    numbers = (0.01 * torch.randn(n, 3, SIZE, SIZE // 2 + 1, 2)).requires_grad_()
    optimizer = torch.optim.Adam([numbers], lr=RATE, fused=True)

    def uniform() -> torch.Tensor:
        return 2 * torch.rand(n) - 1

    def take(batches: Sequence[Any]) -> None:
        for _ in batches:
            optimizer.zero_grad()
            pictures = draw(numbers)
            shift = torch.randint(-JITTER, JITTER + 1, (n, 2))
            amounts = shift, 1 + SCALE * uniform(), ROTATE * uniform()
            seen = network(torch_networks.normalized(moved(pictures, *amounts)))
            middle = seen[units, units, seen.shape[2] // 2, seen.shape[3] // 2]
            down, right = (pictures.diff(dim=dim) / 255 for dim in (2, 3))
            variation = (down**2).sum() + (right**2).sum()
            loss = VARIATION * variation / (3 * SIZE**2) - middle.sum()
            loss.backward()
            optimizer.step()

    return take


def work(side: str, case: str) -> None:
    """Takes steps."""
    take = ours() if side == "ours" else theirs()
    turns.serve(len(UNITS), itertools.repeat(None), {"step": take})


def rows(measure: Measure, quick: bool) -> Iterator[Row | str]:
    """Measures a step."""
    sides = measure("", ["ours step", "torch step"], 3 if quick else 8)
    yield Row(f"{len(UNITS)} units of {LAYER}, {MODEL}", "PyTorch", *sides)


if __name__ == "__main__":
    report.main("pictures x steps/s", work, rows)
