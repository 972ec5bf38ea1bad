"""Pictures whose rows are divided over devices, of one host or of several.

Each device holds some rows, and is sent what its blocks see beyond: one exchange with its
neighbours in an evaluation, and one that brings the gradients back. XLA's own
partitioning exchanges rows at every layer, and sends all of them to every device for a
layer like AlexNet's first.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from nstvis import devices
from nstvis.synthesis import blocks
from nstvis.synthesis.blocks import Fields, Grid
from nstvis.synthesis.layouts import Layout, OfBlock

AXIS = "data"
DIVIDED = P(None, AXIS)  # of pictures `[1, rows, width, channels]`


class Here(NamedTuple):
    """What a device knows of its place; arrays of it are all devices'.

    Attributes:
        first: Its first row in the picture.
        held: Rows that it holds.
    """

    first: Any
    held: Any


class Divided(Layout):
    """The layout of pictures whose rows are divided over a mesh.

    An array has as many rows for every device as for the one that holds most. Those that
    are too many, at a device's end, mean nothing.
    """

    def __init__(self, size: tuple[int, int], grid: Grid, mesh: Mesh, jitter: int = 0):
        """Divides rows as they are in a grid, whose blocks are those of all devices.

        Args:
            size: Height and width of the pictures, in pixels.
            grid: As many rows of blocks for each device.
            mesh: From `devices.mesh`.
            jitter: Pixels by which pictures are rolled, less than that.

        Raises:
            ValueError: A device's neighbours would need more rows than it holds.
        """
        super().__init__(size, grid)
        self._mesh, self._grid = mesh, grid
        self.of_pictures, self.of_blocks, self.common = (
            NamedSharding(mesh, spec) for spec in (DIVIDED, P(AXIS), P())
        )
        start, first = (
            np.reshape(x[:, 0], (mesh.size, -1))
            for x in (grid.blocks.start, grid.blocks.first)
        )
        held = np.diff([*first[:, 0], size[0]]).astype(np.int32)
        self._here = Here(first[:, 0], held)
        self._most = int(held.max())
        self.shape = 1, self._most * mesh.size, size[1], 3
        self._above = int((first[:, 0] - start.min(1)).max()) + max(0, jitter - 1)
        ends = start.max(1) + grid.size[0]
        # At least one row below, for the differences of rows.
        self._below = max(1, int((ends - first[:, 0] - held).max()))
        if held.min() < max(self._above, self._below):
            raise ValueError(f"{size[0]} rows are too few for {mesh.size} devices")
        kept = np.arange(self._most) < held[:, None]
        rows = first[:, :1] + np.arange(self._most)
        self._sources = np.where(kept, rows, 0).ravel()  # of each row of an array
        self._places = np.flatnonzero(kept)  # of each row of the picture

    @property
    def count_each(self) -> int:
        return self.count // self._mesh.size

    def total(
        self,
        sums: OfBlock,
        picture: Array,
        each: Any,
        common: Any,
        shift: Array | None = None,
        power: int = 2,
    ) -> tuple[Any, Array]:
        shift = jnp.zeros(2, jnp.int32) if shift is None else shift

        def local(picture, own, each, here, common, shift):
            window, size = self._window(picture, here), self._grid.size
            own = own.moved(self._above - here.first[0])
            variation = blocks.variation(size, window[..., :3], own, power)
            rolled = jnp.roll(window, shift[1], 2), own.moved(-shift[0])
            total = blocks.summed(sums, size, *rolled, each, common)
            return lax.psum((total, variation), AXIS)

        divided = picture, self._grid.blocks, each, self._here
        return self._on_devices(local, P(), *divided, common=(common, shift))

    def mapped(self, function: OfBlock, picture: Array, common: Any) -> Any:
        def local(picture, own, here, common):
            own = own.moved(self._above - here.first[0])
            window = self._window(picture, here)
            return blocks.mapped(function, self._grid.size, window, own, common)

        divided = picture, self._grid.blocks, self._here
        return self._on_devices(local, P(AXIS), *divided, common=(common,))

    def filtered(
        self, picture: Array, factors: Callable[[Array, Array], Array]
    ) -> Array:
        """Divides the columns over the devices meanwhile, as they are needed whole."""
        height, width = self.size
        across = np.fft.rfftfreq(width)
        more = -len(across) % self._mesh.size
        across = np.pad(across, (0, more)).astype(np.float32)

        def local(picture, across):
            x = jnp.fft.rfft(picture, axis=2)
            x = jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))
            x = lax.all_to_all(x, AXIS, 2, 1, tiled=True)[:, self._places]
            x = jnp.fft.fft(x, axis=1)
            x *= factors(jnp.fft.fftfreq(height), across)[None, :, :, None]
            x = jnp.fft.ifft(x, axis=1)[:, self._sources]
            x = lax.all_to_all(x, AXIS, 1, 2, tiled=True)
            return jnp.fft.irfft(x[:, :, : width // 2 + 1], width, axis=2)

        return self._on_devices(local, DIVIDED, picture, across)

    def spread(self, picture: Array) -> Array:
        return jax.device_put(np.asarray(picture)[:, self._sources], self.of_pictures)

    def joined(self, tree: Any) -> Any:
        def joined(x: Array) -> Array:
            if not _is_made_of(x, self.shape):
                return jnp.asarray(np.asarray(x))
            if jax.process_count() > 1:
                x = multihost_utils.process_allgather(x, tiled=True)
            return jnp.asarray(np.take(np.asarray(x), self._places, -3))

        return jax.tree.map(joined, tree)

    def placed(self, state: Any) -> Any:
        def placed(x: Array) -> Array:
            array = np.asarray(x)
            if not _is_made_of(x, (1, *self.size, 3)):
                return jax.device_put(array, self.common)
            array = np.take(array, self._sources, -3)
            return jax.device_put(array, self._sharding(array))

        return jax.tree.map(placed, state)

    def shardings(self, state: Any) -> Any:
        return jax.tree.map(self._sharding, state)

    def _sharding(self, x: Any) -> Sharding:
        divided = _is_made_of(x, self.shape)
        spec = P(*[None] * (x.ndim - 3), AXIS) if divided else P()
        return NamedSharding(self._mesh, spec)

    def _on_devices(
        self, local: Callable, out_specs: P, *divided: Any, common: tuple = ()
    ) -> Any:
        """Calls a function on all devices, with their parts and what is common."""
        picture, *others = divided
        specs = DIVIDED, *[P(AXIS)] * len(others), *[P()] * len(common)
        # Unchecked, as it cannot see that all devices add up the same total.
        program = jax.shard_map(
            local, mesh=self._mesh, in_specs=specs, out_specs=out_specs, check_vma=False
        )
        return program(picture, *others, *common)

    def _window(self, picture: Array, here: Here) -> Array:
        """Adds the rows above and below a device's own; the picture is a ring."""
        count, held = self._mesh.size, here.held[0]
        last = lax.dynamic_slice_in_dim(picture, held - self._above, self._above, 1)
        down, up = ([(i, (i + by) % count) for i in range(count)] for by in (1, -1))
        above = lax.ppermute(last, AXIS, down)
        below = lax.ppermute(picture[:, : self._below], AXIS, up)
        window = jnp.concatenate([above, picture, jnp.zeros_like(below)], 1)
        return lax.dynamic_update_slice_in_dim(window, below, self._above + held, 1)


