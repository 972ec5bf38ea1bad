"""A folder of images, `folder:PATH`, on a disk or in a bucket (`folder:gs://...`).

Its images are all files, at any depth, that end in .jpg, .jpeg, .png, .webp, .gif, .tif
or .tiff, in upper or lower case, unless they or a folder of theirs are hidden. The class
of an image is the first folder of its path; images outside of all folders have none.
"""

import bisect
import dataclasses
import difflib
import operator
import os
from collections.abc import Sequence

import fsspec
from etils import epath

from nstvis.data import Example

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Files:
    """The images of a folder, in the order of their ids.

    Attributes:
        folder: The folder of the split.
        ids: Paths relative to it, sorted.
        classes: Names of the folders in it that hold images, sorted.
    """

    folder: str
    ids: Sequence[str]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        id = self.id_of(index)
        name, slash, _ = id.partition("/")
        label = bisect.bisect_left(self.classes, name) if slash else -1
        return Example(id, label, (epath.Path(self.folder) / id).read_bytes())

    def id_of(self, index: int) -> str:
        """Returns the path of an image relative to the folder."""
        return self.ids[operator.index(index)]

    def index(self, id: str) -> int:
        """Returns the index of the image with a path relative to the folder."""
        index = bisect.bisect_left(self.ids, id)
        if self.ids[index : index + 1] != (id,):
            raise ValueError(f"no image {id!r} in {self.folder}")
        return index


def load(argument: str, split: str, data_dir: str) -> Files:
    """Opens a folder of images.

    Args:
        argument: The folder's path.
        split: A subfolder. Of a folder without splits, `all` and `train` are all of it.
        data_dir: The folder that a relative path starts from; if empty, the current.

    Raises:
        ValueError: There are no images, or no such subfolder.
        FileNotFoundError: There is no such folder.
    """
    if not argument:
        raise ValueError("folder takes a path: folder:PATH")
    path = argument if "://" in argument else os.path.join(data_dir, argument)
    folder = epath.Path(path).expanduser()
    try:
        missing = not folder.is_dir()
    except ImportError as error:
        reason = str(error)  # such as a file system that takes another package
        if path.startswith("gs://"):
            reason = 'gs:// takes gcsfs: pip install gcsfs (or "nstvis[gs]")'
        raise ValueError(f"cannot read {folder}: {reason}") from error
    if missing:
        raise FileNotFoundError(f"no folder {folder}{_hint(folder)}")
    if (folder / split).is_dir():
        folder = folder / split
    elif split not in ("train", "all") or (folder / "train").is_dir():
        hint = "" if (folder / "train").is_dir() else "; split=all is all of its images"
        raise ValueError(
            f"no split {split!r} of {folder}: it has no folder {split}{hint}"
        )
    ids = sorted(filter(_is_image, _files(folder)))
    if not ids:
        raise ValueError(f"no images in {folder}: none ends in {', '.join(SUFFIXES)}")
    classes = sorted({id.partition("/")[0] for id in ids if "/" in id})
    return Files(str(folder), tuple(ids), tuple(classes))


def _files(folder: epath.Path) -> list[str]:
    """Returns the paths of all files, at any depth, relative to the folder."""
    if "://" in str(folder):
        # One request per thousand files, where a walk takes one per folder.
        bucket, root = fsspec.url_to_fs(str(folder))
        return [path.removeprefix(f"{root}/") for path in bucket.find(root)]
    files, seen = [], {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        # Links may lead in circles; each folder is visited once.
        folders[:] = [name for name in sorted(folders) if real[name] not in seen]
        seen.update(real.values())
        files += [os.path.relpath(os.path.join(parent, n), folder) for n in names]
    return [path.replace(os.sep, "/") for path in files]


def _is_image(id: str) -> bool:
    hidden = any(part.startswith(".") for part in id.split("/"))
    return id.lower().endswith(SUFFIXES) and not hidden


def _hint(folder: epath.Path) -> str:
    """Returns what may be wrong with a path that is no folder."""
    if folder.exists():
        return ": it is a file; give the folder that it is in"
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    names = [sibling.name for sibling in siblings]
    close = difflib.get_close_matches(folder.name, names, n=1)
    return f"; did you mean {folder.parent / close[0]}?" if close else ""
