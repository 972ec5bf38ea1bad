r"""Checks whether such pictures depend on what the network has learnt.

    python launch.py --experiment=sanity
    python launch.py --experiment=sanity --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE

Adebayo et al. (2018, arXiv:1810.03292), Figures 2 and 4: a backward picture that stays
the same when the weights are random, layer after layer from the last one down, shows the
image rather than what the network knows. For each rule of `nstvis.probes.attribution`, pictures of
the class that the network says are compared with those of such networks, by the rank
correlation of their absolute values; and with those of the other rules. Optimised
pictures are compared with natural ones: how much higher is the activation that
`--experiment=features` reaches, with the trained network and with a random one?

Leaves one page, `sanity.png`, with a verdict on each method, and `sanity.csv`.

The first command takes a minute on two cores of an AMD EPYC (Zen 4). With random weights
from conv5 on, the pictures correlate with the trained network's by 0.27 (gradient), 0.91
(guided) and 0.67 (deconvnet): the last two hardly depend on what the deeper half has
learnt. Optimised pictures activate all of 32 units more than any of the images does, but
so do those for a random network.
"""

import dataclasses
import logging
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from nstvis import data, models
from nstvis.models import Forward, Params
from nstvis.probes import attribution
from nstvis.runs.files import write_text
from nstvis.runs.registry import unknown
from nstvis.synthesis.features import Search, Settings
from nstvis.units.patches import Pictures

logger = logging.getLogger(__name__)

SHOWN = 3  # images on the page
# Rank correlation with the pictures of a network whose deeper half is random: above
# which it depends little, and below which it depends much, on what that half has learnt.
LITTLE, MUCH = 0.6, 0.3


@dataclasses.dataclass(kw_only=True)
class Config:
    """Which network, and which images."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # bundled, torchvision or a path.
    weights: str = "bundled"
    # Data set: primitives, tiny_imagenet, tfds:NAME or folder:PATH.
    dataset: str = "primitives"
    # Its part.
    split: str = "validation"
    # Where the data set's files are; its own default if empty.
    data_dir: str = ""
    # Side of the images, in pixels.
    size: int = 64
    # Images, evenly from the whole split.
    images: int = 64
    # Layer whose units' pictures are optimised.
    layer: str = "conv5"
    # Units of it, chosen at random.
    units: int = 32
    # Seed of that choice, of the random weights, and of the optimised pictures.
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """What all checks found.

    Attributes:
        depths: From where on, up to the last layer, the weights are random; `none` first.
        pictures: Rule to pictures for each depth, float32 `[images, size, size, 3]`.
        similar: Rule to the mean correlation with the trained network's, by depth.
        agreement: Mean correlation of the rules' pictures, `[rules, rules]`.
        ratios: Of optimised to the highest natural activation, for units that have one:
            of the `trained` and of the `random` network.
    """

    depths: Sequence[str]
    pictures: dict[str, list[np.ndarray]]
    similar: dict[str, list[float]]
    agreement: np.ndarray
    ratios: dict[str, np.ndarray]


def run(config: Config, workdir: pathlib.Path) -> None:
    """Makes all checks, and draws the page."""
    page = workdir / "sanity.png"
    if page.exists():
        logger.info("finished already: %s", page)
        return
    for name in ("images", "units"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} should be at least 1")
    if config.weights == "random":
        raise ValueError("weights=random: there is nothing to make random")
    forward, params = models.load(config.model, config.weights)
    names = list(models.units(forward, params, config.size))
    if config.layer not in names:
        raise ValueError(unknown("layer", config.layer, names))
    images = _images(config)
    logits = np.asarray(jax.jit(forward)(params, images)[names[-1]])
    if logits.ndim != 2:
        raise ValueError(f"{names[-1]}, the last of {config.model}, are no logits")
    classes, seed = logits.shape[1], config.seed + 1
    _, random = models.load(config.model, "random", classes=classes, seed=seed)
    depths = {"none": params} | randomised(forward, params, random, images[:1])
    pictures = _pictures(forward, depths, names[-1], images, logits.argmax(1))
    similar = {
        rule: [rank_correlation(made[0], other) for other in made]
        for rule, made in pictures.items()
    }
    first = [made[0] for made in pictures.values()]
    agreement = np.array([[rank_correlation(a, b) for b in first] for a in first])
    ratios = {
        name: _ratios(config, forward, weights, images)
        for name, weights in (("trained", params), ("random", random))
    }
    found = Found(list(depths), pictures, similar, agreement, ratios)
    for line in (said := verdicts(found, config.layer)):
        logger.info("%s", line)
    write_text(workdir / "sanity.csv", _csv(found))
    _draw(page, images, found, said)
    for path in (page, workdir / "sanity.csv"):
        logger.info("%s", path)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of Spearman's correlation of absolute values, over pictures.

    Pictures that are 0 everywhere, of which there is no order, do not count; NaN if all
    are.

    Args:
        a: `[n, height, width, 3]`.
        b: Likewise.
    """
    from scipy.stats import rankdata

    flat = [np.abs(x).reshape(len(x), -1) for x in (a, b)]
    ranks = [rankdata(x, axis=1) for x in flat]
    centred = [x - x.mean(1, keepdims=True) for x in ranks]
    products = (centred[0] * centred[1]).sum(1)
    norms = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    there = norms > 0
    return float(np.mean(products[there] / norms[there])) if there.any() else np.nan


