"""A scan in a file, `scan.npz`: its state, of which network, from which images.

Scans of disjoint images merge. What must agree for that, and for resuming a scan that
was interrupted, is compared first; `refuse_other` names both sides.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nstvis.models import Forward, Params
from nstvis.runs.files import read_json, replacing, write_text
from nstvis.units import maxima


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a scan is a scan of. Two that merge differ in `parts` alone."""

    # Names of the network and its weights, and what `network_hash` says of them.
    model: str
    weights: str
    network: str
    # Layer to number of units, in the network's order.
    layers: Mapping[str, int]
    # Side of the images as the network sees them, in pixels.
    size: int
    # As in `maxima.start` and `maxima.step`.
    pool: int
    k: int
    per_class: int
    patches: int
    # Whether near-duplicate patches are left out.
    deduplicate: bool
    # Names of the classes, by label.
    classes: Sequence[str]
    # Data sets in a row: dataset, split, data_dir, images, and what `data.source_hash`
    # says.
    parts: Sequence[Mapping[str, Any]]
    # As it was asked for; the network's hash tells what it was.
    preprocessing: str = "auto"
    # As in `data.load`.
    as_stored: bool = False


def network_hash(forward: Forward, params: Params, size: int) -> str:
    """Hashes what a network computes, preprocessing included, to 16 hex digits."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    # The same on a CPU, where convolutions have other algorithms, as elsewhere.
    with jax.default_matmul_precision("highest"):
        program = jax.make_jaxpr(forward)(params, image)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())
    for array in [*program.consts, *jax.tree.leaves(params)]:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def refuse_other(here: pathlib.Path, a: About, there: pathlib.Path, b: About) -> None:
    """Checks that two scans can be one.

    Raises:
        ValueError: They are of different networks, classes or settings.
    """
    first, second = (json.loads(json.dumps(dataclasses.asdict(x))) for x in (a, b))
    for name in sorted(first.keys() - {"parts", "weights", "preprocessing"}):
        if first[name] != second[name]:
            raise ValueError(
                f"{here} and {there} do not fit together: {name} is"
                f" {_short(first[name])} in the first, {_short(second[name])} in the"
                " second"
            )


def refuse_changed(path: pathlib.Path, about: About) -> None:
    """Checks that what is scanned is what an interrupted scan began with, if any.

    Args:
        path: Where the scan wrote down what it is of, or writes it now.
        about: What it is of now.

    Raises:
        ValueError: The network or the images have changed.
    """
    text = json.dumps(dataclasses.asdict(about), indent=2)
    if path.exists():
        earlier = {"as_stored": False} | read_json(path)
        for name, value in json.loads(text).items():
            if earlier.get(name) != value:
                was, now = _short(earlier.get(name)), _short(value)
                raise ValueError(
                    f"{path.parent} holds a scan that began with other files: {name} was"
                    f" {was}, is {now}. Name another --workdir"
                )
    else:
        write_text(path, text)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def save(path: pathlib.Path, state: maxima.State, about: About) -> None:
    """Writes `scan.npz`, whole or not at all; `state` is NumPy's."""
    leaves, _ = jax.tree.flatten(state)
    arrays = {f"{i:02}": leaf for i, leaf in enumerate(leaves)}
    with replacing(path) as file:
        np.savez_compressed(
            file,
            about=np.array(json.dumps(dataclasses.asdict(about))),
            **arrays,
        )


def load(path: pathlib.Path) -> tuple[maxima.State, About]:
    """Reads `scan.npz`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or something else.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            about = _about(json.loads(str(file["about"])))
            like = _shapes(about)
            count = len(jax.tree.leaves(like))
            leaves = [np.asarray(file[f"{i:02}"]) for i in range(count)]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path.parent}: holds no finished scan: there is no {path.name}"
        ) from error
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no scan: {error}") from error
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    if jax.tree.map(_kind, state) != jax.tree.map(_kind, like):
        raise ValueError(f"{path} is damaged: an array has another shape than it says")
    return state, about


def _shapes(about: About) -> maxima.State:
    start = functools.partial(
        maxima.start,
        sum(about.layers.values()),
        pool=about.pool,
        k=about.k,
        classes=len(about.classes),
        per_class=about.per_class,
    )
    return jax.eval_shape(start)


def _kind(array: Any) -> tuple[tuple[int, ...], str]:
    return array.shape, np.dtype(array.dtype).kind


def _about(content: dict[str, Any]) -> About:
    if "suppress" in content:  # its name before 2026-11-25
        content["deduplicate"] = content.pop("suppress")
    return About(**content)


def merge(paths: Sequence[pathlib.Path]) -> tuple[maxima.State, About]:
    """Reads scans of disjoint images and merges them.

    The images of the second are numbered after those of the first, and so on.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged, or two scans do not fit together.
    """
    state, about = load(paths[0])
    for path in paths[1:]:
        more, other = load(path)
        refuse_other(paths[0], about, path, other)
        for part in other.parts:
            if part in about.parts:
                images = f"{part['dataset']} {part['split']}"
                raise ValueError(f"{path} scanned {images}, as one before it did")
        offset = sum(part["images"] for part in about.parts)
        state = maxima.merge(state, maxima.shifted(more, offset))
        about = dataclasses.replace(about, parts=[*about.parts, *other.parts])
    return state, about
