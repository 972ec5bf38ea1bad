"""Pictures that stay on the host, while an accelerator computes their blocks.

For those that do not fit into an accelerator's memory with their moments and targets. What
is as large as the picture is computed by XLA on the CPU; a sum over blocks calls back into
Python, which shows the accelerator one block after another.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

from nstvis.synthesis import blocks
from nstvis.synthesis.blocks import Block, Grid
from nstvis.synthesis.layouts import Layout, OfBlock


class Offloaded(Layout):
    """The layout of pictures on the host, whose blocks an accelerator computes."""

    def __init__(self, size: tuple[int, int], grid: Grid, accelerator: Any):
        cpu = jax.local_devices(backend="cpu")[0]
        super().__init__(size, grid, SingleDeviceSharding(cpu))
        self._grid, self._accelerator = grid, accelerator

    def summed(
        self, sums: blocks.OfBlock, picture: Array, each: Any, common: Any
    ) -> Any:
        where = self._grid.size, self._accelerator
        return _summed(sums, where, picture, self._grid.blocks, each, common)

    def mapped(self, function: OfBlock, picture: Array, common: Any) -> Any:
        where, run = (self._grid.size, self._accelerator), jax.jit(function)
        arguments = picture, self._grid.blocks, None, common

        def on_host(*arguments: Any) -> Any:
            found = [
                jax.device_get(run(*shown)) for _, *shown in _shown(where, *arguments)
            ]
            return jax.tree.map(lambda *parts: np.stack(parts), *found)

        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.count, *x.shape), x.dtype),
            _shapes(function, where, *arguments),
        )
        return jax.pure_callback(on_host, shapes, *arguments)

    def on_host(self, tree: Any) -> Any:
        return jax.device_put(tree, self.common)

    def placed(self, state: Any) -> Any:
        return self.on_host(state)

    def shardings(self, state: Any) -> Any:
        return jax.tree.map(lambda _: self.common, state)


# The blocks' height and width, and the device that computes them.
_Where = tuple[tuple[int, int], Any]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(
    sums: OfBlock, where: _Where, picture: Array, blocks: Block, each: Any, common: Any
) -> Any:
    """Adds up sums over all blocks, as `blocks.summed`."""
    run = jax.jit(sums)

    def on_host(*arguments: Any) -> Any:
        total = None
        for _, *shown in _shown(where, *arguments):
            found = run(*shown)
            total = found if total is None else jax.tree.map(jax.lax.add, total, found)
        return jax.device_get(total)

    arguments = picture, blocks, each, common
    return jax.pure_callback(on_host, _shapes(sums, where, *arguments), *arguments)


def _summed_forward(sums, where, *arguments):
    return _summed(sums, where, *arguments), arguments


def _summed_backward(sums, where, arguments, cotangent):
    @jax.jit
    def pull(pixels, block, its, common, cotangent):
        _, back = jax.vjp(lambda pixels: sums(pixels, block, its, common), pixels)
        return back(cotangent)[0]

    def on_host(cotangent: Any, picture: Any, *others: Any) -> Any:
        cotangent = jax.device_put(cotangent, where[1])
        gradient = np.zeros(picture.shape, picture.dtype)
        for place, *shown in _shown(where, picture, *others):
            gradient[place] += jax.device_get(pull(*shown, cotangent))
        return gradient

    picture = arguments[0]
    gradient = jax.pure_callback(on_host, picture, cotangent, *arguments)
    return gradient, None, None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _shown(
    where: _Where, picture: Any, blocks: Block, each: Any, common: Any
) -> Iterator[tuple[Any, ...]]:
    """Yields each block's place in the picture, then what `OfBlock` takes, on its device."""
    (height, width), device = where
    picture, blocks, each = jax.tree.map(np.asarray, (picture, blocks, each))
    common = jax.device_put(common, device)
    for number, (row, column) in enumerate(blocks.start):
        place = np.s_[:, row : row + height, column : column + width]
        block, its = jax.tree.map(lambda x, n=number: x[n], (blocks, each))
        yield place, *jax.device_put((picture[place], block, its), device), common


def _shapes(
    function: OfBlock,
    where: _Where,
    picture: Array,
    blocks: Block,
    each: Any,
    common: Any,
) -> Any:
    """Returns the shapes of what a function returns of a block."""
    pixels = jax.ShapeDtypeStruct((1, *where[0], picture.shape[-1]), picture.dtype)
    block, its = jax.tree.map(lambda x: x[0], (blocks, each))
    return jax.eval_shape(function, pixels, block, its, common)
