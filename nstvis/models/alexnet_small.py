"""AlexNet's five convolutions for images of 64 x 64: the network this project ships.

The first layer is Zeiler & Fergus's (2013, arXiv:1311.2901), 7 x 7 with stride 2, and
conv2 has stride 1: receptive fields 7, 27, 51, 67 and 83 pixels.
"""

from flax import nnx

from nstvis.layers import Chain, GridLinear, conv, pool


def build(
    *, pooling: str, last: str | None, rngs: nnx.Rngs, classes: int = 200
) -> Chain:
    """Five convolutions and three dense layers for the 200 classes of Tiny ImageNet."""
    layers = {
        "conv1": conv(3, 64, 7, stride=2, rngs=rngs),
        "pool1": pool(pooling, 3, 2),
        "conv2": conv(64, 192, 5, rngs=rngs),
        "pool2": pool(pooling, 3, 2),
        "conv3": conv(192, 384, 3, rngs=rngs),
        "conv4": conv(384, 256, 3, rngs=rngs),
        "conv5": conv(256, 256, 3, rngs=rngs),
        "pool5": pool(pooling, 3, 2),
        "fc6": GridLinear(256, 3, 768, rngs=rngs),
        "fc7": nnx.Linear(768, 768, rngs=rngs),
        "fc8": nnx.Linear(768, classes, rngs=rngs),
    }
    return Chain(layers, last)
