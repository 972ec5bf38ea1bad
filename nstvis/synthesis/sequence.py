"""Style transfer of moving pictures: each frame starts from the last one's result.

The first frame is painted as `style` paints a picture, at all its sizes. Each later one
takes the last steps of that again, `frame_steps` of them at the last size, from the result
of the frame before and with Adam's moments, both moved along optical flow if there is any
("short-term consistency by initialization" of Ruder, Dosovitskiy & Brox 2016,
arXiv:1604.08610).

Of the demo picture, moved by 3.6 and 1.7 pixels a frame at 120 x 90 pixels, a frame differs
from the last one moved along the flow by 31.5 of 255 when each is painted on its own, 31
without flow, 9 with it, and J is 0.67 rather than 0.66. With 30 steps it is 4 and J 0.80,
and what comes into the picture still looks like a photo.

A run resumes at any step, bit for bit, from the state of the loop alone: it has the
result that the next frame starts from.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from PIL import Image

from nstvis import devices, images
from nstvis.runs.config import Resumable, bounded
from nstvis.runs.loop import Loop, Wish
from nstvis.runs.metrics import Metrics
from nstvis.runs.page import Page
from nstvis.synthesis import canvas, flow, minimize, style_settings
from nstvis.synthesis.frames import Frames, pictures_in, write_animation
from nstvis.synthesis.style import StyleTransfer


@dataclasses.dataclass(kw_only=True)
class Settings(Resumable, style_settings.Settings):
    """How to paint a picture, or a moving one."""

    # Paint a moving picture: the content is a folder of frames, in natural order of their
    # names, or an animated GIF.
    sequence: bool = False
    # Folder of optical flow for a sequence: .flo files, the first from the second frame
    # back to the first, and so on. Starts are moved along it.
    flow: str = ""
    # Steps of each frame of a sequence but the first, which takes those of a picture.
    frame_steps: int = bounded(60, least=1, most=1_000_000)
    # Frames per second of a sequence's GIF.
    frame_rate: float = bounded(12.0, least=0.1, most=50)

    def check(self) -> None:
        """Raises a ValueError if fields do not fit together."""
        super().check()
        if self.sequence and self.frame_steps >= self.steps:
            raise ValueError(
                f"frame_steps={self.frame_steps} should be below steps={self.steps}: the"
                " first frame takes all steps, each other one the last of them"
            )
        if self.sequence and self.schedule != "even":
            raise ValueError(
                "a sequence takes the last of many steps: leave schedule=even"
            )
        if self.flow and not self.sequence:
            raise ValueError("flow is for frames: give sequence=True as well")


class Moment(NamedTuple):
    """One moment of a sequence.

    Attributes:
        frame: Number of the frame, from 0.
        whole: Whether it is finished.
        step: Steps done, those of all earlier frames included.
        transfer: Which draws the frame.
        state: The loop's state, valid until the next moment.
        metrics: Those of the last step, `step` as above; None before a frame's first.
    """

    frame: int
    whole: bool
    step: int
    transfer: StyleTransfer
    state: minimize.State
    metrics: minimize.Metrics | None


class SequenceTransfer:
    """A transfer of frames, compiled once for all of them.

    Attributes:
        frames: What is painted.
        costs: Floating-point operations of all steps, in order.
    """

    def __init__(
        self, frames: Frames, styles: Sequence[Image.Image], settings: Settings
    ):
        """Raises a ValueError if settings, styles, frames or flow do not fit."""
        self._flows = _flow_files(settings.flow, frames) if settings.flow else []
        self.frames, self._settings = frames, settings
        self._first = StyleTransfer(frames[0], styles, settings)
        costs, later = self._first.costs, len(frames) - 1
        self.costs = costs + later * costs[-settings.frame_steps :]

    def frame(self, step: int) -> int:
        """Returns the number of the frame, from 0, that this step belongs to."""
        later = step - len(self._first.costs)
        return max(0, -(-later // self._settings.frame_steps))

    def run(
        self,
        done: int = 0,
        restore: Callable[[minimize.State], minimize.State] = lambda state: state,
    ) -> Iterator[Moment]:
        """Yields the moments of each frame: before its first step, and after each.

        Args:
            done: Steps that an earlier run has done, after which to resume.
            restore: Returns that run's state, given a fresh one of the same size.
        """
        steps, count = len(self._first.costs), self._settings.frame_steps
        state = None
        for frame in range(self.frame(done), len(self.frames)):
            transfer = self._first
            if frame:
                transfer = transfer.with_content(self.frames[frame])
            if state is not None:
                restore = functools.partial(
                    self._started, state, frame, transfer.content
                )
            skipped = frame * count  # steps of the sequence over those of the transfer
            for moment in transfer.run(done - skipped, restore):
                state, metrics = moment.state, moment.metrics
                done = moment.step + skipped
                if metrics:
                    metrics = metrics | {"step": jnp.int32(done)}
                yield Moment(
                    frame, moment.step == steps, done, transfer, state, metrics
                )

    def _started(
        self,
        last: minimize.State,
        frame: int,
        content: Image.Image,
        fresh: minimize.State,
    ) -> minimize.State:
        """Returns the state that a frame starts from, after the last one's.

        Only Adam's moments are kept; what L-BFGS knows is of another objective.
        """
        adam = self._settings.optimizer == "adam"
        last, fresh = map(self._first.whole, (last, fresh))
        drawn, moments = last.best, last.optimizer if adam else fresh.optimizer
        if self._flows:
            drawn, moments = self._moved(drawn, moments, frame, content)
        done = jnp.int32(len(self._first.costs) - self._settings.frame_steps)
        if adam:  # the length of its steps goes by their number
            moments = optax.tree.set(moments, count=done)
        start = fresh._replace(step=done, canvas=drawn, optimizer=moments, best=drawn)
        # Copies, because a step that donates its state must not find one buffer twice.
        return self._first.placed(jax.tree.map(jnp.copy, start))

    def _moved(
        self, drawn: Array, moments: Any, frame: int, content: Image.Image
    ) -> tuple[Array, Any]:
        """Moves the last frame's result and its moments along the flow to a frame.

        What comes from outside of the picture, and what has no known flow, starts anew:
        from the content, with moments of 0. The margin is drawn anew, as a reflection.
        """
        margin = self._settings.margin
        height, width = canvas.cropped(drawn, margin).shape[1:3]
        motion = flow.resize(flow.read(self._flows[frame - 1]), width, height)
        known = flow.traceable(motion)[None, ..., None]

        def move(x: Array, otherwise: Array | float) -> Array:
            inner = flow.warp(canvas.cropped(x, margin), motion)
            return canvas.framed(jnp.where(known, inner, otherwise), margin)

        def move_moments(x: Array) -> Array:
            return move(x, 0.0) if x.shape == drawn.shape else x

        new = canvas.from_image(images.resize(content, max(width, height)))
        return move(drawn, new), jax.tree.map(move_moments, moments)


def paint(
    transfer: SequenceTransfer,
    settings: Settings,
    workdir: pathlib.Path,
    output: str,
    page: Page,
) -> Metrics:
    """Paints all frames, or those that an earlier start has left, into a workdir.

    For `output=G.png` there are `G/000001.png` and so on, and an animation, `G.gif`.

    Returns:
        The numbers of all steps.
    """
    name = pathlib.PurePath(output)
    folder, animation = workdir / name.stem, workdir / f"{name.stem}.gif"
    folder.mkdir(exist_ok=True)

    def text(row: Mapping[str, float]) -> str:
        number = transfer.frame(int(row["step"])) + 1
        return f"frame {number} of {len(transfer.frames)} J={row['J']:.3g}"

    def show(moment: Moment) -> None:
        picture = moment.transfer.picture(moment.state)
        page.show(moment.step, picture, loop.metrics, loop.progress)

    with page, Loop(workdir, settings.checkpoint_every, transfer.costs) as loop:
        for moment in transfer.run(loop.done, loop.restore):
            loop.record(moment.metrics, text)
            if moment.whole:
                file = folder / f"{moment.frame + 1:06}{name.suffix}"
                note = dataclasses.asdict(settings) | {"frame": moment.frame + 1}
                moment.transfer.write(file, moment.state, note)
            if devices.agreed(int(page.due()), moment.step):
                show(moment)
            wish = loop.wish(moment.step)
            if wish == Wish.STOP:
                break
            if moment.whole or wish == Wish.SAVE:
                loop.save(moment.step, moment.state)
        loop.finish(moment.step, moment.state)
        show(moment)
        if not loop.progress.interrupted and devices.is_lead():
            frames = sorted(folder.glob(f"*{name.suffix}"))
            write_animation(animation, frames, settings.frame_rate)
    return loop.metrics


def _flow_files(folder: str, frames: Frames) -> list[pathlib.Path]:
    """Returns a flow file for each frame but the first, once all have been checked."""
    paths = pictures_in(pathlib.Path(folder), [".flo"])
    if len(paths) != len(frames) - 1:
        raise ValueError(
            f"flow={folder} has {len(paths)} .flo files, where {len(frames)} frames take"
            f" {len(frames) - 1}: one from each frame but the first to the one before it"
        )
    for path in paths:
        size = flow.read_size(path)
        if size != frames.size:
            (w, h), (width, height) = size, frames.size
            raise ValueError(
                f"{path} is a flow of {w} x {h} pixels, but frames have {width} x {height}"
            )
    return paths
