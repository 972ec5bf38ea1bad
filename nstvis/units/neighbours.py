"""Neighbours: for each unit the units most like it, of its layer and of others."""

from collections.abc import Mapping

import numpy as np

from nstvis.units import profiles
from nstvis.units.measurements import Finding, Layer
from nstvis.units.ranking import highest

COUNT = 4  # of the same layer, and of others


def find(layers: Mapping[str, Layer]) -> dict[str, Finding]:
    """Finds the units that are most similar to each; see `profiles` for what that is.

    Args:
        layers: With the patches that units are shown with in `top`.

    Returns:
        By layer:

            layer, unit  <U and int32 [units, 8]: four of the same layer and four of
                         others, the most similar first; "" and -1 where there are fewer
            similarity   float32 [units, 8], above 0 to 1; NaN where there is none
    """
    known = profiles.of_layers(layers)
    every = slice(0, len(known.vectors))
    found = {}
    for name, place in known.places.items():
        numbers, values = [], []
        for part, similarity in profiles.similarities(known, known, place, every):
            units = np.arange(part.start, part.stop)
            similarity[units - part.start, units] = -1
            same, others = np.full_like(similarity, -1), similarity
            same[:, place] = similarity[:, place]
            others[:, place] = -1
            both = [highest(x, COUNT) for x in (same, others)]
            numbers.append(np.concatenate([x[0] for x in both], 1))
            values.append(np.concatenate([x[1] for x in both], 1))
        layer, unit = known.names(np.concatenate(numbers))
        found[name] = {
            "layer": layer,
            "unit": unit,
            "similarity": np.concatenate(values).astype(np.float32),
        }
    return found
