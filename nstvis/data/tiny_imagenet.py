"""Tiny ImageNet: 200 classes, 64 x 64 pixels, from the official archive.

Le & Yang 2015, http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf. Any archive
of the same layout will do, with any number of images and classes. The test split, which
has no labels, is left out.
"""

import contextlib
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from nstvis.data.tfds import Records, prepare, quiet, read
from nstvis.runs import cache

ARCHIVE = "tiny-imagenet-200.zip"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"

_ROOT = "tiny-imagenet-200/"


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """The official archive, downloaded, or any archive of its layout."""

    VERSION = tfds.core.Version("1.0.0")
    # Read instead of a download.
    archive: epath.Path | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(),
            }
        )
        return self.dataset_info_from_configs(
            features=features, supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # which retries for minutes if there is no network
        archive = self.archive or _downloaded()
        with _opened(archive) as files:
            wnids = files.read(_ROOT + "wnids.txt").decode().split()
            words = files.read(_ROOT + "words.txt").decode().splitlines()
        meanings = dict(line.split("\t", 1) for line in words)
        features: Any = self.info.features
        features["label"].names = [meanings.get(w, w) for w in wnids]
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        return {
            "train": self._generate_examples(archive, labels, _train),
            "validation": self._generate_examples(archive, labels, _validation),
        }

    def _generate_examples(self, archive, labels, members):
        with _opened(archive) as files:
            for name, wnid in members(files):
                yield name, {"image": files.read(name), "label": labels[wnid]}


@quiet()
def load(argument: str, split: str, data_dir: str) -> Records:
    """Opens a split; the first time, it is prepared, and downloaded if need be.

    Prepared data sets are kept in the cache folder, one per archive.

    Args:
        argument: Must be empty.
        split: `train` or `validation`, or a slice of one.
        data_dir: The folder of `tiny-imagenet-200.zip`; if empty, it is downloaded.

    Raises:
        ValueError: There is no such split, or the archive is damaged.
        OSError: The archive does not exist, or the download failed.
    """
    if argument:
        raise ValueError(f"tiny_imagenet takes no argument, not {argument!r}")
    archive = epath.Path(data_dir) / ARCHIVE if data_dir else None
    digest = _sha256(archive) if archive else SHA256
    folder = cache.cache_folder() / "tfds" / digest[:16]
    builder = TinyImagenet(data_dir=folder, file_format="array_record")
    builder.archive = archive
    prepare(builder)
    return read(builder, split)


def _downloaded() -> epath.Path:
    path = cache.cache_folder() / f"tiny-imagenet-200-{SHA256}.zip"
    if not path.exists():
        cache.download(URL, path)
    return epath.Path(path)


def _sha256(archive: epath.Path) -> str:
    if not archive.exists():
        raise FileNotFoundError(
            f"{archive}: no such file; put the archive from {URL} there, or leave"
            " data_dir empty to download it"
        )
    file: Any
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _train(files: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yields the names of the training images with their classes."""
    for name in files.namelist():
        if match := re.fullmatch(rf"{_ROOT}train/(\w+)/images/[^/]+\.JPEG", name):
            yield name, match[1]


def _validation(files: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yields the names of the validation images with their classes."""
    present = set(files.namelist())
    table = files.read(_ROOT + "val/val_annotations.txt").decode()
    for line in table.splitlines():
        file, wnid, *_ = line.split("\t")
        name = f"{_ROOT}val/images/{file}"
        if name in present:
            yield name, wnid


@contextlib.contextmanager
def _opened(archive: epath.Path) -> Iterator[zipfile.ZipFile]:
    try:
        with archive.open("rb") as file, zipfile.ZipFile(file) as files:
            yield files
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{archive} is damaged or is not Tiny ImageNet ({reason}): replace it by {URL}"
        ) from error
