"""Concepts."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Concepts:
    names: Sequence[str]
    present: np.ndarray
