"""The settings of a training, and their bounds."""

import dataclasses
import pathlib

from nstvis.runs import files
from nstvis.runs.config import Batches, Dataset, Resumable, Seed, Workers, bounded


@dataclasses.dataclass(kw_only=True)
class Settings(Dataset, Batches, Workers, Seed, Resumable):
    """What is learned from what, and how."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # Weights to begin with: random, bundled, or the path of a file with as many classes.
    weights: str = "random"
    # Split on which the accuracy is measured after each epoch; none if empty.
    validation: str = "validation"
    # Sides of the training images, an equal part of the epochs each; size if empty.
    growth: str = "48,64"
    # Passes over the data.
    epochs: int = bounded(5, least=1, most=100_000)
    # Images in a batch, of all devices together.
    batch: int = bounded(64, least=1, most=65536)
    # Learning rate at its highest; it falls to 0 as a cosine.
    learning_rate: float = bounded(0.03, above=0)
    # Share of the steps in which it rises from 0.
    warmup: float = bounded(0.2, least=0, below=1)
    # Decay of the kernels.
    weight_decay: float = bounded(5e-4, least=0, most=1)
    # Label smoothing: share of the target that all classes divide.
    smoothing: float = bounded(0.1, least=0, below=1)
    # Share of the activations of hidden dense layers that are dropped.
    dropout: float = bounded(0.1, least=0, below=1)
    # Least share of an image's area that a random crop keeps.
    crop: float = bounded(0.5, least=0.01, most=1)
    # Resize crops; if not, cut out the images' own pixels, which are sharper. Crops then
    # have the sides of `growth`, whatever `crop` is.
    resize: bool = True
    # Largest relative change of brightness, contrast and saturation.
    color: float = bounded(0.2, least=0, most=1)
    # Decay per step of the moving average of the weights.
    ema: float = bounded(0.999, least=0, below=1)
    # Seconds between two checkpoints; there is one after each epoch, too.
    checkpoint_every: float = bounded(300.0, least=0)

    def sides(self) -> list[int]:
        """Parses `growth` to the sides of the training images, in pixels.

        Raises:
            ValueError: One is not a whole number from 1 to 8192.
        """
        parts = (self.growth or str(self.size)).split(",")
        sides = [int(part) if part.strip().isdecimal() else 0 for part in parts]
        if not all(1 <= side <= 8192 for side in sides):
            raise ValueError(
                f"growth={self.growth} should be sides of images in pixels, such as"
                " 48,64"
            )
        return sides

    def check(self) -> None:
        """Raises a ValueError if `growth` holds no sides of images."""
        self.sides()


def read_settings(workdir: pathlib.Path) -> Settings:
    """Reads the settings of a training from its workdir.

    Raises:
        ValueError: It is no workdir of a training.
    """
    try:
        record = files.read_json(workdir / "run.json")
        if pathlib.Path(record["experiment"]).stem != "train":
            raise ValueError(f"it is a run of {record['experiment']}")
        return Settings(**record["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{workdir} is no workdir of an --experiment=train: {error}"
        ) from error
