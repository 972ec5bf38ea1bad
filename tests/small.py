"""A network and a data set that train in no time: the files that a fork would add."""

NETWORK = """
from nstvis.layers import Chain, GridLinear, conv, pool

def build(*, pooling, last, rngs, classes=10):
    layers = {
        "conv1": conv(3, 4, 5, stride=2, rngs=rngs),
        "pool1": pool(pooling, 3, 2),
        "conv2": conv(4, 6, 3, rngs=rngs),
        "fc3": GridLinear(6, 1, classes, rngs=rngs),
    }
    return Chain(layers, last)
"""

# Noise of six colours, each of them a class. An image takes ARGUMENT seconds to read,
# so that a test has the time to kill who reads it.
DATA = """
import io
import time

import numpy as np
from PIL import Image

from nstvis.data import Example

class Colours:
    classes = ("red", "green", "blue", "cyan", "magenta", "yellow")

    def __init__(self, seed, count, seconds):
        self.seed, self.count, self.seconds = seed, count, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.seconds)
        label = index % 6
        pixels = np.random.default_rng([self.seed, index]).integers(0, 150, (40, 40, 3))
        pixels[..., label % 3] += 60
        if label > 2:
            pixels = 255 - pixels
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        return Example(f"{index}", label, file.getvalue())

    def index(self, id):
        return int(id)

def load(argument, split, data_dir):
    if split not in ("train", "validation"):
        raise ValueError(f"no split {split!r}")
    count = 96 if split == "train" else 24
    return Colours(split == "train", count, float(argument or 0))
"""


def write(folder):
    """Writes both; returns their paths."""
    model, dataset = folder / "tiny.py", folder / "colours.py"
    model.write_text(NETWORK)
    dataset.write_text(DATA)
    return str(model), str(dataset)


# Where that network's pictures have content and style.
PAINTED = {"content_layers": "conv2", "style_layers": "conv1,conv2"}


def flags(fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]
