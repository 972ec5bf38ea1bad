"""Style losses compared by a score that none of them optimises, at equal content loss.

    python benchmarks/style_losses.py CONTENTS STYLES

paints each picture of the folder CONTENTS in the style of each picture of the folder
STYLES, with every style loss, through `vgg_small`. For each pair, beta of the others is
sought until their content loss is that of `gram` within 5 %. The score is the sliced
Wasserstein distance between patches of the painted picture and of the style: of
`alexnet_small`'s activations, which are functions of patches, at five layers, each over
the style's mean square. Lower is better. The table is Markdown, and means are over pairs:
the score, in brackets how often it was the best of a pair's, the content loss in balanced
units, beta (a geometric mean), and the seconds of one painting, without compilation.
"""

import argparse
import dataclasses
import itertools
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
from PIL import Image

from nstvis import images, models
from nstvis.runs import cache
from nstvis.synthesis.style import Settings, StyleTransfer

LOSSES = ("gram", "moments", "w2", "swd", "neighbours")
CONTENT_LAYER = "conv3_2"
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1")
JUDGE = ("conv1", "conv2", "conv3", "conv4", "conv5")
DIRECTIONS = 128
LEVELS = (np.arange(1024) + 0.5) / 1024
TRIES = 6  # of beta

Network = tuple[models.Forward, models.Params]


class Painting(NamedTuple):
    """One painted picture and what was measured of it."""

    picture: Image.Image
    content: float
    beta: float
    seconds: float


def features(network: Network, picture: Image.Image) -> dict[str, np.ndarray]:
    """Returns a picture's activations by layer, `[positions, channels]`."""
    forward, params = network
    array = images.to_array(picture)[None]
    return {
        name: np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        for name, x in jax.jit(forward)(params, array).items()
        if x.ndim == 4
    }


def score(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """Sliced Wasserstein distance of two pictures' activations, averaged over layers."""
    random = np.random.default_rng(0)
    distances = []
    for name in JUDGE:
        directions = random.standard_normal((found[name].shape[1], DIRECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        ours, theirs = (
            np.quantile(x[name] @ directions, LEVELS, axis=0) for x in (found, wanted)
        )
        distances.append(((ours - theirs) ** 2).mean() / (wanted[name] ** 2).mean())
    return float(np.mean(distances))


class Pair:
    """A content and a style to paint with any loss and beta."""

    def __init__(self, content: Path, style: Path, settings: Settings):
        self.settings = settings
        self.content, self.style = (images.read(p) for p in (content, style))
        self.network = models.load(
            settings.model,
            settings.weights,
            pooling=settings.pooling,
            last=CONTENT_LAYER,
        )
        self.wanted = self._layer(images.resize(self.content, settings.size))

    def paint(self, loss: str, beta: float) -> Painting:
        """Paints the pair once."""
        # Weights are data of the compiled step, and beta is not: one step fits all.
        layers = ",".join(f"{layer}:{beta:.6f}" for layer in STYLE_LAYERS)
        changed = dataclasses.replace(
            self.settings, style_loss=loss, style_layers=layers, beta=1.0
        )
        transfer = StyleTransfer(self.content, [self.style], changed)
        start = time.perf_counter()
        *_, last = transfer.run()
        picture = transfer.picture(last.state)
        seconds = time.perf_counter() - start
        error = ((self._layer(picture) - self.wanted) ** 2).sum()
        return Painting(picture, error / (self.wanted**2).sum(), beta, seconds)

    def seek(self, loss: str, beta: float, content: float) -> Painting:
        """Paints with betas until the content loss is right, within 5 %."""
        slope, before = 0.5, None
        for _ in range(TRIES):
            painting = self.paint(loss, beta)
            miss = math.log(painting.content / content)
            if abs(miss) < math.log(1.05):
                break
            if before:
                rise = math.log(painting.content / before.content)
                slope = float(np.clip(rise / math.log(beta / before.beta), 0.15, 1.5))
            before, beta = painting, beta * math.exp(-miss / slope)
        return painting

    def _layer(self, picture: Image.Image) -> np.ndarray:
        return features(self.network, picture)[CONTENT_LAYER]


def compare(
    pair: Pair, betas: dict[str, float], judge: Network
) -> dict[str, tuple[float, Painting]]:
    """Paints a pair with all losses; returns their scores and paintings.

    Args:
        pair: What to paint.
        betas: Where to seek each loss's beta first; takes what was found.
        judge: The network that scores, and its parameters.
    """
    style = images.resize(pair.style, pair.settings.size)
    wanted = features(judge, style)
    rows, content = {}, None
    for loss in LOSSES:
        if content is None:
            painting = pair.paint(loss, betas[loss])
            content = painting.content
        else:
            painting = pair.seek(loss, betas[loss], content)
        betas[loss] = painting.beta
        rows[loss] = score(features(judge, painting.picture), wanted), painting
        line = (f"{x:.3f}" for x in (rows[loss][0], painting.content, painting.beta))
        print(loss, *line, file=sys.stderr, flush=True)
    return rows


def table(results: list[dict[str, tuple[float, Painting]]]) -> str:
    """Returns the Markdown."""
    best = [min(rows, key=lambda loss: rows[loss][0]) for rows in results]
    lines = [
        "| loss | score | content loss | beta | seconds |",
        "|---|---|---|---|---|",
    ]
    for loss in LOSSES:
        mean = np.mean([rows[loss][0] for rows in results])
        paintings = [rows[loss][1] for rows in results]
        content = np.mean([p.content for p in paintings])
        beta = np.exp(np.mean([np.log(p.beta) for p in paintings]))
        seconds = np.mean([p.seconds for p in paintings])
        lines.append(
            f"| `{loss}` | {mean:.4f} ({best.count(loss)}) | {content:.3f} | {beta:.2f}"
            f" | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contents", type=Path, help="folder of content pictures")
    parser.add_argument("styles", type=Path, help="folder of style pictures")
    parser.add_argument("--weights", default="bundled", help="of vgg_small")
    parser.add_argument("--size", type=int, default=256, help="long side, in pixels")
    parser.add_argument("--steps", type=int, default=150, help="at each of three sizes")
    parser.add_argument("--beta", type=float, default=Settings().beta, help="of gram")
    parser.add_argument("--pairs", type=int, help="how many, at most")
    parser.add_argument("--out", type=Path, help="folder for the painted pictures")
    args = parser.parse_args()
    settings = Settings(
        content_layers=CONTENT_LAYER,
        weights=args.weights,
        size=args.size,
        steps=args.steps,
    )
    cache.keep_compiled()
    folders = (sorted(p.iterdir()) for p in (args.contents, args.styles))
    betas: dict[str, float] = dict.fromkeys(LOSSES, args.beta)
    results = []
    judge = models.load("alexnet_small", last=JUDGE[-1])
    pairs = [(c, s) for c, s in itertools.product(*folders) if c.name != s.name]
    for content, style in pairs[: args.pairs]:
        print(content.stem, style.stem, file=sys.stderr)
        betas["gram"] = args.beta
        results.append(compare(Pair(content, style, settings), betas, judge))
        for loss, (_, painting) in results[-1].items():
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                name = f"{content.stem}_{style.stem}_{loss}.png"
                painting.picture.save(args.out / name)
    print(table(results))


if __name__ == "__main__":
    main()
