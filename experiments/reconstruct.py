r"""Rebuilds pictures from what each layer knows of them.

    python launch.py --experiment=reconstruct
    python launch.py --experiment=reconstruct --config.content=photo.jpg \
        --config.style=painting.jpg --workdir=runs/reconstruct
    python launch.py --experiment=reconstruct --config.model=vgg19 \
        --config.weights=torchvision --config.pooling=average \
        --config.layers=conv1_1,conv2_1,conv3_1,conv4_1,conv5_1

From noise, gradient descent finds a picture with the content's activations in one layer,
for each layer (Mahendran & Vedaldi 2015, arXiv:1412.0035), and pictures with the style's
Gram matrices in the first layer, the first two, and so on (Gatys, Ecker & Bethge 2015,
arXiv:1508.06576, Figure 1). All of them are painted at once, by one program. Leaves the
figure, `reconstruct.png`, each picture, `loss.png`, `metrics.jsonl`, and
`reconstruct.csv`: the loss of every picture, and the peak signal-to-noise ratio (PSNR) to
the original in dB.

The first command takes three minutes on two cores of an AMD EPYC (Zen 4): conv1 gives the
content back at 36.8 dB, conv3 at 23.4 and conv5 at 19.8.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image, ImageOps

from nstvis import assets, devices, images, models
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.files import write_text
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Progress, interruptible
from nstvis.runs.registry import unknown
from nstvis.synthesis import losses, minimize
from nstvis.synthesis.style import first_canvas, make_optimizer
from nstvis.synthesis.style_settings import Settings

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config:
    """Which pictures are rebuilt from which layers, and how."""

    # Content picture: a path, or demo.
    content: str = "demo"
    # Style picture: a path, or demo; it is cropped to the content's shape.
    style: str = "demo"
    # Layers, separated by commas; all convolutions, after the ReLU, if empty.
    layers: str = ""
    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # bundled, torchvision, random or a path.
    weights: str = "bundled"
    # Pooling: max or average.
    pooling: str = "max"
    # Long side of the pictures, in pixels.
    size: int = 192
    # Adam's steps.
    steps: int = 300
    # Length of a step.
    learning_rate: float = 4.0
    # Weight of the mean squared difference of neighbouring pixels, which smooths.
    gamma: float = 1e-4
    # Pictures of the style are rolled at random at every step, at most by so many pixels.
    jitter: int = 8
    # Seed of the noise.
    seed: int = 0
    # Seconds between two checkpoints.
    checkpoint_every: float = 30.0


class Aim(NamedTuple):
    """What n pictures are compared with.

    Attributes:
        params: The network's.
        features: Layer to the content's activations P.
        grams: Layer to the style's Gram matrices A / M.
        content_factors: Layer to the weight times unit of its canonical loss, `[n]`; 0
            where a picture is not asked for that layer.
        style_factors: Likewise.
        jitter: Pixels that each picture is rolled by at most, `[n]`.
    """

    params: Any
    features: Any
    grams: Any
    content_factors: Any
    style_factors: Any
    jitter: Any


SHARED = Aim(None, None, None, 0, 0, 0)  # the axes along which the pictures lie


def run(config: Config, workdir: pathlib.Path) -> int:
    """Rebuilds, or goes on where the same command was interrupted."""
    table = workdir / "reconstruct.csv"  # written last
    if table.exists():
        logger.info("finished already: %s", workdir / "reconstruct.png")
        return 0
    rebuilding = Rebuilding(config)
    checkpoints = Checkpoints(workdir, config.checkpoint_every)
    done = checkpoints.latest()
    with (
        interruptible() as interruption,
        checkpoints,
        Metrics(workdir, done) as metrics,
        Progress([rebuilding.flops] * config.steps, done) as progress,
    ):
        state = checkpoints.restore(rebuilding.start())
        taken = rebuilding.run(state, range(done, config.steps))
        for state, losses in taken:
            done += 1
            if row := metrics.write({"step": done} | losses):
                progress.show(int(row["step"]), _numbers(row))
            if interruption.signal:
                break
            if checkpoints.due():
                metrics.flush()
                checkpoints.save(done, state)
        metrics.flush()
        checkpoints.save(done, state)
        metrics.plot(workdir / "loss.png", rebuilding.names, "log")
        lines = _draw(workdir, rebuilding, state)
    if done < config.steps:
        logger.info("stopped after step %d of %d", done, config.steps)
        logger.info("the same command with --workdir=%s goes on from there", workdir)
        return 128 + (interruption.signal or 0)
    write_text(table, lines)
    for name in ("reconstruct.png", "reconstruct.csv", "loss.png", "metrics.jsonl"):
        logger.info("%s", workdir / name)
    return 0


class Rebuilding:
    """All pictures, and the step that was compiled for them.

    Attributes:
        originals: The content, scaled, and the style, cropped to its size.
        layers: From the lowest to the highest.
        names: Of the pictures: one of each layer, then one of the first layer, one of
            the first two, and so on.
    """

    def __init__(self, config: Config):
        for name, least in {"size": 1, "steps": 1, "jitter": 0}.items():
            if getattr(config, name) < least:
                raise ValueError(f"{name} should be at least {least}")
        self.originals, self.layers = _open(config), _layers(config)
        spans = [self.layers[0], *(f"{self.layers[0]}-{x}" for x in self.layers[1:])]
        self.names = [f"content_{x}" for x in self.layers]
        self.names += [f"style_{x}" for x in spans]
        forward, params = models.load(
            config.model,
            config.weights,
            pooling=config.pooling,
            last=self.layers[-1],
            seed=config.seed,
        )
        self._settings = Settings(learning_rate=config.learning_rate)
        self._optimizer = make_optimizer(self._settings)
        self._keys = jax.random.split(jax.random.key(config.seed), len(self.names))
        take_aim = jax.jit(make_aim(forward, self.layers, config.jitter))
        self._aim = take_aim(params, *map(_batch, self.originals))
        objective = make_objective(forward, config.gamma)
        step = minimize.make_step(objective, self._optimizer)
        states, options = jax.eval_shape(self.start), devices.compile_options()
        lowered = minimize.batched(step, SHARED).lower(states, self._aim, self._keys)
        self._step = lowered.compile(dict[str, bool | str](options))

    @property
    def flops(self) -> float:
        """Floating point operations of a step, by XLA's account."""
        return (self._step.cost_analysis() or {}).get("flops", 0.0)

    def start(self) -> minimize.State:
        """The state before the first step: noise, another one for each picture."""
        like = _batch(self.originals[0])

        def start(key: Array) -> minimize.State:
            noise = first_canvas(like, self._settings, key)
            return minimize.start(noise, self._optimizer)

        return jax.vmap(start)(self._keys)

    def run(
        self, state: minimize.State, steps: range
    ) -> Iterator[tuple[minimize.State, dict[str, Array]]]:
        """Yields the state, valid until the next one, and each picture's loss."""
        arguments = self._step, state, self._aim, self._keys, steps
        for following, metrics in minimize.minimize(*arguments):
            losses = {name: metrics["J"][i] for i, name in enumerate(self.names)}
            yield following, losses

    def pictures(self, state: minimize.State) -> list[Image.Image]:
        """The best picture of each name so far."""
        return [images.to_image(picture[0]) for picture in np.asarray(state.best)]


