"""A run's checkpoints: pytrees by step, from the newest of which it resumes."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    """Pytrees by step in `checkpoints/`; each is written whole or not at all."""

    def __init__(self, workdir: pathlib.Path, every: float, keep: Sequence[int] = ()):
        """Saves at most once in `every` seconds; keeps the newest two and some steps.

        Use it as a context manager: saving goes on in the background until the end.
        """
        policies = ocp.training.preservation_policies
        self._folder = workdir / "checkpoints"
        self._keeper = ocp.training.Checkpointer(
            str(self._folder.absolute()),
            preservation_policy=policies.AnyPreservationPolicy(  # pyright: ignore[reportArgumentType]
                [policies.LatestN(2), policies.CustomSteps(keep)]
            ),
            cleanup_tmp_directories=True,
        )
        self._every = every
        self._saved_at = time.monotonic()
        self._newest = self.latest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.wait()

    def latest(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        newest = self._keeper.latest
        return newest.step if newest else 0

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved_at >= self._every

    def save(self, step: int, tree: Any, **parts: Any) -> None:
        """Saves a pytree of arrays, unless that step has been saved already.

        Args:
            step: Counted from 1.
            tree: Of arrays, which may be donated as soon as this returns.
            **parts: What else Orbax can save, by name, such as a Grain iterator.
        """
        if step != self._newest:
            leaves = enumerate(jax.tree.leaves(tree))
            # Orbax takes no empty arrays.
            state = {str(i): jnp.copy(leaf) for i, leaf in leaves if leaf.size}
            self._keeper.wait()  # Orbax skips a save while another one goes on.
            self._keeper.save_checkpointables_async(step, {"state": state} | parts)
        self._saved_at, self._newest = time.monotonic(), step

    def restore(self, like: Any, **parts: Any) -> Any:
        """Returns the newest one, as a tree like `like`; `like` itself if none.

        Args:
            like: Arrays of the same shapes, on the devices where they should be.
            **parts: What was saved with it and can load itself.

        Raises:
            ValueError: Its arrays are of other shapes.
        """
        if not self.latest():
            return like
        wanted = {"state": _abstract(like)} | parts
        if not _fits(path := self._folder / str(self.latest()), wanted["state"]):
            raise ValueError(
                f"{path} does not fit: the run was begun on another number of devices,"
                " or by another version; name another --workdir"
            )
        found = self._keeper.load_checkpointables(None, wanted)
        return _filled(like, found["state"])


def kept_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of a run's checkpoints, in order, also while it goes on."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(workdir: pathlib.Path, step: int, like: Any) -> Any:
    """Reads one checkpoint as `Checkpoints.restore` does, also while the run goes on.

    Raises:
        ValueError: Its arrays are of other shapes.
        FileNotFoundError: There is none of that step.
    """
    path = workdir / "checkpoints" / str(step)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    wanted = _abstract(like)
    if not _fits(path, wanted):
        raise ValueError(f"{path} is of another network")
    found = ocp.load_checkpointables(str(path.absolute()), {"state": wanted})
    return _filled(like, found["state"])


def _fits(path: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Whether the arrays have the shapes; Orbax says so in many lines, some later."""
    known = ocp.metadata(str(path.absolute()), "state").metadata
    shapes = [{k: x.shape for k, x in part.items()} for part in (known, wanted)]
    return shapes[0] == shapes[1]


def _abstract(like: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What to ask Orbax for: the leaves by number, without the empty ones."""
    return {
        str(i): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for i, leaf in enumerate(jax.tree.leaves(like))
        if leaf.size
    }


def _filled(like: Any, state: Mapping[str, Any]) -> Any:
    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten(state.get(str(i), leaf) for i, leaf in enumerate(leaves))
