r"""Neural style transfer: paints one picture in the style of another.

    python launch.py --experiment=style
    python launch.py --experiment=style --config.content=photo.jpg \
        --config.style=painting.jpg --config.size=512 --workdir=runs/photo
    python launch.py --experiment=style --config=gatys2015 --config.content=photo.jpg
    python launch.py --experiment=style --config.content=photos/ --config.style=paintings/

Gatys, Ecker & Bethge 2015 (arXiv:1508.06576), with styles compared by a Wasserstein
distance; `--config.style_loss=gram` compares the paper's Gram matrices. Leaves `G.png`,
`index.html` (to watch the run in a browser), `film.png` (from noise to picture),
`loss.png`, `metrics.jsonl` and `frames/` in the workdir. `--config=PRESET` starts from one
of `gatys2015`, `neural_style` and `ng`. Of a folder of contents, of styles, or of both,
every content is painted in every style: `sheet.png` shows them, `cells/` has the pictures
and `cells.csv` their losses.

    python launch.py --experiment=style --config.sequence=True \
        --config.content=FRAMES --config.flow=FLOW --workdir=runs/video

paints a folder of frames, or an animated GIF, each from the last one's result
(`nstvis/synthesis/sequence.py`), to `G/000001.png` and so on, and `G.gif`.

The first command takes 79 s on two cores of an Intel Xeon, 20 of them to compile when it
is run first, and brings J from 4.7 down to 0.56 in 450 steps, at 384 x 288 pixels.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from PIL import Image

from nstvis import devices, images, plots
from nstvis.runs.config import bounded
from nstvis.runs.loop import Loop, Wish
from nstvis.runs.page import Page
from nstvis.synthesis import sequence, style_settings, sweep
from nstvis.synthesis.frames import Frames
from nstvis.synthesis.style import Moment, StyleTransfer

LOSSES = ("J", "J_content", "J_style")
FRAME = 1024  # pixels of the long side
LEFT = ("index.html", "film.png", "loss.png", "metrics.jsonl")  # besides the result


@dataclasses.dataclass(kw_only=True)
class Config(sequence.Settings, sweep.Painting):
    """Which pictures, and what to leave behind."""

    # Content picture: a path, demo, or a folder, all of whose pictures are painted; the
    # frames of a sequence.
    content: str = "demo"
    # Style pictures: paths separated by commas, demo, or a folder, of whose pictures each
    # is a style of its own.
    style: str = "demo"
    # Name of the result: .png, .jpg, or .tif for 16 bits per channel.
    output: str = "G.png"
    # Steps between two frames of the film.
    frame_every: int = bounded(90, least=1)
    # Seconds between two checkpoints.
    checkpoint_every: float = bounded(30.0, least=0)

    def check(self) -> None:
        """Raises a ValueError if fields do not fit together."""
        super().check()
        images.check_suffix(self.output)
        name = pathlib.PurePath(self.output).name
        if name != self.output or name in LEFT:
            raise ValueError(
                f"output={self.output} should be a file name of its own, such as G.png"
            )
        if sweep.has_folder(self) and not self.sequence and self.output != "G.png":
            raise ValueError(
                f"output={self.output} names one picture; those of a folder are in cells/"
            )


PRESETS = {name: Config(**x) for name, x in style_settings.PRESETS.items()}


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Paints the picture, and keeps frames of the way there; or those of folders."""
    if config.sequence:
        return _paint_sequence(config, workdir)
    if sweep.has_folder(config):
        return sweep.run_folders(config, workdir)
    (name, content), *styles = pictures = _pictures(config)
    page = Page(
        workdir,
        title=f"{name} in the style of {' and '.join(name for name, _ in styles)}",
        pictures=pictures,
        config=config,
        curves=LOSSES,
        results=[config.output, *LEFT],
    )
    transfer = StyleTransfer(content, [style for _, style in styles], config)
    (workdir / "frames").mkdir(exist_ok=True)

    def keep(moment: Moment) -> None:
        note = dataclasses.asdict(config) | {"step": moment.step}
        transfer.write(workdir / config.output, moment.state, note)

    def show(moment: Moment) -> None:
        picture = transfer.picture(moment.state)
        page.show(moment.step, picture, loop.metrics, loop.progress)

    with page, Loop(workdir, config.checkpoint_every, transfer.costs) as loop:
        try:
            for moment in transfer.run(loop.done, loop.restore):
                step = moment.step
                loop.record(moment.metrics, _numbers)
                if step % config.frame_every == 0 or step == len(transfer.costs):
                    _write_frame(workdir, step, transfer.picture(moment.state))
                    keep(moment)
                if devices.agreed(int(page.due()), step):
                    show(moment)
                wish = loop.wish(step)
                if wish == Wish.STOP:
                    break
                if wish == Wish.SAVE:
                    loop.save(step, moment.state)
                    keep(moment)
        except FloatingPointError:
            loop.metrics.flush()
            keep(moment)
            raise
        keep(moment)
        loop.finish(moment.step, moment.state)
        if devices.is_lead():
            _film(workdir)
        show(moment)
    if devices.is_lead():
        plots.metrics(workdir / "loss.png", loop.metrics.read(), LOSSES, "log")
    return [config.output, *LEFT]


def _paint_sequence(config: Config, workdir: pathlib.Path) -> list[str]:
    """Paints frames, each from the last one's result."""
    frames = Frames(config.content)
    name, styles = pathlib.Path(config.content).stem, _styles(config)
    stem = pathlib.PurePath(config.output).stem
    left = [f"{stem}.gif", stem, "index.html", "loss.png", "metrics.jsonl"]
    page = Page(
        workdir,
        title=f"{name} in the style of {' and '.join(name for name, _ in styles)}",
        pictures=[(name, frames[0]), *styles],
        config=config,
        curves=LOSSES,
        results=left,
    )
    transfer = sequence.SequenceTransfer(frames, [style for _, style in styles], config)
    metrics = sequence.paint(transfer, config, workdir, config.output, page)
    if devices.is_lead():
        plots.metrics(workdir / "loss.png", metrics.read(), LOSSES, "log")
    return left


def _pictures(config: Config) -> list[tuple[str, Image.Image]]:
    """Reads the content, then the styles; each is named after its file."""
    return [(path.stem, images.read(path)) for path in config.paths()]


def _styles(config: Config) -> list[tuple[str, Image.Image]]:
    return [(path.stem, images.read(path)) for path in config.style_paths()]


def _write_frame(workdir: pathlib.Path, step: int, picture: Image.Image) -> None:
    """Writes a frame of the film, of at most `FRAME` pixels."""
    if devices.is_lead():
        small = images.resize(picture, min(FRAME, max(picture.size)))
        images.write(workdir / "frames" / f"{step:06}.png", small)


def _film(workdir: pathlib.Path) -> None:
    """Puts at most seven frames in a row, from the first to the last."""
    frames = sorted((workdir / "frames").glob("*.png"))
    count = min(7, len(frames))
    shown = [frames[i * (len(frames) - 1) // max(1, count - 1)] for i in range(count)]
    labels = [f"step {int(path.stem)}" for path in shown]
    strip = images.sheet([images.read(path) for path in shown], labels, columns=count)
    images.write(workdir / "film.png", strip)


def _numbers(row: Mapping[str, float]) -> str:
    losses = (f"{name}={row[name]:.3g}" for name in LOSSES)
    note = "" if row["damping"] == 1 else f" damping={row['damping']:.2g}"
    return f"{' '.join(losses)}{note}"