def make_aim(
    forward: models.Forward, layers: Sequence[str], jitter: int
) -> Callable[[models.Params, Array, Array], Aim]:
    """Returns the function from parameters, content and style to the `Aim`.

    Each loss is in "balanced" units (`losses.UNITS`). Pictures of the style are
    rolled, so that the network's strides leave no grid: a style has no place.
    """
    units, count = losses.UNITS["balanced"], len(layers)
    one, none = np.eye(count), np.zeros((count, count))
    upto = np.tril(np.ones_like(one)) / np.arange(1, count + 1)[:, None]
    content_weights = np.vstack([one, none]).astype(np.float32)
    style_weights = np.vstack([none, upto]).astype(np.float32)

    def aim(params: models.Params, content: Array, style: Array) -> Aim:
        seen, painted = forward(params, content), forward(params, style)
        for name in layers:
            if not seen[name].size:
                raise ValueError(
                    f"{name} sees nothing of a picture this small: raise size"
                )
        features = {name: seen[name] for name in layers}
        grams = {name: losses.gram(painted[name]) for name in layers}
        by_content, by_style = {}, {}
        for i, name in enumerate(layers):
            by_content[name] = content_weights[:, i] * units.content(features[name])
            by_style[name] = style_weights[:, i] * units.style(grams[name])
        rolled = jnp.array([0] * count + [jitter] * count)
        return Aim(params, features, grams, by_content, by_style, rolled)

    return aim


