"""The machine: hosts, devices, memory, and the cost of compiled programs."""

import contextlib
import ctypes
import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from nstvis import hosts

CGROUP = pathlib.Path("/sys/fs/cgroup")


# Of glibc's mallopt: never map a large buffer on its own, and give nothing back, from one
# arena that grows by 256 MB.
_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -4, -1, -2, -8
_MALLOC = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28, _ARENA_MAX: 1}


def keep_memory() -> None:
    """Makes glibc keep the memory that XLA frees, if that runs on the CPU.

    By default each large buffer goes back to the system, and every page of the next one
    is a page fault: tens of thousands in a step, 5 to 20 % of its time. Call it before
    arrays are made; on other systems it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):  # no Linux, or no glibc
        if jax.default_backend() == "cpu":
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for option, value in _MALLOC.items():
                mallopt(option, value)


def give_memory_back() -> None:
    """Makes glibc give back what is free, which `keep_memory` keeps it from doing.

    Between the parts of a run, one of which leaves holes that the next cannot use.
    """
    with contextlib.suppress(OSError, AttributeError):  # no Linux, or no glibc
        if jax.default_backend() == "cpu":
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def compile_options(fusion_emitters: bool = True) -> dict[str, bool]:
    """Returns XLA options that make programs on a CPU take half of the memory.

    Args:
        fusion_emitters: Whether XLA's newer code generator is used. Gradients are up to
            a tenth faster with it; a scan is up to a fifth slower, and compiling takes
            twice the time and hundreds of megabytes more. Newer JAX has no other.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = ["xla_cpu_enable_concurrency_optimized_scheduler"]
    options += [] if fusion_emitters else ["xla_cpu_use_fusion_emitters"]
    return dict.fromkeys(filter(_is_option, options), False)


@functools.cache
def _is_option(name: str) -> bool:
    """Whether XLA has an option; they come and go with its versions."""
    try:
        jax.jit(lambda: 0).lower().compile({name: False})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def connect() -> None:
    """Joins the processes of all hosts into one run. Call it before any use of a device.

    JAX finds the other hosts itself on Cloud TPU, Slurm, MPI and GKE. Elsewhere they
    are given by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        ValueError: These are incomplete or wrong.
    """
    hosts.connect()
    if hosts.index():
        logging.disable(logging.INFO)


def is_lead() -> bool:
    """Whether this host is the one that writes files and logs."""
    return jax.process_index() == 0


def agreed(wish: int, step: int) -> int:
    """Returns the highest of all hosts' wishes, so that all act at the same step.

    Hosts wait for one another to agree, so they do so at every tenth step only, and
    return 0 at others. A single host gets its wish at once.

    Args:
        wish: What this host wants to do, such as the number of a signal; 0 for nothing.
        step: The step that it has just done.
    """
    if jax.process_count() == 1:
        return wish
    if step % 10:
        return 0
    return int(multihost_utils.process_allgather(np.int32(wish)).max())


def wait_for_all() -> None:
    """Waits until all hosts have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("nstvis")


def mesh(count: int | None = None) -> jax.sharding.Mesh:
    """Returns a mesh of all devices of all hosts, or the first, along the axis `data`."""
    chosen = jax.devices()[:count]
    automatic = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(chosen),), ("data",), automatic, devices=chosen)


def divided(
    batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
    """Shards a batch over all devices.

    Args:
        batch: This host's part of the arrays, by name.
        mesh: From `mesh()`.

    Raises:
        ValueError: The part does not divide by the number of this host's devices.
    """
    size, count = len(next(iter(batch.values()))), jax.local_device_count()
    if size % count:
        raise ValueError(f"a batch of {size} images does not divide by {count} devices")
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, part)
        for name, part in batch.items()
    }


def flops(function: Any, *arguments: Any) -> float:
    """Returns the floating-point operations of one call of a jitted function, by XLA."""
    return (function.lower(*arguments).cost_analysis() or {}).get("flops", 0.0)


def needed_memory(program: jax.stages.Compiled) -> int:
    """Returns the bytes that one call of a compiled program needs, with its arguments."""
    sizes = program.memory_analysis()
    if sizes is None:  # on some backends
        return 0
    return (
        sizes.temp_size_in_bytes
        + sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def free_memory(device: Any = None) -> int:
    """Returns the bytes that are free on a device, by default this host's first."""
    device = device or jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # a container's limit, if any
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    return free
