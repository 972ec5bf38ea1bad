"""Each class's highest activations of each unit, on the host.

With a thousand classes they are larger than all else that a scan keeps, but a batch
changes little of them: its own classes, and of these the units that set a record.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from nstvis.units import ranking
from nstvis.units.ranking import Best, Numbers


class Found(NamedTuple):
    """What was found in a batch, whose images are in any order."""

    # [batch, units]: the highest activations, and their positions.
    score: Numbers
    position: Numbers
    # [batch]: -1 where there is none.
    label: Numbers
    image: Numbers


class ClassMaxima:
    """The highest activations of the images of each class, in the order of `ranking`.

    Every host has those of the images of its own devices.
    """

    def __init__(self, units: int, classes: int, per_class: int):
        self._best = ranking.empty(classes, per_class, units)
        self._last: Found | None = None

    def add(self, found: Found) -> None:
        """Takes a batch into account, which is divided over all devices.

        What it holds is waited for at the next call, so that the devices are busy.
        """
        self._flush()
        self._last = found

    def _flush(self) -> None:
        if self._last and len(self._best.score):
            for score, position, label, image in zip(*map(_local, self._last)):
                if label >= 0 and image >= 0:
                    self._insert(label, Best(score, image, position))
        self._last = None

    def _insert(self, label: int, candidate: Best) -> None:
        """Inserts an image, `[units]`, where it is among the best of its class."""
        kept = Best(*(part[label] for part in self._best))
        last = Best(*(part[-1] for part in kept))
        units = np.flatnonzero(ranking.precedes(candidate, last))
        if not len(units):
            return
        row = np.broadcast_arrays(*candidate)
        new = Best(*(part[None, units] for part in row))
        old = Best(*(part[:, units] for part in kept))
        for part, merged in zip(kept, ranking.merge(old, new), strict=True):
            part[:, units] = merged

    def on_devices(self, sharding: NamedSharding) -> Best:
        """Returns them for a checkpoint: `[hosts * classes, per_class, units]`.

        Args:
            sharding: Of the first axis over all devices; empty classes fill the last.
        """
        self._flush()
        rows = -len(self._best.score) % jax.local_device_count()

        def divided(part: np.ndarray) -> jax.Array:
            padded = np.pad(part, [(0, rows), (0, 0), (0, 0)])
            return jax.make_array_from_process_local_data(sharding, padded)

        return Best(*map(divided, self._best))

    def restore(self, best: Best) -> None:
        """Takes what `on_devices` returned in place of what is known."""
        classes, self._last = len(self._best.score), None
        self._best = Best(*(_local(part)[:classes].copy() for part in best))

    def gathered(self) -> Best:
        """Returns those of the images of all hosts, on every host."""
        self._flush()
        if jax.process_count() == 1:
            return self._best
        every = multihost_utils.process_allgather(self._best)
        hosts = [Best(*(part[i] for part in every)) for i in range(len(every.score))]
        return functools.reduce(ranking.merge, hosts)


def _local(array: jax.Array) -> np.ndarray:
    """Returns the part of an array that is on the devices of this host."""
    shards = sorted(array.addressable_shards, key=lambda x: x.index[0].start or 0)
    return np.concatenate([shard.data for shard in shards])
