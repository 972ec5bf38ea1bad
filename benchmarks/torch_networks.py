"""Our networks in PyTorch, as its users write them: channels last, He et al.'s weights.

Only PyTorch's workers import this, and nothing of JAX.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)


def _alexnet(*first: int) -> Mapping[str, Sequence[int]]:
    layers: dict[str, Sequence[int]] = {
        "conv1": first,
        "pool1": (3,),
        "conv2": (192, 5),
        "pool2": (3,),
    }
    layers |= {"conv3": (384, 3), "conv4": (256, 3), "conv5": (256, 3)}
    return layers | {"pool5": (3,)}


def _vgg(*blocks: tuple[int, int]) -> Mapping[str, Sequence[int]]:
    layers = {}
    for block, (width, depth) in enumerate(blocks, 1):
        layers |= {f"conv{block}_{i}": (width, 3) for i in range(1, depth + 1)}
        layers[f"pool{block}"] = (2,)
    return layers


# Of a convolution: outputs, window, stride and padding; of a pooling: its window.
LAYERS = {
    "alexnet": _alexnet(64, 11, 4, 2),
    "alexnet_small": _alexnet(64, 7, 2, 3),
    "vgg19": _vgg((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
    "vgg_small": _vgg((32, 2), (64, 2), (128, 2), (256, 2)),
}
# The side of what the last map is averaged to, and the outputs of each dense layer.
DENSE = {
    "alexnet": (6, 4096, 4096, 1000),
    "alexnet_small": (3, 768, 768, 200),
    "vgg_small": (1, 200),
}


def normalized(images: torch.Tensor) -> torch.Tensor:
    """What the networks take of images, `[n, 3, height, width]`, 0..255."""
    return (images.float() - MEAN) / STD


def convolutions(
    model: str,
    last: str | None = None,
    *,
    pool: type = nn.MaxPool2d,
    norm: bool = False,
    inplace: bool = True,
) -> nn.Sequential:
    """Returns the network up to the ReLU of `last`, with our names of the layers."""
    network, inputs = nn.Sequential(), 3
    for name, shape in LAYERS[model].items():
        if len(shape) == 1:
            network.add_module(name, pool(*shape, 2))
            continue
        outputs, window, stride, padding = (*shape, 1, shape[1] // 2)[:4]
        conv = nn.Conv2d(inputs, outputs, window, stride, padding)
        network.add_module(f"{name}_pre", conv)
        if norm:
            network.add_module(f"{name}_norm", nn.BatchNorm2d(outputs))
        network.add_module(name, nn.ReLU(inplace))
        inputs = outputs
        if name == last:
            break
    return _drawn(network)


def classifier(
    model: str, *, classes: int = 0, norm: bool = False, dropout: float = 0
) -> nn.Sequential:
    """Returns the whole network, with as many logits as ours by default."""
    network, (cells, *widths) = convolutions(model, norm=norm), DENSE[model]
    channels = [x.out_channels for x in network if isinstance(x, nn.Conv2d)]
    network.extend([nn.AdaptiveAvgPool2d(cells), nn.Flatten()])
    inputs = cells**2 * channels[-1]
    for width in widths[:-1]:
        network.extend([nn.Linear(inputs, width), nn.ReLU(True), nn.Dropout(dropout)])
        inputs = width
    return _drawn(network.append(nn.Linear(inputs, classes or widths[-1])))


def _drawn(network: Any) -> Any:
    """Draws the weights as ours are drawn, and lays them out channels last.

    Of the two layouts this is the faster one, or as fast, for each network.
    """
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return network.to(memory_format=torch.channels_last)
