"""The network of Zeiler & Fergus (2013, arXiv:1311.2901, Figure 3)."""

from flax import nnx

from nstvis.layers import Chain, GridLinear, conv, local_response_norm, pool


def build(
    *, pooling: str, last: str | None, rngs: nnx.Rngs, classes: int = 1000
) -> Chain:
    """AlexNet with a finer first layer, 7 x 7 with stride 2, for images of 224 x 224."""
    layers = {
        "conv1": conv(3, 96, 7, stride=2, padding=1, rngs=rngs),
        "pool1": pool(pooling, 3, 2, padding=1),
        "norm1": local_response_norm,
        "conv2": conv(96, 256, 5, stride=2, padding=0, rngs=rngs),
        "pool2": pool(pooling, 3, 2, padding=1),
        "norm2": local_response_norm,
        "conv3": conv(256, 384, 3, rngs=rngs),
        "conv4": conv(384, 384, 3, rngs=rngs),
        "conv5": conv(384, 256, 3, rngs=rngs),
        "pool5": pool(pooling, 3, 2),
        "fc6": GridLinear(256, 6, 4096, rngs=rngs),
        "fc7": nnx.Linear(4096, 4096, rngs=rngs),
        "fc8": nnx.Linear(4096, classes, rngs=rngs),
    }
    return Chain(layers, last)
