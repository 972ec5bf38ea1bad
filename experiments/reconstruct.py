r"""Reconstructs pictures from the activations of each layer.

    python launch.py --experiment=reconstruct
    python launch.py --experiment=reconstruct --config.content=photo.jpg \
        --config.style=painting.jpg --workdir=runs/reconstruct
    python launch.py --experiment=reconstruct --config.model=vgg19 \
        --config.weights=torchvision --config.pooling=average \
        --config.layers=conv1_1,conv2_1,conv3_1,conv4_1,conv5_1

The content from one layer, for each layer (Mahendran & Vedaldi 2015, arXiv:1412.0035),
and the style from the first layer, the first two, and so on (Gatys, Ecker & Bethge 2015,
arXiv:1508.06576, Figure 1). Leaves the figure, `reconstruct.png`, each picture,
`loss.png`, `metrics.jsonl`, and `reconstruct.csv`: the loss of every picture, and the
peak signal-to-noise ratio (PSNR) to the original in dB.

With `--config.size=96 --config.steps=150`, which takes a minute on two cores of an Intel
Xeon, the content comes back from conv1_1 at 31.4 dB, from conv3_2 at 17.3 and from conv4_2
at 15.3.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from nstvis import assets, images, plots
from nstvis.runs.config import Resumable, bounded
from nstvis.runs.files import write_csv
from nstvis.runs.loop import Loop, Wish
from nstvis.synthesis import minimize
from nstvis.synthesis.reconstruct import Reconstruction, Settings, psnr


@dataclasses.dataclass(kw_only=True)
class Config(Resumable, Settings):
    """Which pictures are reconstructed."""

    # Content picture: a path, or demo.
    content: str = "demo"
    # Style picture: a path, or demo; it is cropped to the content's shape.
    style: str = "demo"
    # Seconds between two checkpoints.
    checkpoint_every: float = bounded(30.0, least=0)


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Optimises all pictures at once, and draws them."""
    content = images.read(assets.picture(config.content, "content"))
    style = images.read(assets.picture(config.style, "style"))
    reconstruction = Reconstruction(content, style, config)
    costs = [reconstruction.flops] * config.steps
    with Loop(workdir, config.checkpoint_every, costs) as loop:
        state = start = loop.restore(reconstruction.start())
        step = loop.done
        for state, losses in reconstruction.run(start, range(step, config.steps)):
            step += 1
            loop.record({"step": step} | losses, _range)
            wish = loop.wish(step)
            if wish == Wish.STOP:
                break
            if wish == Wish.SAVE:
                loop.save(step, state)
        loop.finish(step, state)
        rows = _draw(workdir, reconstruction, state)
    write_csv(workdir / "reconstruct.csv", ("picture", "loss", "psnr"), rows)
    plots.metrics(
        workdir / "loss.png", loop.metrics.read(), reconstruction.names, scale="log"
    )
    return ["reconstruct.png", "reconstruct.csv", "loss.png", "metrics.jsonl"]


def _draw(
    workdir: pathlib.Path, reconstruction: Reconstruction, state: minimize.State
) -> list[tuple[str, str, str]]:
    """Writes the pictures and the figure; returns the rows of the table."""
    content, style = reconstruction.originals
    pictures, count = reconstruction.pictures(state), len(reconstruction.layers)
    rows, labels = [], []
    for i, (name, picture) in enumerate(zip(reconstruction.names, pictures)):
        images.write(workdir / f"{name}.png", picture)
        ratio = f"{psnr(picture, content):.2f}" if i < count else ""
        rows.append((name, f"{float(state.best_loss[i]):.6g}", ratio))
        layers = name.partition("_")[2]
        labels.append(f"{layers}  {float(ratio):.1f} dB" if ratio else layers)
    cells = [content, *pictures[:count], style, *pictures[count:]]
    labels = ["content", *labels[:count], "style", *labels[count:]]
    images.write(workdir / "reconstruct.png", images.sheet(cells, labels, count + 1))
    return rows


def _range(row: Mapping[str, float]) -> str:
    losses = {name: loss for name, loss in row.items() if name != "step"}
    worst = max(losses, key=losses.__getitem__)
    return f"losses {min(losses.values()):.3g} to {losses[worst]:.3g} ({worst})"
