"""All tests see four CPU devices, strict rank promotion and an empty cache."""

import collections
import gc
import importlib.metadata
import logging
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# For the processes that tests start, too. What tests compile runs for a moment, and XLA's
# older emitters, which JAX 0.10 has, compile it in half of the time; but with them, LLVM
# needs level 2, as below it batch norm and its gradients are wrong from the fourth digit on.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=2"
    # A tenth less each: one LLVM module a program, in the order that it has.
    flags += " --xla_cpu_parallel_codegen_split_count=1"
    flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["PYTHONWARNINGS"] = "error"

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pytest

# By default a tenth of the time goes into looking for garbage, of which there is little.
gc.set_threshold(50_000)

from nstvis.runs import files
from nstvis.runs.cache import cache_folder, keep_compiled


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keeps the user's cache out of the tests; all of them share one of their own."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    keep_compiled()


@pytest.fixture(scope="session")
def drawn(cache):
    """Draws `primitives` for processes: of `train`, whose whole takes 20 s, a fiftieth."""
    from nstvis.data import primitives  # which takes a second

    cache_folder().mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setitem(primitives.SPLITS, "train", 4)
        with files.locked(cache_folder(), "drawn by another worker"):
            primitives.load("", "train", "")


@pytest.fixture(autouse=True)
def logs():
    """Restores what a test made of the loggers, as the launcher sets levels."""
    known = [logging.getLogger(), *_loggers()]
    before = [(logger, logger.level, logger.handlers[:]) for logger in known]
    yield
    for logger in set(_loggers()).difference(known):
        logger.setLevel(logging.NOTSET)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def _loggers():
    """Returns all loggers but the root."""
    found = list(logging.Logger.manager.loggerDict.values())  # threads make new ones
    return [logger for logger in found if isinstance(logger, logging.Logger)]


def pytest_collection_modifyitems(items):
    """Puts files of many slow tests first, so that no worker ends long after another."""
    slow = collections.Counter(
        item.path for item in items if item.get_closest_marker("slow")
    )
    items.sort(key=lambda item: -slow[item.path])
