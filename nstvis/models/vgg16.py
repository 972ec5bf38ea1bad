"""VGG-16 (Simonyan & Zisserman 2014, arXiv:1409.1556)."""

from flax import nnx

from nstvis.layers import Chain, GridLinear, conv, pool

TORCHVISION_FILE = "vgg16-397923af.pth"
CAFFE_FILE = "vgg16-00b39a1b.pth"
WIDTHS_AND_DEPTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def torchvision_names(blocks: tuple[tuple[int, int], ...]) -> dict[str, str]:
    """Layer to torchvision prefix; a ReLU or a pooling takes a number there too."""
    names, index = {}, 0
    for block, (_, depth) in enumerate(blocks, 1):
        for i in range(depth):
            names[f"conv{block}_{i + 1}"] = f"features.{index + 2 * i}"
        index += 2 * depth + 1
    return names | {f"fc{6 + i}": f"classifier.{3 * i}" for i in range(3)}


TORCHVISION_NAMES = torchvision_names(WIDTHS_AND_DEPTHS)
# As published; neural-style-pt's download renames them to torchvision's.
CAFFE_NAMES = {"fc6": "classifier.1", "fc7": "classifier.4"}


def build(
    *,
    pooling: str,
    last: str | None,
    rngs: nnx.Rngs,
    classes: int = 1000,
    blocks: tuple[tuple[int, int], ...] = WIDTHS_AND_DEPTHS,
) -> Chain:
    """Blocks of 3 x 3 convolutions and three dense layers for images of 224 x 224."""
    layers, inputs = {}, 3
    for block, (width, depth) in enumerate(blocks, 1):
        for i in range(depth):
            layers[f"conv{block}_{i + 1}"] = conv(inputs, width, 3, rngs=rngs)
            inputs = width
        layers[f"pool{block}"] = pool(pooling, 2, 2)
    layers["fc6"] = GridLinear(512, 7, 4096, rngs=rngs)
    layers["fc7"] = nnx.Linear(4096, 4096, rngs=rngs)
    layers["fc8"] = nnx.Linear(4096, classes, rngs=rngs)
    return Chain(layers, last)
