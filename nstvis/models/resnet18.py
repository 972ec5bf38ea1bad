"""ResNet-18 (He et al. 2015, arXiv:1512.03385), with torchvision's weights."""

import jax
from flax import nnx
from jax import Array

from nstvis.layers import Chain, GridLinear, conv, pool

TORCHVISION_FILE = "resnet18-f37072fd.pth"
TORCHVISION_NAMES = {"conv1.layers.0": "conv1", "conv1.layers.1": "bn1"} | {
    f"layer{i}_{j + 1}": f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)
}


class Block(nnx.Module):
    """Two convolutions, to whose result the block's input is added."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        shape = {"stride": stride, "bias": False, "rngs": rngs}
        self.conv1 = conv(inputs, outputs, 3, **shape)
        self.bn1 = batch_norm(outputs, rngs)
        self.conv2 = conv(outputs, outputs, 3, bias=False, rngs=rngs)
        self.bn2 = batch_norm(outputs, rngs)
        shortcut = conv(inputs, outputs, 1, **shape), batch_norm(outputs, rngs)
        self.downsample = nnx.List(shortcut if stride > 1 else ())

    def __call__(self, x: Array) -> Array:
        """Returns the sum, before its ReLU."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        for layer in self.downsample:
            x = layer(x)
        return self.bn2(self.conv2(y)) + x


def batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch norm by the statistics of training."""
    return nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)


def build(
    *, pooling: str, last: str | None, rngs: nnx.Rngs, classes: int = 1000
) -> Chain:
    """A convolution, eight residual blocks and a dense layer for images of any size."""
    stem = conv(3, 64, 7, stride=2, bias=False, rngs=rngs), batch_norm(64, rngs)
    layers = {"conv1": nnx.Sequential(*stem), "pool1": pool(pooling, 3, 2, padding=1)}
    inputs = 64
    for i, width in enumerate((64, 128, 256, 512), 1):
        for j, stride in enumerate((1 if i == 1 else 2, 1), 1):
            layers[f"layer{i}_{j}"] = Block(inputs, width, stride, rngs=rngs)
            inputs = width
    layers["fc"] = GridLinear(512, 1, classes, rngs=rngs)
    return Chain(layers, last)
