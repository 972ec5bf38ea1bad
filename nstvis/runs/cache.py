"""The cache folder: downloads, and compiled programs."""

import hashlib
import http.client
import os
import pathlib
import shutil
import urllib.request
from pathlib import Path
from typing import BinaryIO

import jax
from tqdm import tqdm

from nstvis.runs import files


def cache_folder() -> pathlib.Path:
    """Returns where compiled programs, downloads and data sets are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "nstvis"


def keep_compiled() -> None:
    """Makes JAX keep compiled programs on disk, so that the next run starts at once."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def download(url: str, path: Path) -> None:
    """Downloads a file whose name ends in its checksum, whole or not at all.

    Args:
        url: Where it is.
        path: Where to keep it, as `NAME-SHA256.SUFFIX`; see `is_genuine`.

    Raises:
        ConnectionError: The download failed.
        ValueError: The file does not have the checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f"or download it by hand to {path}"
    with files.replacing(path) as file:
        try:
            _fetch(url, file, path.name)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"cannot download {url} ({error}): try again, {by_hand}"
            ) from error
        file.flush()
        if not is_genuine(Path(file.name), path.stem):
            raise ValueError(
                f"{url} arrived damaged, its sha256 is not the one in its name: "
                f"try again, {by_hand}"
            )


def _fetch(url: str, file: BinaryIO, name: str) -> None:
    with urllib.request.urlopen(url, timeout=30) as response:
        size = int(response.headers.get("Content-Length", 0))
        with tqdm.wrapattr(response, "read", total=size, desc=name) as stream:
            shutil.copyfileobj(stream, file)


def is_genuine(path: Path, stem: str = "") -> bool:
    """Whether a file's sha256 begins as its stem, `model-sha256`, ends.

    Args:
        path: The file.
        stem: The stem that it should have; that of `path` if empty.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest.startswith((stem or path.stem).rpartition("-")[2])