def verdicts(found: Found, layer: str) -> list[str]:
    """One sentence on each method, by what was found alone."""
    said = []
    for rule, similar in found.similar.items():
        half, whole = similar[len(similar) // 2], similar[-1]
        if np.isnan(half):
            told = "cannot be judged: with random weights there is no picture"
        elif half >= LITTLE:
            told = "FAILS: hardly depends on what the deeper layers have learnt"
        elif half >= MUCH:
            told = "DOUBTFUL: depends in part on what the deeper layers have learnt"
        else:
            told = "PASSES: depends on what the deeper layers have learnt"
        depth = found.depths[len(similar) // 2]
        said.append(
            f"{rule} {told} (rank correlation {half:.2f} with random weights from"
            f" {depth} on, {whole:.2f} with no others)"
        )
    trained, random = found.ratios["trained"], found.ratios["random"]
    if not len(trained):
        return [*said, f"optimised pictures cannot be judged: {layer} is sparsity"]
    reached = (trained >= 1).mean()
    told = "PASS" if reached >= 0.9 else "FAIL"
    usual = f"{np.median(random):.1f}" if len(random) else "?"
    said.append(
        f"optimised pictures {told}: {reached:.0%} of {len(trained)} units of {layer} are"
        f" at least as active as for any of the images (median {np.median(trained):.1f}"
        f" times; {usual} times in a random network: a high activation alone says little)"
    )
    return said


def _images(config: Config) -> np.ndarray:
    source = data.load(config.dataset, config.split, config.data_dir)
    count = min(config.images, len(source))
    indices = np.linspace(0, len(source) - 1, count).astype(int)
    pictures = Pictures([source], config.size)
    return np.stack([pictures[index] for index in indices]).astype(np.float32)


def randomised(
    forward: Forward, params: Params, random: Params, image: Array | np.ndarray
) -> dict[str, Params]:
    """Networks of which ever more is random, from the last layer down.

    Args:
        forward: The network.
        params: The trained network's, by layer.
        random: The random network's.
        image: `[1, height, width, 3]`, to see which activations a layer changes.

    Returns:
        Layer to the network that is random from there on.
    """
    image = jnp.asarray(image)
    trained = forward(params, image)

    def depth(name: str) -> int:
        mixed = forward({**params, name: random[name]}, image)
        same = [np.array_equal(trained[layer], mixed[layer]) for layer in trained]
        return [*same, False].index(False)

    mixed, found = dict(params), {}
    for name in sorted(params, key=depth, reverse=True):
        mixed[name] = random[name]
        found[name] = dict(mixed)
    return found


def _pictures(
    forward: Forward,
    depths: dict[str, Params],
    layer: str,
    images: np.ndarray,
    units: np.ndarray,
) -> dict[str, list[np.ndarray]]:
    """Each rule's pictures of a dense layer's units, for the weights of each depth."""
    found: dict[str, list[np.ndarray]] = {}
    nowhere = jnp.zeros((len(images), 2), int)
    with tqdm(
        total=len(attribution.RULES) * len(depths), leave=False, disable=None
    ) as bar:
        for rule in attribution.RULES:
            network = attribution.ruled(forward, rule)

            @jax.jit
            def carried(params: Params, network: Forward = network) -> Array:
                where = jnp.asarray(images), jnp.asarray(units), nowhere
                return attribution.pictures(network, params, layer, *where, seed="one")[
                    0
                ]

            found[rule] = []
            for params in depths.values():
                found[rule].append(np.asarray(carried(params)))
                bar.update()
    return found


def _ratios(
    config: Config, forward: Forward, params: Params, images: np.ndarray
) -> np.ndarray:
    """Of optimised pictures' activations to the images' highest, for live units."""
    maps = np.asarray(jax.jit(forward)(params, images)[config.layer])
    highest = maps.reshape(-1, maps.shape[-1]).max(0)
    rng = np.random.default_rng(config.seed)
    units = rng.permutation(len(highest))[: config.units].tolist()
    settings = Settings(size=config.size, seed=config.seed)
    search = Search(forward, params, config.layer, settings, len(units))
    with tqdm(total=settings.steps, leave=False, disable=None) as bar:
        for last in search.run(units):
            bar.update()
        reached = [found.activation for found in search.found(last, units)]
    live = highest[units] > 0
    return np.array(reached)[live] / highest[units][live]


def _csv(found: Found) -> str:
    lines = ["check,method,against,value"]
    for rule, similar in found.similar.items():
        for depth, value in zip(found.depths, similar, strict=True):
            lines.append(f"randomisation,{rule},{depth},{value:.4f}")
    for rule, row in zip(attribution.RULES, found.agreement, strict=True):
        for other, value in zip(attribution.RULES, row, strict=True):
            lines.append(f"agreement,{rule},{other},{value:.4f}")
    for name, ratios in found.ratios.items():
        for value in ratios:
            lines.append(f"optimised : natural,features,{name},{value:.4f}")
    return "\n".join(lines) + "\n"


def _draw(
    path: pathlib.Path, images: np.ndarray, found: Found, said: Sequence[str]
) -> None:
    """The page: pictures by depth, the curves, the agreement, the ratios, verdicts."""
    from matplotlib.figure import Figure  # half a second, at the end of a run

    count = min(SHOWN, len(images))
    shown = np.linspace(0, len(images) - 1, count).astype(int)
    rules, depths = list(found.pictures), found.depths
    rows, columns = count * len(rules), len(depths) + 1
    figure = Figure(figsize=(1.15 * columns, 1.15 * rows + 5.4), layout="constrained")
    heights = [1.15 * rows, 3.6, 1.8]
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    upper, lower, bottom = parts
    cells: Any = upper.subplots(rows, columns, squeeze=False)
    for cell in cells.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        cell.set_frame_on(False)
    for i, image in enumerate(shown):
        for j, rule in enumerate(rules):
            row = cells[i * len(rules) + j]
            row[0].set_ylabel(rule)
            if not j:
                row[0].imshow(images[image] / 255)
            for cell, made in zip(row[1:], found.pictures[rule], strict=True):
                size = np.abs(made[image]).max(-1)
                cell.imshow(size, cmap="gray", vmax=np.quantile(size, 0.99) or 1)
    for cell, depth in zip(cells[0], ["image", *depths], strict=True):
        name = {"image": "image", "none": "trained"}.get(depth, f"random\n{depth} on")
        cell.set_title(name, fontsize=9)
    _plot(lower, found)
    text = "\n".join("\n   ".join(textwrap.wrap(line, 15 * columns)) for line in said)
    bottom.text(0.02, 0.95, text, va="top", fontsize=10)
    figure.savefig(path, dpi=110)


def _plot(figure: Any, found: Found) -> None:
    """The numbers, as three plots in a row."""
    left, middle, right = figure.subplots(1, 3, width_ratios=[2, 1.3, 1.3])
    for rule, similar in found.similar.items():
        left.plot(found.depths, similar, marker="o", label=rule)
    left.axhspan(MUCH, LITTLE, color="0.93")
    left.set(ylim=(-0.15, 1.05), title="rank correlation with the trained network's")
    left.tick_params(axis="x", rotation=45)
    left.legend()
    rules = list(found.pictures)
    middle.imshow(found.agreement, vmin=0, vmax=1, cmap="Blues")
    middle.set_xticks(range(len(rules)), rules, rotation=45)
    middle.set_yticks(range(len(rules)), rules)
    for (i, j), value in np.ndenumerate(found.agreement):
        color = "white" if value > 0.5 else "black"
        middle.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    middle.set_title("agreement of the rules")
    right.boxplot(list(found.ratios.values()), tick_labels=list(found.ratios))
    right.axhline(1, color="0.6", linewidth=1)
    right.set_title("optimised : natural")
