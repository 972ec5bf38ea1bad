"""The cache folder: downloads, and compiled programs."""

import hashlib
import http.client
import logging
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from nstvis.runs import files

logger = logging.getLogger(__name__)

# Of a download: seconds without a byte, bytes per second after that, seconds in all.
SILENCE, SLOWEST, LONGEST = 30, 1_000, 3 * 3600


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

    What has arrived when it fails, or is killed, stays beside `path` as a hidden file,
    and the next try goes on from there.

    Args:
        url: Where it is.
        path: Where to keep it, as `NAME-SHA256.SUFFIX`; see `is_genuine`.

    Raises:
        ConnectionError: The download failed, or took too long.
        ValueError: The file does not have the checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f"or download it by hand to {path}"
    waiting = f"waiting for a download of another process to {path.parent}"
    with files.locked(path.parent, waiting) as alone:
        if path.exists():  # by now, from another process
            return
        partial = path.with_name(f".{path.name if alone else uuid.uuid4().hex}.partial")
        try:
            _fetch(url, partial, path)
        except ConnectionError as error:
            if not _is_whole(partial, path):
                raise ConnectionError(
                    f"cannot download {url} ({_line(error)}): try again, {by_hand}"
                ) from error
        if not _is_whole(partial, path):
            partial.unlink(missing_ok=True)
            raise ValueError(
                f"{url} arrived damaged, its sha256 is not the one in its name: "
                f"try again, {by_hand}"
            )
        partial.replace(path)


def _is_whole(partial: Path, path: Path) -> bool:
    return partial.exists() and is_genuine(partial, path.stem)


def _fetch(url: str, partial: Path, path: Path) -> None:
    """Downloads what is missing of a file."""
    if _is_whole(partial, path):  # from a process that was killed then
        return
    with _opened(url, partial.stat().st_size if partial.exists() else 0) as response:
        start = _start(response)
        announced = response.headers.get("Content-Length", "")
        whole = start + int(announced) if announced.isdecimal() else None
        bar = tqdm(
            desc=path.name, total=whole, initial=start, unit="B", unit_scale=True
        )
        with files.naming(path), partial.open("r+b" if start else "wb") as file, bar:
            file.truncate(file.seek(start))
            for some in _received(response):
                file.write(some)
                bar.update(len(some))
            if whole is not None and file.tell() != whole:
                raise ConnectionError(
                    f"it ended after {file.tell():,} of {whole:,} bytes"
                )


def _opened(url: str, start: int) -> Any:
    """Asks for a file from byte `start` on."""
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == 416:  # the file is not as long as what is there
            return _opened(url, 0)
        raise ConnectionError(_line(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(_line(error)) from error
    if "html" in response.headers.get("Content-Type", ""):
        response.close()
        raise ConnectionError(
            f"{response.url} is a web page, perhaps the login of your network"
        )
    return response


def _start(response: Any) -> int:
    """Returns the byte that a response starts from: 0, unless it is a part."""
    part = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(part[1]) if part and response.status == 206 else 0


def _received(response: Any) -> Iterator[bytes]:
    """Yields what arrives, while it does so fast enough."""
    began, count = time.monotonic(), 0
    try:
        while some := response.read1(1 << 20):
            yield some
            count += len(some)
            seconds = time.monotonic() - began
            if seconds > LONGEST:
                raise TimeoutError(f"it is not done after {seconds / 3600:.0f} hours")
            if seconds > SILENCE and count < SLOWEST * seconds:
                raise TimeoutError(
                    f"{count / seconds:.0f} bytes per second are too few"
                )
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(_line(error)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)


def is_genuine(path: Path, stem: str = "") -> bool:
    """Whether a file's sha256 begins as its stem, `model-sha256`, ends.

    Args:
        path: The file.
        stem: The stem that it should have; that of `path` if empty.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest.startswith((stem or path.stem).rpartition("-")[2])