def _is_made_of(x: Any, shape: tuple[int, ...]) -> bool:
    """Whether an array is a picture of a shape, or a stack of them, as L-BFGS has."""
    return x.shape[-4:] == shape


def make_layouts(
    canvas: tuple[int, int],
    jitter: int,
    styles: Sequence[tuple[int, int]],
    fields: Fields,
    block: int,
) -> list[Layout]:
    """Returns the layouts of a canvas and of styles, on as many devices as can divide it.

    Args:
        canvas: Height and width, in pixels.
        jitter: Pixels by which the canvas is rolled, less than that.
        styles: Heights and widths. One that is too small to be divided is computed on
            every device.
        fields: Of the layers that are looked at.
        block: Side of the squares that blocks own, about, in pixels; 0 for one block on
            each device.
    """
    for count in _device_counts():
        mesh = devices.mesh(count) if count > 1 else None
        if mesh is None:
            return [_undivided(size, fields, block) for size in (canvas, *styles)]
        with contextlib.suppress(ValueError):  # too few rows
            layouts = [_divided(canvas, jitter, fields, block, mesh)]
            break
    for size in styles:
        try:
            layouts.append(_divided(size, 0, fields, block, mesh))
        except ValueError:
            everywhere = NamedSharding(mesh, P())
            layouts.append(_undivided(size, fields, block, everywhere))
    return layouts


def _divided(
    size: tuple[int, int], jitter: int, fields: Fields, block: int, mesh: Mesh
) -> Layout:
    down, across = blocks.counts(size, block)
    down = -(-down // mesh.size) * mesh.size
    return Divided(size, blocks.cut(size, (down, across), fields), mesh, jitter)


def _undivided(
    size: tuple[int, int], fields: Fields, block: int, where: Sharding | None = None
) -> Layout:
    counts = blocks.counts(size, block)
    grid = blocks.cut(size, counts, fields) if max(counts) > 1 else None
    return Layout(size, grid, where)


def _device_counts() -> list[int]:
    """Returns numbers of devices to try; those of several hosts only go together."""
    if jax.config.jax_default_device is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return [1]
    if jax.process_count() > 1:
        return [jax.device_count(), 1]
    return [*range(jax.device_count(), 0, -1)]
