"""Matching: for each unit of a network the unit of another that is most like it.

The networks may be epochs of a training, seeds, or of different architectures. Li et al.
2016 (arXiv:1511.07543) match the units of two networks by the correlation of their
activations; `profiles` says what is compared here.
"""

import numpy as np

from nstvis.units.measurements import Finding
from nstvis.units.profiles import Profiles, similarities


def match(a: Profiles, b: Profiles) -> dict[str, Finding]:
    """Matches units with those of the other network's layer of the same name.

    Unless the other has all these layers: then with the units of all its layers.

    Args:
        a: The units of one network.
        b: Those of another, for the same classes or images.

    Returns:
        By layer of `a`:

            layer, unit  <U and int32 [units]: the most similar one of the other network;
                         "" and -1 if none is
            similarity   float32 [units]: how similar it is, above 0 to 1, or NaN
            mutual       bool [units]: whether this unit is also the one of its layer that
                         is most like that one

    Raises:
        ValueError: The profiles are of different numbers of classes or images.
    """
    if a.vectors.shape[1] != b.vectors.shape[1]:
        raise ValueError(
            f"profiles of {a.vectors.shape[1]} and of {b.vectors.shape[1]} classes or"
            " images: scan both networks with the same data set"
        )
    every = slice(0, len(b.vectors))
    same = set(a.places) <= set(b.places)
    return {
        name: _matched(a, b, place, b.places[name] if same else every)
        for name, place in a.places.items()
    }


def _matched(a: Profiles, b: Profiles, rows: slice, columns: slice) -> Finding:
    count = columns.stop - columns.start
    numbers, values = [], []
    # Of each of the others, the most similar unit so far.
    highest, back = np.full(count, -np.inf), np.zeros(count, int)
    for part, similarity in similarities(a, b, rows, columns):
        numbers.append(similarity.argmax(1))
        values.append(similarity.max(1))
        better = similarity.max(0) > highest
        back[better] = part.start + similarity.argmax(0)[better]
        highest = np.maximum(highest, similarity.max(0))
    number, value = np.concatenate(numbers), np.concatenate(values)
    found = value > 0
    layer, unit = b.names(np.where(found, number + columns.start, -1))
    return {
        "layer": layer,
        "unit": unit,
        "similarity": np.where(found, value, np.nan).astype(np.float32),
        "mutual": found & (back[number] == np.arange(rows.start, rows.stop)),
    }
