"""A folder of images, `folder:PATH`, on a disk or in a bucket (`folder:gs://...`).

Its images are all regular files, at any depth, that end in .jpg, .jpeg, .png, .webp,
.gif, .tif or .tiff, in upper or lower case, unless they or a folder of theirs are hidden.
The class of an image is the first folder of its path; images outside of all folders have
none. Links that lead nowhere count as images, which are damaged.
"""

import bisect
import dataclasses
import difflib
import errno
import logging
import operator
import os
from collections.abc import Sequence

import fsspec
from etils import epath

from nstvis.data import Example

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff")

logger = logging.getLogger(__name__)


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
        path = epath.Path(self.folder) / id
        try:
            return Example(id, label, path.read_bytes())
        except Exception as error:  # a bucket's may be anything
            if not _of_one_file(error) or not self._is_there():
                raise OSError(f"{path}: cannot read: {_reason(error)}") from error
            return Example(id, label, b"", unreadable=_reason(error))

    def _is_there(self) -> bool:
        """Whether there still is anything in the folder, as of a disk that is gone."""
        if "://" in self.folder:
            return epath.Path(self.folder).is_dir()
        with os.scandir(self.folder) as entries:
            return any(True for _ in entries)

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
        OSError: There is no such folder, or it or one in it cannot be read.
    """
    if not argument:
        raise ValueError("folder takes a path: folder:PATH")
    path = argument if "://" in argument else os.path.join(data_dir, argument)
    folder, missing = _opened(path)
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


def _opened(path: str) -> tuple[epath.Path, bool]:
    """Returns a folder, and whether it is missing."""
    try:
        folder = epath.Path(path).expanduser()
    except KeyError as error:
        raise ValueError(
            f"cannot read {path}: no such protocol; give the path of a folder on a disk,"
            " or in a bucket: gs://, s3://, az:// or hf://"
        ) from error
    try:
        return folder, not folder.is_dir()
    except ImportError as error:
        reason = str(error)  # such as a file system that takes another package
        if path.startswith("gs://"):
            reason = 'gs:// takes gcsfs: pip install gcsfs (or "nstvis[gs]")'
        raise ValueError(f"cannot read {folder}: {reason}") from error
    except Exception as error:  # such as credentials that there are not
        raise OSError(f"cannot read {folder}: {_reason(error)}") from error


def _files(folder: epath.Path) -> list[str]:
    """Returns the paths of all files, at any depth, relative to the folder.

    Pipes, sockets and devices are left out; on a disk, so is what is hidden.
    """
    if "://" in str(folder):
        # One request per thousand files, where a walk takes one per folder.
        bucket, root = fsspec.url_to_fs(str(folder))
        return [path.removeprefix(f"{root}/") for path in bucket.find(root)]
    files, seen, waiting = [], {os.path.realpath(folder)}, [""]
    while waiting:
        parent, folders = waiting.pop(), {}
        for entry in _entries(folder / parent):
            if entry.name.startswith("."):
                continue
            lost = entry.is_symlink() and not os.path.exists(entry.path)
            if lost and not _is_image(entry.name):
                logger.warning("%s leads nowhere, and is left out", entry.path)
            elif lost or entry.is_file():
                files.append(f"{parent}{entry.name}")
            elif entry.is_dir():
                folders[entry.name] = os.path.realpath(entry.path)
        # Links may lead in circles; each folder is visited once.
        fresh = [name for name in sorted(folders) if folders[name] not in seen]
        seen.update(folders.values())
        waiting += [f"{parent}{name}/" for name in reversed(fresh)]
    return files


def _entries(folder: epath.Path) -> list[os.DirEntry[str]]:
    """Returns what is in a folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise OSError(
            f"cannot read {folder}: {_reason(error)}; make it readable, or move it away"
        ) from error


def _of_one_file(error: Exception) -> bool:
    """Whether an error is of a file alone, and not of its disk or the network."""
    kinds = FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError
    return isinstance(error, kinds) or getattr(error, "errno", None) == errno.ELOOP


def _reason(error: Exception) -> str:
    """Returns an error's own words in one line."""
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(words.split()) or repr(error)


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
