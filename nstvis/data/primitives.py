"""Drawn images of what units of a ConvNet look for: edges, textures, shapes, faces.

The kinds are those that Andrew Ng's lecture "What are deep ConvNets learning?" points
out in Zeiler & Fergus 2013 (arXiv:1311.2901), and similar ones. Nothing is downloaded.
`primitives` is always the same images; `primitives:1` to `primitives:9` are others.
"""

import colorsys
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nstvis import images
from nstvis.data import tfds as prepared
from nstvis.data._faces import CHOICES
from nstvis.data._geometry import SIZE, reduced, smooth_noise
from nstvis.data._shapes import KINDS
from nstvis.runs import cache

# Images of each kind.
SPLITS = {"train": 200, "validation": 40}
SEEDS = tuple("0123456789")
# Least distance in RGB between the colours of an image, before contrast is reduced.
APART = 140.0


def draw(kind: str, rng: np.random.Generator) -> tuple[Image.Image, dict[str, Any]]:
    """Draws a random image of a kind.

    Args:
        kind: One of `KINDS`.
        rng: Source of all randomness.

    Returns:
        An image of 64 x 64 pixels, and its JSON-able parameters. Lengths are in pixels,
        x to the right and y down from the top left corner; angles are in degrees,
        counter-clockwise. `colors` are those of the ground and of what is painted on
        it, from bottom to top; `contrast` (0..1) scales their distance from the ground.
    """
    masks, parameters = KINDS[kind](rng)
    colors, contrast = _colors(len(masks) + 1, rng), rng.uniform(0.65, 1)
    colors = [colors[0] + contrast * (color - colors[0]) for color in colors]
    ground = rng.choice(["plain", "gradient", "noise"])
    picture = colors[0] + _unevenness(ground, rng)[..., None]
    for mask, color in zip(masks, colors[1:]):
        paint = color + _unevenness("gradient", rng)[..., None]
        picture = picture + reduced(mask)[..., None] * (paint - picture)
    picture += rng.normal(0, rng.choice([0, 0, 4]), picture.shape)
    parameters |= {"contrast": contrast, "ground": str(ground)}
    parameters["colors"] = [np.rint(color).astype(int).tolist() for color in colors]
    note = json.dumps(parameters)
    return images.to_image(picture), json.loads(note, parse_float=_rounded)


def example(
    seed: int, split: str, index: int
) -> tuple[str, Image.Image, dict[str, Any]]:
    """Draws one image of a split, which depends on the arguments alone.

    Images are ordered by kind, so that a kind added at the end changes no earlier image.

    Returns:
        Its kind, and what `draw` returns.
    """
    kind = list(KINDS)[index // SPLITS[split]]
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    return kind, *draw(kind, rng)


# Kinds whose angle is that of their lines.
_LINES = ("edge", "bar", "grating", "fine lines", "waves", "fur", "zebra")
_HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")


def tags(kind: str, parameters: Mapping[str, Any]) -> list[str]:
    """Says in words what an image of a kind was drawn with.

    Args:
        kind: One of `KINDS`.
        parameters: As `draw` returns them.

    Returns:
        Tags such as `lines at 45 degrees`, `period 6 to 10`, `red ground`, `left`.
    """
    colors = [_color_name(color) for color in parameters["colors"]]
    found = [f"{parameters['ground']} ground", f"{colors[0]} ground"]
    found += [f"{color} paint" for color in dict.fromkeys(colors[1:])]
    if parameters["contrast"] < 0.75:
        found.append("low contrast paint")
    if kind in _LINES:
        nearest = round(parameters["angle"] / 22.5) % 8 * 22.5
        found.append(f"lines at {nearest:g} degrees")
    period = parameters.get("period", parameters.get("spacing"))
    if period is not None:
        limits = {6: "period under 6", 10: "period 6 to 10", math.inf: "period over 10"}
        found.append(next(text for limit, text in limits.items() if period < limit))
    if "sharpness" in parameters:
        found.append("soft waves" if parameters["sharpness"] < 1 else "sharp waves")
    if kind == "edge":
        found.append("sharp edge" if parameters["softness"] < 1 else "soft edge")
    for name, sides in ("x", ("left", "right")), ("y", ("above", "below")):
        if abs(parameters.get(name, SIZE / 2) - SIZE / 2) > 4:
            found.append(sides[parameters[name] > SIZE / 2])
    found += [f"{name}: {parameters[name]}" for name in CHOICES if name in parameters]
    return found


def _color_name(color: Sequence[int]) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in color))
    if saturation < 0.2:
        return ("black", "grey", "white")[min(int(3 * value), 2)]
    return _HUES[round(6 * hue) % 6]


@dataclasses.dataclass(frozen=True)
class Drawn(prepared.Records):
    """A split of the drawn images, which have tags."""

    def tags(self, index: int) -> list[str]:
        """Returns what an image was drawn with, in words."""
        record = self.record(index)
        kind = self.classes[int(record["label"])]
        return tags(kind, json.loads(record["parameters"]))


class Primitives(tfds.core.GeneratorBasedBuilder):
    """Edges, textures, shapes and faces, drawn from a seed."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {"1.1.0": "Faces, the thirty-first kind."}
    # Nothing is downloaded; without this, TFDS looks for checksums beside this file.
    url_infos: ClassVar = {}
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=seed) for seed in SEEDS]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                "label": tfds.features.ClassLabel(names=list(KINDS)),
                "parameters": tfds.features.Text(),
            }
        )
        return self.dataset_info_from_configs(
            features=features, supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str):
        assert self.builder_config is not None
        seed = int(self.builder_config.name)
        for index in range(SPLITS[split] * len(KINDS)):
            kind, image, parameters = example(seed, split, index)
            file = io.BytesIO()
            image.save(file, "PNG")
            note = json.dumps(parameters)
            record = {"image": file.getvalue(), "label": kind, "parameters": note}
            yield index, record


def load(argument: str, split: str, data_dir: str) -> Drawn:
    """Opens a split; the first time, it is drawn.

    Args:
        argument: A seed, 0 to 9; 0 if empty.
        split: `train` or `validation`, or a slice of one.
        data_dir: TFDS's data folder; a folder in the cache folder if empty.

    Raises:
        ValueError: There is no such seed or split.
    """
    folder = data_dir or str(cache.cache_folder() / "tfds")
    records = prepared.load(f"primitives/{argument or 0}", split, folder)
    return Drawn(**vars(records))


def _colors(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns random, well separated colours; one in six is grey."""
    colors: list[np.ndarray] = []
    while len(colors) < count:
        hue, saturation, value = rng.random(), rng.uniform(0.3, 1), rng.uniform(0.15, 1)
        saturation *= rng.random() > 1 / 6
        color = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        if all(np.linalg.norm(color - other) > APART for other in colors):
            colors.append(color)
    return colors


def _unevenness(ground: str, rng: np.random.Generator) -> np.ndarray:
    """Returns an offset to a plain colour, [SIZE, SIZE] in about -25..25."""
    if ground == "plain":
        return np.zeros((SIZE, SIZE))
    if ground == "noise":
        return 15 * reduced(smooth_noise(rng, int(rng.integers(4, 20))))
    ramp = np.linspace(-1, 1, SIZE)
    x, y = rng.uniform(-12, 12, 2)
    return x * ramp + y * ramp[:, None]


def _rounded(number: str) -> float:
    return round(float(number), 3)
