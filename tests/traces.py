"""Reads what JAX's profiler wrote."""

import jax
import pytest


def executions(folder, program):
    """Counts how often a program ran in the one trace of a folder, whole or in part."""
    (file,) = folder.rglob("*.xplane.pb")
    if jax.__version_info__ >= (0, 12):
        pytest.skip("JAX 0.12 aborts when it reads the statistics of its own traces")
    trace = jax.profiler.ProfileData.from_file(str(file))
    events = [x for plane in trace.planes for line in plane.lines for x in line.events]
    stats = [dict(event.stats) for event in events]
    ran = {x["run_id"] for x in stats if x.get("hlo_module") == f"jit_{program}"}
    return len(ran)
