"""A small atlas, in which every patch can be told from all others."""

import io

import numpy as np
from PIL import Image

from nstvis.units import atlas
from nstvis.units.table import Layer, RankedPatches, Table

HACK = "document.documentElement.dataset.hacked=1"
CLASSES = [
    "tabby",
    "Tiger, Panthera tigris",
    f"<img src=x onerror={HACK}>",
    f"</script><script>{HACK}</script>",
    "\"double\" & 'single' &lt;b&gt; \\u003c ${1}`",
    f"line\u2028separator\u2029';{HACK};'",
    "\u202eחתול",
    "interminable" * 30,
]
SIZE = 64
EDGES = [-4.0, -1.0, -0.01, 0.01, 1.0, 2.0, 4.0, 8.0]
# Layer to units, side of the patches, and height, width and stride of the field.
LAYERS = {
    "conv1": (5, 7, (7, 7, 2)),
    "block/2 ü": (40, 48, (48, 48, 8)),
    "fc": (6, 64, (64, 64, 0)),
}


def colour(layer, unit, slot):
    """Tells a patch from all others."""
    return 40 + 80 * layer, 10 + 6 * unit, 20 + 25 * slot


def panel_colour(unit, slot):
    return 250 - 25 * slot, 240 - 5 * unit, 200


def panel_of(units, n, side):
    """Pictures of one colour each."""
    return {
        unit: np.stack(
            [
                np.full((side, side, 3), panel_colour(unit, slot), np.uint8)
                for slot in range(n)
            ]
        )
        for unit in units
    }


def picture_colour(image):
    return 250 - 2 * image, 40, 20 + 3 * image


def ranked(scores, images, boxes):
    shape = np.shape(scores)
    return RankedPatches(
        score=np.asarray(scores, np.float32),
        image=np.asarray(images, np.int32),
        position=np.zeros((*shape, 2), np.int32),
        box=np.broadcast_to(np.asarray(boxes, np.int32), (*shape, 4)),
    )


def layer_of(number, units, k, height, classes, images):
    """Random patches; scores go down from unit to unit, and are never equal."""
    rng = np.random.default_rng(number)
    top = -np.sort(-rng.uniform(1, 3, (units, k)), axis=1) - np.arange(units)[:, None]
    least = top.min() - 1 + np.sort(rng.uniform(0, 1, (units, k)), axis=1)
    corners = rng.integers(-height // 2, SIZE - height // 2, (units, k, 2))
    sparsity = rng.uniform(0, 0.9, units).astype(np.float32)
    return Layer(
        top=ranked(
            top,
            rng.integers(0, images, (units, k)),
            np.concatenate([corners, corners + height], -1),
        ),
        least=ranked(
            least, rng.integers(0, images, (units, k)), [0, 0, height, height]
        ),
        by_class=ranked(
            np.zeros((units, classes, 0)), np.zeros((units, classes, 0)), 0
        ),
        mean=rng.uniform(-1, 1, units).astype(np.float32),
        std=rng.uniform(0.1, 1, units).astype(np.float32),
        sparsity=sparsity,
        histogram=rng.integers(0, 100, (units, len(EDGES) - 1)),
        class_mean=rng.uniform(-1, 3, (units, classes)).astype(np.float32),
    )


def table_of(layers, classes, images, **others):
    return Table(
        layers=layers,
        fields={name: LAYERS.get(name, (0, (8, 8, 4)))[-1] for name in layers},
        classes=classes,
        examples={
            i: (f"train/{i:04}/<b>{i}</b>", i % len(classes) if classes else -1)
            for i in range(images)
        },
        edges=EDGES,
        images=10 * images,
        size=SIZE,
        about={"model": "net", "weights": "some", "dataset": "primitives train"},
        **others,
    )


def patches_of(sizes, k):
    """Patches in one colour each, by layer."""
    return {
        name: np.stack(
            [
                [
                    np.full((side, side, 3), colour(i, unit, slot), np.uint8)
                    for slot in range(k)
                ]
                for unit in range(units)
            ]
        )
        for i, (name, (units, side)) in enumerate(sizes.items())
    }


def encoded(image, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(file, format)
    return file.getvalue()


def pictures_of(images):
    return {i: encoded(np.full((32, 32, 3), picture_colour(i))) for i in range(images)}


def example():
    """A table, patches and pictures; image 59 has no picture."""
    layers = {
        name: layer_of(i, units, 9, field[0], len(CLASSES), 60)
        for i, (name, (units, _, field)) in enumerate(LAYERS.items())
    }
    # A unit that never fires, as a ReLU leaves it.
    dead = layers["conv1"]
    for part in (
        dead.top.score,
        dead.least.score,
        dead.mean,
        dead.std,
        dead.class_mean,
    ):
        part[3] = 0
    dead.sparsity[3], dead.histogram[3] = 1, [0, 0, 600, 0, 0, 0, 0]
    # Never above 0, but not dead.
    dead.sparsity[0] = layers["fc"].sparsity[5] = 1
    sizes = {name: (units, side) for name, (units, side, _) in LAYERS.items()}
    return table_of(layers, CLASSES, 60), patches_of(sizes, 9), pictures_of(59)


def write_with_panels(folder, given):
    """Writes an atlas with a panel for all units, and adds one for some of them."""
    layers = {"conv1": panel_of(range(5), 9, 7), "fc": panel_of(range(6), 9, 64)}
    atlas.write(folder, *given, {"deconvnet": layers})
    atlas.add(folder, "features", {"block/2 ü": panel_of([1, 33], 4, 16)})
    atlas.add(folder, "features", {"fc": panel_of([1, 3], 1, 24)})
    atlas.add(folder, "features", {"fc": panel_of([5], 1, 24)})
    atlas.add(folder, "features", {"block/2 ü": panel_of([2, 34], 1, 20)})
