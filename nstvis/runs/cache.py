"""The cache folder: downloads, and compiled programs."""

import hashlib
import http.client
import os
import pathlib
import shutil
import tempfile
import urllib.request
from pathlib import Path

import jax
from tqdm import tqdm


def cache_folder() -> pathlib.Path:
    """Where compiled programs and downloaded weights are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "nstvis"


def keep_compiled() -> None:
    """Makes JAX keep what it compiles on disk, so that the next run starts at once."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def download(url: str, path: Path) -> None:
    """Downloads a file that must prove genuine; `path` never holds a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f"or download it by hand to {path}"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        try:
            _fetch(url, part)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"cannot download {url} ({error}): try again, {by_hand}"
            ) from error
        if not is_genuine(part):
            raise ValueError(
                f"{url} arrived damaged, its sha256 is not the one in its name: "
                f"try again, {by_hand}"
            )
        os.replace(part, path)


def _fetch(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=30) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0))
        with tqdm.wrapattr(response, "read", total=size, desc=path.name) as stream:
            shutil.copyfileobj(stream, file)


def is_genuine(path: Path) -> bool:
    """Tells whether a file's sha256 begins as its name, `model-sha256.pth`, ends."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest.startswith(path.stem.rpartition("-")[2])