def make_objective(forward: models.Forward, gamma: float) -> minimize.Objective:
    """Returns one picture's J_content + J_style + gamma TV, for `minimize`."""
    units = losses.UNITS["balanced"]

    def objective(picture: Array, aim: Aim, key: Array) -> tuple[Array, dict]:
        shift = jax.random.randint(key, (2,), 0, aim.jitter + 1)
        seen = forward(aim.params, jnp.roll(picture, shift, (1, 2)))
        loss = gamma * units.variation(picture) * losses.total_variation(picture, 2)
        for name, factor in aim.content_factors.items():
            loss += factor * losses.content_loss(seen[name], aim.features[name])
        for name, factor in aim.style_factors.items():
            loss += factor * losses.style_loss(seen[name], aim.grams[name])
        return loss, {}

    return objective


def _layers(config: Config) -> list[str]:
    known = models.layers(config.model)
    convolutions = [x for x in known if x.startswith("conv") and not x.endswith("_pre")]
    wanted = (
        config.layers.replace(" ", "").split(",") if config.layers else convolutions
    )
    for name in wanted:
        if name not in known:
            raise ValueError(unknown(f"layer of {config.model}", name, known))
    if not wanted:
        raise ValueError(
            f"no layer of {config.model} starts with conv: name some in layers, of"
            f" {', '.join(known)}"
        )
    return sorted(set(wanted), key=known.index)


def _open(config: Config) -> tuple[Image.Image, Image.Image]:
    """Reads the content, scaled, and the style, cropped to the same size."""

    def read(path: str, kind: str) -> Image.Image:
        demo = assets.FOLDER / f"demo_{kind}.jpg"
        return images.read(demo if path == "demo" else path).convert("RGB")

    content = images.resize(read(config.content, "content"), config.size)
    style = read(config.style, "style")
    return content, ImageOps.fit(style, content.size, Image.Resampling.LANCZOS)


def _draw(workdir: pathlib.Path, rebuilding: Rebuilding, state: minimize.State) -> str:
    """Writes the pictures and the figure; returns the table."""
    content, style = rebuilding.originals
    pictures, count = rebuilding.pictures(state), len(rebuilding.layers)
    lines, labels = ["picture,loss,psnr"], []
    for i, (name, picture) in enumerate(zip(rebuilding.names, pictures)):
        images.write(workdir / f"{name}.png", picture)
        label, psnr = name.partition("_")[2], ""
        if i < count:
            ratio = _psnr(picture, content)
            label, psnr = f"{label}  {ratio:.1f} dB", f"{ratio:.2f}"
        lines.append(f"{name},{float(state.best_loss[i]):.6g},{psnr}")
        labels.append(label)
    cells = [content, *pictures[:count], style, *pictures[count:]]
    labels = ["content", *labels[:count], "style", *labels[count:]]
    images.write(workdir / "reconstruct.png", images.sheet(cells, labels, count + 1))
    return "\n".join(lines) + "\n"


def _psnr(picture: Image.Image, original: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / mean squared error)."""
    errors = images.to_array(picture) - images.to_array(original)
    return float(10 * np.log10(255**2 / np.maximum(np.mean(errors**2), 1e-12)))


def _numbers(row: Mapping[str, float]) -> str:
    losses = {name: x for name, x in row.items() if name != "step"}
    worst = max(losses, key=losses.__getitem__)
    return f"losses {min(losses.values()):.3g} to {losses[worst]:.3g} ({worst})"


def _batch(image: Image.Image) -> Array:
    return jnp.asarray(images.to_array(image))[None]
