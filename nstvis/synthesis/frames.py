"""Moving pictures: the frames of a folder or of an animation, and animated GIFs."""

import itertools
import pathlib
import re
from collections.abc import Sequence

from PIL import Image

from nstvis import decoding, images
from nstvis.data.folder import SUFFIXES
from nstvis.runs import files


class Frames:
    """The frames of a moving picture, in order; each is read when it is asked for.

    Attributes:
        size: Width and height of all of them, in pixels.
    """

    def __init__(self, path: str):
        """Looks at all frames, but decodes none.

        Args:
            path: A folder of pictures, taken in natural order of their names (2.png
                before 10.png), or a GIF, WebP, PNG or TIFF file of several frames.

        Raises:
            ValueError: There are no frames, sizes differ, or a file is no picture.
            FileNotFoundError: There is no such folder or file.
        """
        self._places = _places(pathlib.Path(path))
        first, *others = (_size(*place) for place in self._places)
        for (file, _), size in zip(self._places[1:], others):
            if size != first:
                raise ValueError(
                    f"{file} has {size[0]} x {size[1]} pixels, the first frame"
                    f" {first[0]} x {first[1]}: give frames of one size"
                )
        self.size = first

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Image.Image:
        """Reads a frame as `images.read` reads a picture."""
        file, number = self._places[index]
        if not number:
            return images.read(file)
        try:
            with Image.open(file) as picture:
                picture.seek(number)
                return decoding.normalized(picture)
        except Exception as error:  # decoders raise almost anything on a broken file
            line = f"{file}: cannot read frame {number + 1}: {error}"
            raise ValueError(line) from error


def naturally(name: str) -> tuple[list[str | int], str]:
    """Returns a key that sorts names as people do: numbers in them by their value."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    return [int(x) if i % 2 else x.lower() for i, x in enumerate(parts)], name


def pictures_in(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """Returns a folder's files with these suffixes that are not hidden, naturally sorted.

    Raises:
        ValueError: There are none.
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    chosen = [name for name in names if name.lower().endswith(tuple(suffixes))]
    if not chosen:
        raise ValueError(f"{folder} has no file that ends in {', '.join(suffixes)}")
    return [folder / name for name in sorted(chosen, key=naturally)]


def write_animation(
    path: pathlib.Path, frames: Sequence[pathlib.Path], rate: float
) -> None:
    """Writes an animated GIF that repeats for ever, whole or not at all.

    Args:
        path: Of the GIF.
        frames: At least one picture file, all of one size.
        rate: Frames per second.
    """
    first, *others = frames
    # Times are in hundredths of a second, whose rounding errors must not add up.
    times = [round(100 * i / rate) for i in range(len(frames) + 1)]
    with files.replacing(path) as file:
        images.read(first).save(
            file,
            "GIF",
            save_all=True,
            append_images=map(images.read, others),  # one by one
            duration=[10 * (end - begin) for begin, end in itertools.pairwise(times)],
            disposal=2,  # what is transparent shows no frame before
            loop=0,
        )


def _places(path: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
    """Returns each frame's file, and its number in there."""
    if path.is_dir():
        return [(file, 0) for file in pictures_in(path, SUFFIXES)]
    images.read(path)  # says what is wrong with the file, if anything is
    with Image.open(path) as picture:
        count = getattr(picture, "n_frames", 1)
    if count < 2:
        raise ValueError(
            f"{path} is a single picture: a sequence takes a folder of frames, or an"
            " animation"
        )
    return [(path, number) for number in range(count)]


def _size(file: pathlib.Path, number: int) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:
            picture.seek(number)
            return picture.size
    except OSError:  # what images.read raises says more
        return images.read(file).size
