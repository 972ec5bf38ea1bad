"""Checkpoints of a run: pytrees by step; the run resumes from the newest whole one.

Each has a digest of all of its files, so that a damaged one is known as such; then the
one before it is used.
"""

import concurrent.futures
import hashlib
import logging
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from nstvis import devices
from nstvis.runs import files

logger = logging.getLogger(__name__)

DIGEST = "sha256"  # the file of it
BACKGROUND = 2**27  # bytes, below which a copy is saved while the run goes on


class Checkpoints:
    """Pytrees by step in `checkpoints/`; each is written whole or not at all."""

    def __init__(self, workdir: pathlib.Path, every: float, keep: Sequence[int] = ()):
        """Opens the checkpoints of a workdir, and puts aside what is not whole.

        Use it as a context manager: leaving it waits for saves in the background.

        Args:
            workdir: The run's folder.
            every: Seconds after which the next checkpoint is `due`.
            keep: Steps whose checkpoints stay, besides the newest two.

        Raises:
            ValueError: There are damaged checkpoints, and none that is whole.
        """
        policies = ocp.training.preservation_policies
        self._folder = workdir / "checkpoints"
        self._newest = _newest_whole(workdir)
        self._keeper = ocp.training.Checkpointer(
            str(self._folder.absolute()),
            preservation_policy=policies.AnyPreservationPolicy(  # pyright: ignore[reportArgumentType]
                [policies.LatestN(2), policies.CustomSteps(keep)]
            ),
            cleanup_tmp_directories=True,
        )
        self._every = every
        self._saved_at, self._cost = time.monotonic(), 0.0
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._sealed = self._thread.submit(lambda: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sealed.result()

    def latest(self) -> int:
        """Returns the step of the newest checkpoint; 0 if there is none."""
        return self._newest

    def due(self) -> bool:
        """Whether the next checkpoint should be saved now.

        They take no more than a tenth of the time, unless one is wanted at every step.
        """
        pause = self._every and max(self._every, 10 * self._cost)
        return time.monotonic() - self._saved_at >= pause

    def save(self, step: int, tree: Any, **parts: Any) -> None:
        """Saves a pytree of arrays, unless that step has been saved already.

        Args:
            step: The step, counted from 1.
            tree: Arrays, which may be donated as soon as this returns.
            **parts: Other things that Orbax can save, such as a Grain iterator.
        """
        began = time.monotonic()
        if step != self._newest:
            leaves = enumerate(jax.tree.leaves(tree))
            # Orbax takes no empty arrays.
            state = {str(i): leaf for i, leaf in leaves if leaf.size}
            small = sum(leaf.nbytes for leaf in state.values()) < BACKGROUND
            if small:
                state = jax.tree.map(jnp.copy, state)
            else:
                jax.block_until_ready(state)  # a step that runs still holds its memory
                devices.give_memory_back()  # Orbax copies the state
            self._sealed.result()  # Orbax skips a save while another one goes on.
            with files.naming(self._folder / str(step)):
                self._keeper.save_checkpointables_async(step, {"state": state} | parts)
            self._sealed = self._thread.submit(self._seal, step)
            if not small:
                self._sealed.result()
                devices.give_memory_back()
        self._saved_at, self._newest = time.monotonic(), step
        self._cost = self._saved_at - began

    def _seal(self, step: int) -> None:
        """Waits until a checkpoint is written, and adds its digest."""
        folder = self._folder / str(step)
        with files.naming(folder):
            self._keeper.wait()
        if devices.is_lead():
            files.write_text(folder / DIGEST, _digest(folder))

    def restore(self, like: Any, **parts: Any) -> Any:
        """Returns the newest checkpoint as a tree like `like`; if none, `like` itself.

        Args:
            like: Arrays of the same shapes, on the devices where they should be.
            **parts: Objects that were saved with it, which load their own state.

        Raises:
            ValueError: The checkpoint's arrays have other shapes.
        """
        if not self._newest:
            return like
        self._sealed.result()
        wanted = {"state": _abstract(like)} | parts
        if not _fits(path := self._folder / str(self._newest), wanted["state"]):
            raise ValueError(
                f"{path} does not fit: the run was started on another number of devices"
                " or by another version; name another --workdir"
            )
        loaded = self._keeper.load_checkpointables(self._newest, wanted)
        return _filled(like, loaded["state"])


def kept_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of a run's checkpoints, in order, even while it is running."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(workdir: pathlib.Path, step: int, like: Any) -> Any:
    """Reads one checkpoint as `Checkpoints.restore` does, even while the run continues.

    Raises:
        ValueError: The checkpoint is damaged, or its arrays have other shapes.
        FileNotFoundError: There is no checkpoint of that step.
    """
    path = workdir / "checkpoints" / str(step)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if not _is_whole(path):
        raise ValueError(f"{path} is damaged")
    wanted = _abstract(like)
    if not _fits(path, wanted):
        raise ValueError(f"{path} is of another network")
    loaded = ocp.load_checkpointables(str(path.absolute()), {"state": wanted})
    return _filled(like, loaded["state"])


def _newest_whole(workdir: pathlib.Path) -> int:
    """Returns the step of the newest whole checkpoint, after putting newer ones aside."""
    folder, damaged = workdir / "checkpoints", []
    for newest in [*reversed(kept_steps(workdir)), 0]:
        if not newest or _is_whole(folder / str(newest)):
            break
        damaged.append(folder / str(newest))
    if damaged and not newest:
        raise ValueError(
            f"no checkpoint in {folder} is whole: delete it to start over, or name"
            " another --workdir"
        )
    devices.wait_for_all()  # before what all look at is moved
    for path in damaged:
        aside = workdir / f"damaged-checkpoint-{path.name}"
        logger.warning("%s is damaged: going on from step %d", path, newest)
        if devices.is_lead():
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
    devices.wait_for_all()
    return newest


def _is_whole(path: pathlib.Path) -> bool:
    """Whether a checkpoint has its digest; that the last one had not got one is no flaw.

    Orbax names a checkpoint by its step only once all of it is there.
    """
    try:
        return (path / DIGEST).read_text() == _digest(path)
    except FileNotFoundError:
        return True
    except UnicodeDecodeError:
        return False


def _digest(folder: pathlib.Path) -> str:
    """Hashes the names and contents of all files but that of the digest."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / DIGEST:
            digest.update(f"{path.relative_to(folder)}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, hashlib.sha256).digest())
    return digest.hexdigest()


def _fits(path: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Whether a checkpoint has these shapes; Orbax's own error takes many lines."""
    known = ocp.metadata(str(path.absolute()), "state").metadata
    shapes = [{k: x.shape for k, x in part.items()} for part in (known, wanted)]
    return shapes[0] == shapes[1]


def _abstract(like: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what Orbax should load: the leaves by number, but for empty ones."""
    return {
        str(i): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for i, leaf in enumerate(jax.tree.leaves(like))
        if leaf.size
    }


def _filled(like: Any, state: Mapping[str, Any]) -> Any:
    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten(state.get(str(i), leaf) for i, leaf in enumerate(leaves))
