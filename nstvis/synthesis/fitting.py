"""Whether the pictures of a style transfer fit into memory, and how.

As a whole where they do; else in blocks; else on the host, with blocks on an accelerator.
"""

import contextlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax

from nstvis import devices
from nstvis.synthesis import style_losses
from nstvis.synthesis.programs import Programs, Size, compiled, network
from nstvis.synthesis.style_settings import SHORTEST_SIDE, Settings

logger = logging.getLogger(__name__)

# Bytes of a pixel of a picture in blocks, besides the blocks: its state, its gradient
# while it is smoothed, and its targets.
PER_PIXEL = 150
LEAST_BLOCK, LARGEST_BLOCK = 64, 1024  # pixels; more gains nothing


def programs_that_fit(settings: Settings, sizes: Sequence[Size]) -> list[Programs]:
    """Compiles the programs of all sizes, unless they are kept from another transfer.

    Raises:
        MemoryError: A picture is too large for the memory that is free.
    """
    try:
        return _of_sizes(settings, sizes)
    except MemoryError:
        accelerator, block = _accelerator(settings), settings.block
        if accelerator and block < 0:
            whole = compiled(settings, sizes[0], 0)
            block = _side_that_fits(whole, devices.free_memory(accelerator))
        if not accelerator or not block:
            raise
    return _offloaded(settings, sizes, block, accelerator)


def _of_sizes(settings: Settings, sizes: Sequence[Size]) -> list[Programs]:
    """Compiles the programs of pictures on the devices that compute them."""
    found, block = [], max(0, settings.block)
    for size in sizes:
        program = compiled(settings, size, block)
        free = _free_memory()
        if program.memory > free and settings.block < 0 and not block:
            block = _block_that_fits(program, sizes[-1], settings, free)
            program = compiled(settings, size, block) if block else program
        if program.memory > free:
            raise MemoryError(_too_large(program, size, settings, free))
        found.append(program)
    _log_memory(program, settings, free)
    return found


def _offloaded(
    settings: Settings, sizes: Sequence[Size], block: int, accelerator: Any
) -> list[Programs]:
    """Compiles the programs of pictures that stay on the host."""
    found = [compiled(settings, size, block, accelerator) for size in sizes]
    free = devices.free_memory(jax.local_devices(backend="cpu")[0])
    if found[-1].memory > free:
        raise MemoryError(_too_large(found[-1], sizes[-1], settings, free))
    _log_memory(found[-1], settings, free, " on the host, where the picture stays")
    return found


def _accelerator(settings: Settings) -> Any:
    """Returns the only device, if pictures can stay on the host beside it; else None."""
    first, *others = jax.devices()
    in_blocks = style_losses.find(settings.style_loss).statistics is not None
    if others or first.platform == "cpu" or not in_blocks:
        return None
    with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS leaves the CPU out
        return jax.local_devices(backend="cpu") and first


def _free_memory() -> int:
    """Returns the bytes that are free, the least of all hosts that share a picture.

    With a default device there is a picture for each, and hosts do not wait for others.
    """
    free = devices.free_memory()
    if jax.config.jax_default_device is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return free
    return 1024 * -devices.agreed(-int(free // 1024), 0)  # in kilobytes, to fit


def _block_that_fits(
    whole: Programs, largest: Size, settings: Settings, free: int
) -> int:
    """Returns the side of blocks whose memory is free beside the largest picture's.

    Returns:
        The side in pixels; 0 if there is none, or the style loss has none.
    """
    if style_losses.find(settings.style_loss).statistics is None:
        return 0
    return _side_that_fits(whole, free - PER_PIXEL * math.prod(largest.content))


def _side_that_fits(whole: Programs, free: int) -> int:
    """Returns the side of blocks that take half of some memory; 0 if it is too little."""
    side = math.sqrt(max(0, free) / 2 / (whole.memory / math.prod(whole.layout.size)))
    return min(LARGEST_BLOCK, int(side)) if side >= LEAST_BLOCK else 0


def _too_large(program: Programs, size: Size, settings: Settings, free: int) -> str:
    """Says how much memory is missing, and what would fit."""
    fixed = sum(x.nbytes for x in jax.tree.leaves(network(settings)[1]))
    share = max(0, free - fixed) / (program.memory - fixed)
    fits = int(max(size.content) * (0.9 * share) ** 0.5) - 2 * settings.margin
    hint = f", {fits} should fit" if fits >= SHORTEST_SIDE else ""
    hint += ", or leave block=-1" if settings.block == 0 else ""
    return f"{_needs(program, settings, free)}: lower the size{hint}"


def _log_memory(
    program: Programs, settings: Settings, free: int, where: str = ""
) -> None:
    """Logs what a picture takes."""
    count = program.layout.count
    in_blocks = f", in {count} blocks" if count > 1 else ""
    logger.info("%s%s%s", _needs(program, settings, free), where, in_blocks)


def _needs(program: Programs, settings: Settings, free: int) -> str:
    height, width = (n - 2 * settings.margin for n in program.layout.size)
    return (
        f"a step at {width} x {height} pixels needs {program.memory / 1e9:.2f} GB of"
        f" memory, {free / 1e9:.1f} GB are free"
    )
