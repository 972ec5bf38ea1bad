"""A VGG (Simonyan & Zisserman 2014, arXiv:1409.1556) small enough to ship.

Four blocks of two 3 x 3 convolutions, for images of 64 x 64. No layer before the first
pooling has a stride, so unlike AlexNet's it does not alias: what is painted through it
has no grid.
"""

from flax import nnx

from nstvis.layers import Chain, GridLinear, conv, pool


def build(
    *, pooling: str, last: str | None, rngs: nnx.Rngs, classes: int = 200
) -> Chain:
    """Eight convolutions and the mean of the last map, for Tiny ImageNet's 200 classes."""
    layers, inputs = {}, 3
    for block, width in enumerate((32, 64, 128, 256), 1):
        for i in (1, 2):
            layers[f"conv{block}_{i}"] = conv(inputs, width, 3, rngs=rngs)
            inputs = width
        layers[f"pool{block}"] = pool(pooling, 2, 2)
    layers["fc5"] = GridLinear(256, 1, classes, rngs=rngs)
    return Chain(layers, last)
