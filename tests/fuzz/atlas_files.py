"""What a scan leaves: the atlas, `scan.npz`, `units.npz`."""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np

from nstvis.units import maxima, scan_file, table
from nstvis.units.atlas import Atlas
from tests import atlases
from tests.fuzz import mutations


@functools.cache
def _whole():
    """Returns a folder with an atlas of three layers, its table and a scan."""
    folder = Path(tempfile.mkdtemp())
    given = atlases.example()
    atlases.write_with_panels(folder, given)
    table.save(folder / "units.npz", given[0])
    state = maxima.start(4, pool=2, k=3, classes=2, per_class=1)
    about = scan_file.About(
        model="net",
        weights="random",
        network="0",
        layers={"conv1": 4},
        size=64,
        pool=2,
        k=3,
        per_class=1,
        patches=9,
        parts=[],
        deduplicate=True,
        classes=["a", "b"],
    )
    scan_file.save(folder / "scan.npz", jax.tree.map(np.asarray, state), about)
    return folder


def case(random, folder):
    whole = _whole()
    if random.random() < 0.5:
        name = random.choice(["units.npz", "scan.npz"])
        raw, path = (whole / name).read_bytes(), folder / name
        path.write_bytes(
            random.choice([mutations.of_bytes, mutations.of_zip])(random, raw)
        )
        return lambda: (table if name == "units.npz" else scan_file).load(path)
    for file in whole.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(whole)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file)
    damaged = random.choice(
        sorted(folder.rglob("*.js")) + sorted(folder.rglob("*.webp"))
    )
    raw = damaged.read_bytes()
    damaged.unlink()
    target, equals, text = raw.partition(b" = ")
    if equals and random.random() < 0.8:
        text = mutations.of_json_bytes(random, text.rstrip(b";\n"))
        damaged.write_bytes(target + equals + text + b";\n")
    else:
        damaged.write_bytes(mutations.of_bytes(random, raw))
    layer = random.choice(list(atlases.LAYERS))
    unit = random.randrange(atlases.LAYERS[layer][0])
    return lambda: _read(folder, layer, unit)


def _read(folder, layer, number):
    unit = Atlas(folder).unit(layer, number)
    unit.patches(), unit.panels(), unit.name, unit.inputs, unit.neighbours
