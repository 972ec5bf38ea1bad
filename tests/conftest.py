"""All tests see four CPU devices, strict rank promotion and an empty cache."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
# For the processes that tests start, too.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["PYTHONWARNINGS"] = "error"

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from nstvis.runs.cache import keep_compiled


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keeps the user's cache out of the tests, and compiled programs between them."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def compiled_once(cache):
    """For a file whose tests run the same programs."""
    keep_compiled()
    compilation_cache.reset_cache()  # JAX looks only once whether there is one
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
