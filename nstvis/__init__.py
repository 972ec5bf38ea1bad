"""What deep ConvNets learn, and what can be painted with it.

One idea: a network is a pure function from images to named activations
(`nstvis.models`); everything else only reads it.
"""

import os

if "JAX_COORDINATOR_ADDRESS" in os.environ:
    # Before JAX is imported: `nstvis.hosts` says in a line what its coordination
    # service would say in C++ stack traces when a host dies.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "4")

__version__ = "1.0.0"
