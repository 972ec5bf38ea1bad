"""What deep ConvNets learn, and what can be painted with it.

One idea: a network is a pure function from images to named activations
(`nstvis.models`); everything else only reads it.
"""

__version__ = "0.1.0"
