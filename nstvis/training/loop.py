"""The training loop: from settings to weights, with exact resume."""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nstvis import crops, data, devices, models, pipeline, plots, weights
from nstvis.runs import config
from nstvis.runs.checkpoints import Checkpoints, kept_steps, read_checkpoint
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Progress
from nstvis.training import evaluation, schedule
from nstvis.training.settings import Settings
from nstvis.training.step import (
    Batch,
    State,
    Trainer,
    has_batch_norm,
    trainable,
    zero_logits,
)

logger = logging.getLogger(__name__)

# Those of Zeiler & Fergus's (2013) Figure 4.
KEPT_EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)


class TrainingRun:
    """A training: its data, its compiled programs and its checkpoints.

    Attributes:
        settings: What is learned, and how.
        workdir: Where its checkpoints are.
        source: The images to learn from.
        steps_per_epoch: Batches in a pass over them; what is left over is dropped.
        steps: Of all epochs.
        forward: The plain network, `forward(params, images)`.
        normalized: Whether it has batch norm while it is trained.
        damaged: The images that could not be decoded.
        output: The file of the weights.
    """

    def __init__(self, settings: Settings, workdir: pathlib.Path):
        """Loads the data and builds the network; computes and writes nothing.

        Raises:
            ValueError: A setting is out of its bounds, there is no such network or data
                set, or it has no classes or fewer images than a batch.
            OSError: A file does not exist, or a download failed.
        """
        config.check(settings)
        self.settings, self.workdir = settings, workdir
        self._sides = settings.sides()
        stored = weights.as_stored(settings.weights, settings.photographs)
        self.source = data.load(
            settings.dataset, settings.split, settings.data_dir, stored
        )
        if not self.source.classes:
            raise ValueError(f"{settings.dataset} has no classes to learn")
        self._validation = None
        if settings.validation:
            self._validation = data.load(
                settings.dataset, settings.validation, settings.data_dir, stored
            )
        self.steps_per_epoch = len(self.source) // settings.batch
        if not self.steps_per_epoch:
            raise ValueError(
                f"a batch of {settings.batch} images is more than the"
                f" {len(self.source)} of {settings.dataset}"
            )
        self.steps = self.steps_per_epoch * settings.epochs
        self.damaged = pipeline.Damaged(workdir / "damaged.txt")
        self._damaged_validation = pipeline.Damaged(workdir / "damaged_validation.txt")
        self.output = workdir / f"{pathlib.Path(settings.model).stem}.safetensors"
        self._mesh = devices.mesh()
        self._build()

    def _build(self) -> None:
        settings = self.settings
        self._rate = schedule.learning_rate(
            settings.learning_rate, settings.warmup, self.steps
        )
        network = models.network(
            settings.model,
            settings.weights,
            classes=len(self.source.classes),
            seed=settings.seed,
        )
        if settings.weights == "random":
            zero_logits(network)
        self.forward, _ = models.functional(network)
        accelerated = jax.default_backend() != "cpu"  # where bfloat16 is slower
        network = trainable(
            network, settings.dropout, jnp.bfloat16 if accelerated else jnp.float32
        )
        self.normalized = has_batch_norm(network)
        self._trainer = Trainer(
            network,
            schedule.optimizer(self._rate, settings.weight_decay),
            smoothing=settings.smoothing,
            ema=settings.ema,
            seed=settings.seed,
        )
        self._step = jax.jit(
            self._trainer.step,
            donate_argnums=0,
            compiler_options=devices.compile_options(),
        )
        self._average = jax.jit(self._trainer.average)
        self._correct = jax.jit(functools.partial(evaluation.correct, self.forward))

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """Opens the checkpoints; only who trains may, as that deletes partial ones."""
        kept = [epoch * self.steps_per_epoch for epoch in KEPT_EPOCHS]
        return Checkpoints(self.workdir, self.settings.checkpoint_every, kept)

    @functools.cached_property
    def done(self) -> int:
        """Steps that earlier starts took."""
        return self.checkpoints.latest()

    def side(self, step: int) -> int:
        """Returns the side of the images of step `step`, counted from 1, in pixels."""
        return self._sides[(step - 1) * len(self._sides) // self.steps]

    def costs(self) -> list[float]:
        """Returns the floating-point operations of all steps."""
        state = jax.eval_shape(self._trainer.start)
        cost = {
            side: devices.flops(
                self._step, state, pipeline.shapes(self.settings.batch, side)
            )
            for side in set(self._sides)
        }
        return [cost[self.side(step)] for step in range(1, self.steps + 1)]

    def start(self) -> State:
        """Returns the newest checkpoint's state, or the first; data follows from there.

        Raises:
            ValueError: The checkpoint is of another network or number of devices.
        """
        self._images = self._iterator(min(self.done + 1, self.steps))
        return self.checkpoints.restore(self._first(), data=self._images)

    def _first(self) -> State:
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        return jax.device_put(self._trainer.start(), everywhere)

    def _iterator(self, step: int) -> Any:
        settings = self.settings
        return iter(
            pipeline.training(
                self.source,
                self.side(step),
                settings.batch,
                seed=settings.seed,
                augmentation=crops.Augmentation(
                    crop=settings.crop,
                    color=settings.color,
                    resize=settings.resize,
                ),
                damaged=self.damaged,
                workers=settings.workers,
            )
        )

    def batch(self, step: int) -> Batch:
        """Returns the next batch, that of step `step`, divided over all devices."""
        if step > 1 and self.side(step) != self.side(step - 1):
            position = self._images.get_state()
            self._images = self._iterator(step)
            self._images.set_state(position)
        return devices.divided(next(self._images), self._mesh)

    def step(self, state: State, step: int, batch: Batch) -> tuple[State, dict]:
        """Takes step `step`, counted from 1; returns the state and its metrics.

        The state that it takes is donated.
        """
        state, row = self._step(state, batch)
        return state, row | {"step": step, "learning_rate": self._rate(step - 1)}

    def save(self, step: int, state: State) -> None:
        """Saves a checkpoint: the state, and the data iterator's."""
        self.checkpoints.save(step, state, data=self._images)

    def evaluate(self, state: State) -> dict[str, float]:
        """Writes the averaged weights, and measures their accuracy on validation images.

        Returns:
            `validation_top1` and `validation_top5`, 0 to 1; nothing without such images.
        """
        params = self._average(state)
        if devices.is_lead():
            weights.save(self.output, params, self.source.classes)
        if self._validation is None:
            return {}
        images = pipeline.evaluation(
            self._validation,
            self.settings.size,
            self.settings.batch,
            damaged=self._damaged_validation,
            workers=self.settings.workers,
        )
        shares = evaluation.accuracy(self._correct, params, images)
        return {f"validation_{name}": shares[name] for name in ("top1", "top5")}

    def kept_epochs(self) -> list[int]:
        """Returns the epochs after which a checkpoint was kept, so far."""
        steps, length = kept_steps(self.workdir), self.steps_per_epoch
        return [step // length for step in steps if step % length == 0]

    def average_after(self, epoch: int) -> dict[str, Any]:
        """Returns the averaged weights at the end of one of the `kept_epochs`.

        Raises:
            ValueError: They are another network's.
            FileNotFoundError: They are not there.
        """
        step = epoch * self.steps_per_epoch
        return self._average(read_checkpoint(self.workdir, step, self._first()))


def train(settings: Settings, workdir: pathlib.Path) -> list[str]:
    """Trains a network, or resumes its training.

    All hosts stop after the same step, whichever of them is asked to.

    Args:
        settings: What is learned, and how.
        workdir: Gets the weights, figures, metrics, checkpoints, and the lists of
            damaged images.

    Returns:
        The names of the files that it left, the weights first.

    Raises:
        Interrupted: It was asked to stop, and can be resumed.
        FloatingPointError: The loss or its gradient is not finite.
        ValueError: The settings make no training; see `TrainingRun`.
        OSError: A file cannot be read or written.
    """
    run = TrainingRun(settings, workdir)
    _check_network_and_devices(run)
    with (
        run.checkpoints,
        Metrics(workdir, run.done) as metrics,
        Progress(run.costs(), run.done) as progress,
    ):
        state = run.start()
        for step in range(run.done + 1, run.steps + 1):
            state, row = run.step(state, step, run.batch(step))
            epoch, rest = divmod(step, run.steps_per_epoch)
            # The number of a signal, which stops, or 1, which only saves.
            wish = progress.interrupted or int(run.checkpoints.due())
            wish = devices.agreed(wish, step)
            saves = wish or not rest
            if saves:
                _check_loss(row, metrics)
            if not rest:
                row |= run.evaluate(state)
            if written := metrics.write(row):
                progress.show(int(written["step"]), _numbers(written))
            if saves:
                written = metrics.flush()
                run.save(step, state)
            if not rest and written:
                numbers = _numbers(written)
                logger.info("epoch %d of %d: %s", epoch, settings.epochs, numbers)
            if wish > 1:
                progress.interrupted = wish
                break
        else:  # or one host alone would be interrupted by a late signal
            progress.interrupted = devices.agreed(progress.interrupted, 0)
    if devices.is_lead():
        _report(run, metrics, workdir)
    return [run.output.name, "accuracy.png", "loss.png", "metrics.jsonl"]


def _check_network_and_devices(run: TrainingRun) -> None:
    settings = run.settings
    if settings.batch % jax.device_count():
        raise ValueError(
            f"batch={settings.batch} does not divide by {jax.device_count()} devices"
        )
    if not run.normalized:
        logger.warning(
            "%s is trained without batch norm, which can only be added to convolutions"
            " in an nstvis.layers.Chain",
            settings.model,
        )


def _check_loss(row: Mapping[str, Any], metrics: Metrics) -> None:
    """Raises an error rather than keep what cannot be resumed."""
    names = {"loss": "loss", "gradient_norm": "gradient"}
    wrong = [name for key, name in names.items() if not np.isfinite(row[key])]
    if wrong:
        metrics.write(row)
        metrics.flush()
        raise FloatingPointError(
            f"the {wrong[0]} is not finite at step {row['step']}: start again with a lower"
            " --config.learning_rate and another --workdir"
        )


def _report(run: TrainingRun, metrics: Metrics, workdir: pathlib.Path) -> None:
    if skipped := len(run.damaged.ids()):
        logger.warning("%d damaged images were skipped: %s", skipped, run.damaged.path)
    rows = metrics.read()
    plots.metrics(workdir / "loss.png", rows, ["loss"], "log")
    shares = ["accuracy", "validation_top1", "validation_top5"]
    plots.metrics(workdir / "accuracy.png", rows, shares, "linear")


def _numbers(row: Mapping[str, float]) -> str:
    text = (
        f"loss={row['loss']:.3f} accuracy={row['accuracy']:.2f}"
        f" gradient={row['gradient_norm']:.2g} dead={row['dead']:.3f}"
    )
    if "validation_top1" in row:
        shares = row["validation_top1"], row["validation_top5"]
        text += " validation top-1 {:.2%} top-5 {:.2%}".format(*shares)
    return text
