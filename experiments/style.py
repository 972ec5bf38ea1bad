r"""Neural style transfer: paints one picture in the style of another.

    python launch.py --experiment=style
    python launch.py --experiment=style --config.content=photo.jpg \
        --config.style=painting.jpg --config.size=512 --workdir=runs/photo
    python launch.py --experiment=style --config=gatys2015 --config.content=photo.jpg

Gatys, Ecker & Bethge 2015 (arXiv:1508.06576). Leaves `G.png`, `film.png` (from noise to
picture), `loss.png`, `metrics.jsonl` and `frames/` in the workdir. `--config=PRESET`
starts from one of `gatys2015`, `neural_style` and `ng`.

The first command takes 105 s on two cores of an AMD EPYC (Zen 4) and brings J from 20
down to 1.07 in 750 steps, at 384 x 288 pixels.
"""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from nstvis import assets, images, plots
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.config import bounded
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Progress
from nstvis.synthesis.style import Moment, StyleTransfer
from nstvis.synthesis.style_settings import Settings


@dataclasses.dataclass(kw_only=True)
class Config(Settings):
    """Which pictures, and what to leave behind."""

    # Content picture: a path, or demo.
    content: str = "demo"
    # Style pictures: paths separated by commas, or demo.
    style: str = "demo"
    # Name of the result: .png, .jpg, or .tif for 16 bits per channel.
    output: str = "G.png"
    # Steps between two progress pictures.
    frame_every: int = bounded(125, least=1)
    # Seconds between two checkpoints.
    checkpoint_every: float = bounded(30.0, least=0)

    def check(self) -> None:
        """Raises a ValueError if the result cannot have that name."""
        images.check_suffix(self.output)
        name = pathlib.PurePath(self.output).name
        if name != self.output or name in ("film.png", "loss.png"):
            raise ValueError(
                f"output={self.output} should be a file name of its own, such as G.png"
            )


_FIRST_OF_EACH_BLOCK = "conv1_1,conv2_1,conv3_1,conv4_1,conv5_1"
_VGG = Config(
    model="vgg19",
    weights="torchvision",
    content_layers="conv4_2",
    style_layers=_FIRST_OF_EACH_BLOCK,
    size=512,
    scales=1,
    smoothing=0.0,
    jitter=0,
)
_GATYS = dataclasses.replace(
    _VGG,
    pooling="average",
    style_layers=_FIRST_OF_EACH_BLOCK.replace(",", ":0.2,") + ":0.2",
    gamma=0.0,
)

PRESETS = {
    # The paper, with its larger alpha / beta.
    "gatys2015": dataclasses.replace(
        _GATYS, units="gatys2015", beta=1000.0, optimizer="lbfgs", steps=500
    ),
    # The losses of neural-style-pt with its default weights, and its Adam.
    "neural_style": dataclasses.replace(
        _VGG,
        units="neural_style",
        alpha=5.0,
        beta=100.0,
        gamma=1e-3,
        tv_power=1,
        learning_rate=1.0,
        steps=1000,
    ),
    # Andrew Ng's course.
    "ng": dataclasses.replace(
        _GATYS,
        units="ng",
        alpha=10.0,
        beta=40.0,
        size=400,
        learning_rate=2.0,
        steps=200,
    ),
}


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Paints the picture, and keeps frames of how it came about."""
    content, styles = _open(config)
    painting = StyleTransfer(content, styles, config)
    checkpoints = Checkpoints(workdir, config.checkpoint_every)
    done = checkpoints.latest()
    (workdir / "frames").mkdir(exist_ok=True)
    steps = range(1, painting.steps + 1)
    with (
        checkpoints,
        Metrics(workdir, done) as metrics,
        Progress(list(map(painting.flops, steps)), done) as progress,
    ):
        try:
            for moment in painting.run(done, checkpoints.restore):
                step = moment.step
                if moment.metrics and (row := metrics.write(moment.metrics)):
                    progress.show(int(row["step"]), _numbers(row))
                if step % config.frame_every == 0 or step == painting.steps:
                    _keep_frame(painting, moment, config, workdir)
                if progress.interrupted:
                    break
                if checkpoints.due():
                    metrics.flush()
                    checkpoints.save(step, moment.state)
                    _keep_result(painting, moment, config, workdir)
        except FloatingPointError:
            metrics.flush()
            _keep_result(painting, moment, config, workdir)
            raise
        if row := metrics.flush():
            progress.show(int(row["step"]), _numbers(row))
        _keep_result(painting, moment, config, workdir)
        checkpoints.save(moment.step, moment.state)
        _film(workdir)
    losses = ["J", "J_content", "J_style"]
    plots.metrics(workdir / "loss.png", metrics.read(), losses, "log")
    return [config.output, "film.png", "loss.png", "metrics.jsonl"]


def _open(config: Config) -> tuple[Image.Image, list[Image.Image]]:
    """Reads the content picture and the style pictures."""

    def read(path: str, kind: str) -> Image.Image:
        demo = assets.FOLDER / f"demo_{kind}.jpg"
        return images.read(demo if path == "demo" else path)

    one = pathlib.Path(config.style).is_file()  # perhaps with a comma in its name
    paths = [config.style] if one else config.style.split(",")
    styles = [read(path.strip(), "style") for path in paths]
    return read(config.content, "content"), styles


def _keep_frame(
    painting: StyleTransfer, moment: Moment, config: Config, workdir: pathlib.Path
) -> None:
    """Writes the best picture so far as a frame of the film, and as the result."""
    frame = workdir / "frames" / f"{moment.step:06}.png"
    images.write(frame, painting.picture(moment.state))
    _keep_result(painting, moment, config, workdir)


def _keep_result(
    painting: StyleTransfer, moment: Moment, config: Config, workdir: pathlib.Path
) -> None:
    """Writes the best picture so far, with the settings that made it."""
    picture = painting.picture(moment.state)
    settings = dataclasses.asdict(config) | {"step": moment.step}
    if pathlib.Path(config.output).suffix.lower() not in (".tif", ".tiff"):
        return images.write(workdir / config.output, picture, settings)
    array = painting.array(moment.state)
    if picture.mode == "RGBA":
        array = np.dstack([array, np.asarray(picture.getchannel("A"))])
    images.write(workdir / config.output, array, settings)


def _film(workdir: pathlib.Path) -> None:
    """Puts at most seven frames in a row, from the first to the last."""
    frames = sorted((workdir / "frames").glob("*.png"))
    count = min(7, len(frames))
    chosen = [frames[i * (len(frames) - 1) // max(1, count - 1)] for i in range(count)]
    pictures = [images.read(path) for path in chosen]
    labels = [f"step {int(path.stem)}" for path in chosen]
    strip = images.sheet(pictures, labels, columns=count)
    images.write(workdir / "film.png", strip)


def _numbers(row: dict[str, float]) -> str:
    losses = (f"{name}={row[name]:.3g}" for name in ("J", "J_content", "J_style"))
    note = "" if row["damping"] == 1 else f" damping={row['damping']:.2g}"
    return f"{' '.join(losses)}{note}"
