r"""Trains a network to classify images.

    python launch.py --experiment=train
    python launch.py --experiment=train --config=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE --workdir=runs/tiny_imagenet

The first takes four and a half minutes on two cores of an AMD EPYC (Zen 4) and is right
about 78.5 % of the validation images (99.7 % top-5). The second is how the weights that
are shipped are made.

Leaves the weights, `MODEL.safetensors`, averaged over the last steps and with batch
norm folded in: `--config.weights=PATH` of every experiment takes them. Beside them
`loss.png`, `accuracy.png`, `metrics.jsonl`, `damaged.txt` if there are such images, and
`checkpoints/`, which keep the epochs of Zeiler & Fergus's (2013) Figure 4.
"""

import dataclasses
import functools
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from nstvis import crops, data, devices, models, pipeline, weights
from nstvis.runs.checkpoints import Checkpoints, kept_steps, read_checkpoint
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Progress, interruptible
from nstvis.training import evaluation, step

logger = logging.getLogger(__name__)

KEPT_EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)


@dataclasses.dataclass(kw_only=True)
class Config:
    """What is learned from what, and how."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # Data set: primitives, tiny_imagenet, tfds:NAME or folder:PATH.
    dataset: str = "primitives"
    # Its part to learn from.
    split: str = "train"
    # Its part to measure the accuracy on after each epoch; none if empty.
    validation: str = "validation"
    # Where the data set's files are; its own default if empty.
    data_dir: str = ""
    # Side of the images, in pixels.
    size: int = 64
    # Sides of the training images, an equal part of the epochs each; size if empty.
    growth: str = "48,64"
    # Passes over the data.
    epochs: int = 5
    # Images in a batch, of all devices together.
    batch: int = 64
    # Learning rate at its highest; it falls to 0 as a cosine.
    learning_rate: float = 0.03
    # Share of the steps in which it rises from 0.
    warmup: float = 0.2
    # Decay of the kernels.
    weight_decay: float = 5e-4
    # Share of the target that all classes divide.
    smoothing: float = 0.1
    # Share of the activations of hidden dense layers that are dropped.
    dropout: float = 0.1
    # Least share of an image's area that a crop keeps.
    crop: float = 0.5
    # Largest relative change of brightness, contrast and saturation.
    color: float = 0.2
    # Decay per step of the moving average of the weights.
    ema: float = 0.999
    # Seed of everything random.
    seed: int = 0
    # Processes that prepare images; 0 for threads of this one.
    workers: int = 0
    # Seconds between two checkpoints; there is one after each epoch, too.
    checkpoint_every: float = 300.0


PRESETS = {
    # The weights that this project ships.
    "tiny_imagenet": Config(
        dataset="tiny_imagenet",
        epochs=18,
        batch=128,
        learning_rate=0.05,
        color=0.1,
    ),
}


def run(config: Config, workdir: pathlib.Path) -> int:
    """Trains, or goes on training where the same command was interrupted."""
    run = Run(config, workdir)
    output = workdir / f"{pathlib.Path(config.model).stem}.safetensors"
    if run.done == run.steps and (workdir / "accuracy.png").exists():
        logger.info("finished already: %s", output)
        return 0
    if run.done:
        logger.info("going on after step %d of %d", run.done, run.steps)
    with (
        interruptible() as interruption,
        run.checkpoints,
        Metrics(workdir, run.done) as metrics,
        Progress(run.costs(), run.done) as progress,
    ):
        state, wish = run.start(), 0
        for step in range(run.done + 1, run.steps + 1):
            state, row = run.step(state, step)
            epoch, rest = divmod(step, run.steps_per_epoch)
            # To stop, which is a signal's number, or to save, which is 1.
            wish = interruption.signal or int(run.checkpoints.due())
            wish = devices.agreed(wish, step)
            keep = wish or not rest
            if keep and not np.isfinite(row["loss"]):
                metrics.write(row)
                metrics.flush()
                raise FloatingPointError(
                    f"the loss is not finite at step {step}: start again with a lower"
                    " --config.learning_rate and another --workdir"
                )
            if not rest:
                params = run.average(state)
                if devices.is_lead():
                    weights.save(output, params, run.source.classes)
                row |= run.accuracy(params)
            if landed := metrics.write(row):
                progress.show(int(landed["step"]), _numbers(landed))
            if keep:
                landed = metrics.flush()
                run.save(step, state)
            if not rest and landed:
                logger.info(
                    "epoch %d of %d: %s", epoch, config.epochs, _numbers(landed)
                )
            if wish > 1:
                break
    if wish > 1:
        logger.info("stopped after step %d of %d", step, run.steps)
        logger.info("the same command with --workdir=%s goes on from there", workdir)
        return 128 + wish
    if not devices.is_lead():
        return 0
    if skipped := len(run.damaged.ids()):
        logger.warning("%d damaged images were skipped: %s", skipped, run.damaged.path)
    metrics.plot(workdir / "loss.png", ["loss"], "log")
    shares = ["accuracy", "validation_top1", "validation_top5"]
    metrics.plot(workdir / "accuracy.png", shares, "linear")
    for name in (output.name, "accuracy.png", "loss.png", "metrics.jsonl"):
        logger.info("%s", workdir / name)
    return 0


class Run:
    """A training run: its data, its compiled programs, and where it stands."""

    def __init__(self, config: Config, workdir: pathlib.Path):
        self._config, self._workdir = config, workdir
        self._sizes = _sizes(config)
        self.source = data.load(config.dataset, config.split, config.data_dir)
        if not self.source.classes:
            raise ValueError(f"{config.dataset} has no classes to learn")
        self._validation = None
        if config.validation:
            self._validation = data.load(
                config.dataset, config.validation, config.data_dir
            )
        self.steps_per_epoch = len(self.source) // config.batch
        if not self.steps_per_epoch:
            raise ValueError(
                f"a batch of {config.batch} images is more than the {len(self.source)}"
                f" of {config.dataset}"
            )
        self.steps = self.steps_per_epoch * config.epochs
        self.damaged = pipeline.Damaged(workdir / "damaged.txt")
        self._unmeasured = pipeline.Damaged(workdir / "damaged_validation.txt")
        self._mesh = devices.mesh()
        self._compile()

    def _compile(self) -> None:
        config, classes = self._config, len(self.source.classes)
        self._rate = optax.warmup_cosine_decay_schedule(
            0, config.learning_rate, round(config.warmup * self.steps), self.steps
        )
        optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay, _kernels),
            optax.sgd(self._rate, momentum=0.9, nesterov=True),
        )
        network = models.network(
            config.model, "random", classes=classes, seed=config.seed
        )
        self.forward, _ = models.functional(network)
        accelerated = jax.default_backend() != "cpu"  # where bfloat16 is slower
        self._trainer = step.Trainer(
            step.trainable(
                network, config.dropout, jnp.bfloat16 if accelerated else jnp.float32
            ),
            optimizer,
            smoothing=config.smoothing,
            ema=config.ema,
            seed=config.seed,
        )
        self._step = jax.jit(self._trainer.step, donate_argnums=0)
        self._average = jax.jit(self._trainer.average)
        self._correct = jax.jit(functools.partial(evaluation.correct, self.forward))

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """Where it goes on; opened by who trains alone, as that clears up there."""
        kept = [epoch * self.steps_per_epoch for epoch in KEPT_EPOCHS]
        return Checkpoints(self._workdir, self._config.checkpoint_every, kept)

    @functools.cached_property
    def done(self) -> int:
        """Steps that were taken before this start."""
        return self.checkpoints.latest()

    def size(self, step: int) -> int:
        """Side of the images of step `step`, counted from 1, in pixels."""
        return self._sizes[(step - 1) * len(self._sizes) // self.steps]

    def costs(self) -> list[float]:
        """Floating-point operations of all steps."""
        state = jax.eval_shape(self._trainer.start)
        cost = {
            size: devices.flops(
                self._step, state, pipeline.shapes(self._config.batch, size)
            )
            for size in set(self._sizes)
        }
        return [cost[self.size(step)] for step in range(1, self.steps + 1)]

    def start(self) -> step.State:
        """The state from which to go on, with the data iterator where it was."""
        state = self._first()
        self._images = self._iterator(min(self.done + 1, self.steps))
        return self.checkpoints.restore(state, data=self._images)

    def _first(self) -> step.State:
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        return jax.device_put(self._trainer.start(), everywhere)

    def _iterator(self, step: int) -> Any:
        config = self._config
        return iter(
            pipeline.training(
                self.source,
                self.size(step),
                config.batch,
                seed=config.seed,
                augmentation=crops.Augmentation(crop=config.crop, color=config.color),
                damaged=self.damaged,
                workers=config.workers,
            )
        )

    def step(self, state: step.State, step: int) -> tuple[step.State, dict]:
        """Takes step `step`, counted from 1; returns the state and metrics."""
        if step > 1 and self.size(step) != self.size(step - 1):
            position = self._images.get_state()
            self._images = self._iterator(step)
            self._images.set_state(position)
        batch = devices.divided(next(self._images), self._mesh)
        state, row = self._step(state, batch)
        return state, row | {"step": step, "learning_rate": self._rate(step - 1)}

    def save(self, step: int, state: step.State) -> None:
        """Saves the state and the data iterator's."""
        self.checkpoints.save(step, state, data=self._images)

    def average(self, state: step.State) -> dict[str, Any]:
        """The averaged weights as parameters of the plain network."""
        return self._average(state)

    def kept_epochs(self) -> list[int]:
        """Epochs of whose end there is a checkpoint, also while another process trains."""
        steps, length = kept_steps(self._workdir), self.steps_per_epoch
        return [step // length for step in steps if step % length == 0]

    def average_after(self, epoch: int) -> dict[str, Any]:
        """The averaged weights at the end of one of the `kept_epochs`.

        Raises:
            ValueError: They are another network's.
            FileNotFoundError: They are not there.
        """
        step = epoch * self.steps_per_epoch
        return self.average(read_checkpoint(self._workdir, step, self._first()))

    def accuracy(self, params: dict[str, Any]) -> dict[str, float]:
        """Shares of the validation images whose class is first, or among five."""
        if self._validation is None:
            return {}
        images = pipeline.evaluation(
            self._validation,
            self._config.size,
            self._config.batch,
            damaged=self._unmeasured,
            workers=self._config.workers,
        )
        found = evaluation.accuracy(self._correct, params, images)
        return {f"validation_{name}": found[name] for name in ("top1", "top5")}


def _sizes(config: Config) -> list[int]:
    """Reads the sides of the images, and checks the other numbers that must be so."""
    for name in ("size", "epochs", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} should be at least 1")
    if config.batch % jax.device_count():
        raise ValueError(
            f"batch={config.batch} does not divide by {jax.device_count()} devices"
        )
    try:
        return [int(size) for size in (config.growth or str(config.size)).split(",")]
    except ValueError as error:
        raise ValueError(
            f"growth={config.growth} should be sides of images, such as 48,64"
        ) from error


def _kernels(params: Any) -> Any:
    """Picks the parameters that decay: kernels, not biases and scales."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _numbers(row: dict[str, float]) -> str:
    text = (
        f"loss={row['loss']:.3f} accuracy={row['accuracy']:.2f}"
        f" gradient={row['gradient_norm']:.2g} dead={row['dead']:.3f}"
    )
    if "validation_top1" in row:
        tops = row["validation_top1"], row["validation_top5"]
        text += " validation top-1 {:.2%} top-5 {:.2%}".format(*tops)
    return text
