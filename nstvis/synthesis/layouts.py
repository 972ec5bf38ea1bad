"""How a picture is computed: as a whole, or in blocks; on several devices, `Divided`;
on the host beside a small accelerator, `Offloaded`.

Sums over positions are the same in every layout, and so are their gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Sharding

from nstvis.synthesis import blocks, losses
from nstvis.synthesis.blocks import Block, Grid

# From a block's pixels, the block (None for the whole picture), what is its own, and what
# is common to all.
OfBlock = Callable[[Array, Block | None, Any, Any], Any]


class Layout:
    """The layout of pictures of one size on one device, or on each device alike.

    Attributes:
        size: Height and width, in pixels.
        grid: The blocks; None for the whole picture.
        shape: Of a picture's array, `[1, rows, width, 3]`.
        of_pictures: Where an array of that shape is; None for the default device.
        of_blocks: Likewise one with what belongs to each block along its first axis.
        common: Likewise what belongs to all.
    """

    def __init__(
        self,
        size: tuple[int, int],
        grid: Grid | None = None,
        where: Sharding | None = None,
    ):
        self.size, self.grid = size, grid
        self.shape = 1, *size, 3
        self.of_pictures = self.of_blocks = self.common = where

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape of what the network is shown at once, `[1, height, width, 3]`."""
        return 1, *(self.grid.size if self.grid else self.size), 3

    @property
    def count(self) -> int:
        """Number of blocks, on all devices."""
        return len(self.grid.blocks.start) if self.grid else 1

    @property
    def count_each(self) -> int:
        """Number of blocks that a device computes one after another."""
        return self.count

    def total(
        self,
        sums: OfBlock,
        picture: Array,
        each: Any,
        common: Any,
        shift: Array | None = None,
        power: int = 2,
    ) -> tuple[Any, Array]:
        """Adds up sums over all blocks. Only the picture has a gradient.

        Args:
            sums: Sums over what a block owns, nested in any way.
            picture: Of any number of channels.
            each: Arrays with what belongs to each block along the first axis.
            common: Arrays that belong to all.
            shift: Pixels by which the picture is rolled first, down and to the right.
            power: Of the total variation.

        Returns:
            The sums, and the total variation of the picture's first three channels, as
            it is before it is rolled.
        """
        canvas = picture[..., :3]
        rolled = picture if shift is None else jnp.roll(picture, shift, (1, 2))
        if not self.grid:
            own = jax.tree.map(lambda x: x[0], each)
            total = sums(rolled, None, own, common)
            return total, losses.total_variation(canvas, power)
        size, all_blocks = self.grid.size, self.grid.blocks

        def both(pixels: Array, block: Block, its: Any, common: Any) -> Any:
            variation = blocks.own_variation(pixels[..., :3], block, power)
            return sums(pixels, block, its, common), variation

        if shift is None:  # two passes would take the memory of a second gradient
            return self.summed(both, picture, each, common)
        total = self.summed(sums, rolled, each, common)
        return total, blocks.variation(size, canvas, all_blocks, power)

    def summed(
        self, sums: blocks.OfBlock, picture: Array, each: Any, common: Any
    ) -> Any:
        """Adds up sums over all blocks, of which there are several."""
        assert self.grid
        size, all_blocks = self.grid.size, self.grid.blocks
        return blocks.summed(sums, size, picture, all_blocks, each, common)

    def mapped(self, function: OfBlock, picture: Array, common: Any) -> Any:
        """Returns what a function returns of each block, stacked."""
        if not self.grid:
            found = function(picture, None, None, common)
            return jax.tree.map(lambda x: x[None], found)
        size, all_blocks = self.grid.size, self.grid.blocks
        return blocks.mapped(function, size, picture, all_blocks, common)

    def owned(
        self, block: Block | None, layer: str, activations: Array
    ) -> Array | None:
        """Returns 1 for a layer's positions that a block owns; None if it owns all."""
        if block is None or self.grid is None:
            return None
        return block.owned(self.grid.fields[layer], activations.shape[1:3])

    def own_part(
        self, block: Block | None, layer: str, activations: Array
    ) -> tuple[Array, Array | None]:
        """Returns the part of a map with all that a block owns, and what `owned` has there.

        The parts of all blocks have one shape, and hardly overlap.

        Args:
            block: The block.
            layer: The map's layer.
            activations: The map, `[height, width, channels]`.
        """
        owned = self.owned(block, layer, activations[None])
        if block is None or self.grid is None or owned is None:
            return activations, None
        row, column = (
            (block.first[i] - block.start[i]) // field.step
            for i, field in enumerate(self.grid.fields[layer])
        )
        shape = self.grid.most_owned(layer, activations.shape[:2])
        whole = *shape, activations.shape[2]
        return (
            lax.dynamic_slice(activations, (row, column, 0), whole),
            lax.dynamic_slice(owned, (row, column), shape),
        )

    def filtered(
        self, picture: Array, factors: Callable[[Array, Array], Array]
    ) -> Array:
        """Multiplies a picture's spectrum.

        Args:
            picture: Of any number of channels.
            factors: From the frequencies down, `[height]`, and across, in cycles per
                pixel, to factors `[height, frequencies across]`.
        """
        height, width = self.size
        factor = factors(jnp.fft.fftfreq(height), jnp.fft.rfftfreq(width))

        def filtered(channel: Array) -> Array:
            return jnp.fft.irfft2(jnp.fft.rfft2(channel) * factor, self.size)

        # One by one, which takes two thirds of the memory, and of the time.
        channels = [filtered(picture[0, ..., i]) for i in range(picture.shape[-1])]
        return jnp.stack(channels, -1)[None]

    def on_host(self, tree: Any) -> Any:
        """Puts whole pictures where they are prepared, if not on this host's first device."""
        return tree

    def spread(self, picture: Array) -> Array:
        """Puts a whole picture, `[1, height, width, channels]`, where it is computed."""
        return jax.device_put(picture, self.of_pictures)

    def joined(self, tree: Any) -> Any:
        """Makes a state's pictures whole again, on this host's first device."""
        return tree

    def placed(self, state: Any) -> Any:
        """Puts a state of whole pictures where it is computed."""
        return state

    def shardings(self, state: Any) -> Any:
        """Returns where the arrays of a state are; None on a single device."""
        return None

    def cut(self, guide: np.ndarray, layer: str, shape: tuple[int, int]) -> Array:
        """Cuts a layer's map, `[height, width]`, into those of the blocks, stacked.

        Args:
            guide: The map of the whole picture.
            layer: The layer.
            shape: Height and width of a block's map.
        """
        if not self.grid:
            return jax.device_put(guide[None], self.of_blocks)
        steps = [field.step for field in self.grid.fields[layer]]
        places = [
            np.ix_(
                *(first + np.arange(n) for first, n in zip(start, shape, strict=True))
            )
            for start in self.grid.blocks.start // np.array(steps)
        ]
        # Beyond the picture's last position no block owns anything.
        padded = np.pad(guide, [(0, n) for n in shape])
        return jax.device_put(np.stack([padded[x] for x in places]), self.of_blocks)
