"""AlexNet in torchvision's layout (Krizhevsky 2014, arXiv:1404.5997)."""

from flax import nnx

from nstvis.layers import Chain, GridLinear, conv, pool

TORCHVISION_FILE = "alexnet-owt-7be5be79.pth"
TORCHVISION_NAMES = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}


def build(
    *, pooling: str, last: str | None, rngs: nnx.Rngs, classes: int = 1000
) -> Chain:
    """Five convolutions and three dense layers for images of 224 x 224."""
    layers = {
        "conv1": conv(3, 64, 11, stride=4, padding=2, rngs=rngs),
        "pool1": pool(pooling, 3, 2),
        "conv2": conv(64, 192, 5, rngs=rngs),
        "pool2": pool(pooling, 3, 2),
        "conv3": conv(192, 384, 3, rngs=rngs),
        "conv4": conv(384, 256, 3, rngs=rngs),
        "conv5": conv(256, 256, 3, rngs=rngs),
        "pool5": pool(pooling, 3, 2),
        "fc6": GridLinear(256, 6, 4096, rngs=rngs),
        "fc7": nnx.Linear(4096, 4096, rngs=rngs),
        "fc8": nnx.Linear(4096, classes, rngs=rngs),
    }
    return Chain(layers, last)
