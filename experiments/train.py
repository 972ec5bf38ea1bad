r"""Trains a network to classify images.

    python launch.py --experiment=train
    python launch.py --experiment=train --config=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE --workdir=runs/tiny_imagenet

The first command takes four and a half minutes on two cores of an AMD EPYC (Zen 4) and
reaches 78.5 % top-1 and 99.7 % top-5 accuracy on the validation images. The second made
the weights of alexnet_small that are shipped.

Leaves the weights, `MODEL.safetensors`, averaged over the last steps and with batch
norm folded in: `--config.weights=PATH` of every experiment takes them. Beside them
`loss.png`, `accuracy.png`, `metrics.jsonl`, `damaged.txt` if there are such images, and
`checkpoints/`, which keep the epochs of Zeiler & Fergus's (2013) Figure 4.
"""

import pathlib

from nstvis.training.loop import train
from nstvis.training.settings import Settings as Config

PRESETS = {
    # alexnet_small's weights that this project ships.
    "tiny_imagenet": Config(
        dataset="tiny_imagenet",
        epochs=18,
        batch=128,
        learning_rate=0.05,
        color=0.1,
    ),
    # AlexNet with batch norm, for 90 epochs; never run to its end.
    "imagenet": Config(
        dataset="tfds:imagenet2012",
        model="alexnet",
        size=224,
        growth="",
        epochs=90,
        batch=1024,
        learning_rate=0.1,
        warmup=0.05,
        weight_decay=1e-4,
        dropout=0.5,
        crop=0.08,
        color=0.4,
        workers=16,
        checkpoint_every=600.0,
    ),
}


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Trains the network."""
    return train(config, workdir)
