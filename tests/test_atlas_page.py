"""The atlas's page shows what was written, in a browser, opened from disk."""

import shutil
import time

import numpy as np
import pytest
from atlas_page import (
    COUNTED,
    HOVERING,
    PAPER,
    address,
    choose,
    inside,
    numbers,
    search,
    status,
)
from atlases import (
    CLASSES,
    EDGES,
    LAYERS,
    colour,
    layer_of,
    panel_colour,
    patches_of,
    picture_colour,
    pictures_of,
    table_of,
)

from nstvis.units import atlas, statistics

pytest_plugins = ["atlas_fixtures"]
pytestmark = pytest.mark.slow

GREY = (127, 127, 127)
LEAST = "section > .strip"


def selectivity(layer):
    return statistics.compute(layer)["selectivity"]


def shown(x):
    """A number as the page writes it."""
    return f"{float(f'{x:.3g}'):g}".replace("-", "−")


@pytest.mark.parametrize("scale", [1, 2])
def test_every_patch_is_in_its_place_whole_and_without_seams(page, folder, scale):
    page.window(height=1200, scale=scale)
    page.open(folder)
    patches_are_in_their_places(page, scale)
    page.click("#pixelated")
    patches_are_in_their_places(page, scale)


def patches_are_in_their_places(page, scale):
    for place, (name, (units, _, field)) in enumerate(LAYERS.items()):
        page.go(address(name))
        page.shows("#name", name)
        points = {}
        for unit in range(units):
            box = page.box("#units canvas", unit)
            if box[1] + box[3] < 1200 and (name, unit) != ("conv1", 3):
                for slot in range(9):
                    for x, y in inside(box, 3, slot):
                        points[x * scale, y * scale] = colour(place, unit, slot)
        assert len(points) >= min(units, 20) * 9 * 5 - 45
        page.looks(points)


def test_a_layer_tells_its_units_and_its_receptive_field(page, folder, given):
    page.open(folder)
    assert page.each("h1") == ["net"]
    assert page.each("#about") == ["some · primitives train · 600 images of 64 × 64 px"]
    assert page.each("nav a") == list(LAYERS)
    assert page.each("#name") == ["conv1"]
    assert status(page) == "5 units, 1 dead"
    true = (
        "Receptive field: {} × {} px, stride {} px; the patches of all layers are drawn"
    )
    true += " at one size."
    assert page.each("#field") == [true.format(7, 7, 2)]
    favourites = [CLASSES[i] for i in given[0].layers["conv1"].favourite()]
    favourites[3] = "dead"
    assert page.each("#units .caption bdi") == favourites
    assert page.each("#units .dead b") == ["3"]
    page.click("nav a", 1)
    page.shows("#name", "block/2 ü")
    assert status(page) == "40 units"
    assert page.each("#field") == [true.format(48, 48, 8)]
    page.click("nav a", 2)
    page.shows("#name", "fc")
    assert page.each("#field") == ["Receptive field: the whole image."]
    # Dead units are drawn fainter.
    page.open(folder)
    x, y = inside(page.box("#units canvas", 3), 3, 4)[-1]
    mixed = 0.35 * np.array(colour(0, 3, 4)) + 0.65 * np.array(PAPER["light"])
    page.looks({(x, y): mixed})


def test_a_unit_tells_all_that_is_known(page, folder, given):
    table, _, pictures = given
    for place, (name, number) in enumerate(zip(LAYERS, (2, 17, 5))):
        layer = table.layers[name]
        page.open(folder, address(name, number))
        page.shows("#title", f"{name} / {number}")
        assert page.js("document.title") == f"{name}/{number} · net"
        favourite = CLASSES[layer.favourite()[number]]
        assert page.each(".title p")[0] == f"favourite class: {favourite}"
        for part, where in ((layer.top, ".strongest"), (layer.least, LEAST)):
            told = page.each(f"{where} button > :not(canvas, img)")
            assert told == [
                line
                for score, image in zip(part.score[number], part.image[number].tolist())
                for line in (
                    shown(score),
                    CLASSES[table.examples[image][1]],
                    table.examples[image][0],
                )
            ]
        for slot in range(9):
            middle = page.middle(".strongest canvas", slot)
            page.looks({middle: colour(place, number, slot)})
        files = page.each(f"{LEAST} img", "x.src")
        for file, image in zip(files, layer.least.image[number].tolist(), strict=True):
            assert file.endswith(f"/{image}.png" if image in pictures else "")
        facts = dict(zip(page.each("dt"), page.each("dd b"), strict=True))
        assert facts == {
            "maximum": shown(layer.top.score[number, 0]),
            "mean": shown(layer.mean[number]),
            "std": shown(layer.std[number]),
            "sparsity": f"{shown(100 * layer.sparsity[number])} %",
            "selectivity": shown(selectivity(layer)[number]),
        }
        described = [x.description for x in statistics.registered().values()]
        assert page.each("dd small") == described
        order = np.argsort(-layer.class_mean[number])[:8]
        assert page.each(".bars bdi") == [CLASSES[i] for i in order]
        means = layer.class_mean[number][order]
        assert page.each(".bars span") == [shown(x) for x in means]
        bars = page.each(".bars i", "x.offsetWidth")
        lengths = np.maximum(0, bars[0] * means / means[0])
        np.testing.assert_allclose(bars, lengths, atol=1)


def test_the_histogram_has_a_bar_for_each_bin(page, folder, given):
    page.open(folder, address("block/2 ü", 17))
    counts = given[0].layers["block/2 ü"].histogram[17]
    bar = "[x.textContent, x.getAttribute('class'), box.height, box.x]"
    bar = f"((box) => {bar})(x.getBoundingClientRect())"
    bars, full = page.each(".histogram rect", bar), page.box(".histogram")[3]
    highest = max(counts[[0, 1, 3, 4, 5, 6]])
    filled = [i for i, n in enumerate(counts) if n]
    assert [bar[3] for bar in bars] == sorted(bar[3] for bar in bars)
    for (told, kind, height, _), i in zip(bars, filled, strict=True):
        plural = "" if counts[i] == 1 else "s"
        ends = f"{shown(EDGES[i])} to {shown(EDGES[i + 1])}"
        assert told == f"{ends}: {counts[i]} image{plural}"
        assert kind == ("zero" if i == 2 else "bar")
        share = min(1, max(0.01, counts[i] / highest))
        assert height == pytest.approx(share * (full - 1), abs=1.5)
    assert page.each(".axis span") == ["−4", "1", "8"]
    label = page.each(".histogram", "x.getAttribute('aria-label')")
    assert label == ["Histogram of the activations, from −4 to 8"]


def hanging(layer):
    """A unit and slot whose field hangs over the top and left border by much."""
    box = layer.top.box
    fits = (box[..., :2] < -8).all(-1) & (box[..., 2:] > 16).all(-1)
    fits &= (box[..., 2:] < 48).all(-1) & (layer.top.image != 59)
    fits[20:] = False  # out of the window
    return map(int, np.argwhere(fits)[0])


def seen_whole(page, svg, box, image):
    """Checks a whole image: grey over the border, darker out of the field, outlined."""
    scale, x0, y0 = page.js(
        f"((m) => [m.a, m.e, m.f])(document.querySelector('{svg}').getScreenCTM())"
    )
    top, left, bottom, right = map(int, box)
    here, dark = np.array(picture_colour(image)), 0.6
    points = {
        (right / 2, bottom / 2): here,
        (right + 6, bottom + 6): dark * here,
        (left / 2, top / 2): GREY,
        (left / 2, bottom + 6): dark * np.array(GREY),
        (right + 6, top / 2): dark * np.array(GREY),
    }
    page.looks({(x0 + scale * x, y0 + scale * y): c for (x, y), c in points.items()}, 4)
    edge = x0 + scale * right, y0 + scale * bottom / 2
    page.looks({edge: (255, 255, 255)}, 90)


def test_the_mouse_shows_the_whole_image_with_the_field_drawn_on_it(
    page, folder, given
):
    table = given[0]
    layer = table.layers["block/2 ü"]
    unit, slot = hanging(layer)
    page.open(folder, address("block/2 ü"))
    assert not page.js(HOVERING)
    page.move(*inside(page.box("#units canvas", unit), 3, slot)[-1])
    page.until(HOVERING)
    image = int(layer.top.image[unit, slot])
    id, label = table.examples[image]
    score = shown(layer.top.score[unit, slot])
    assert page.each("#hover figcaption > *") == [score, CLASSES[label], id]
    seen_whole(page, "#hover svg", layer.top.box[unit, slot], image)
    x, y, width, height = page.box("#hover")
    assert x >= 0 and y >= 0 and x + width <= 1200 and y + height <= 900
    page.move(5, 5)
    page.until(HOVERING, False)
    # Every patch has its own.
    for slot in range(9):
        page.move(*inside(page.box("#units canvas", 1), 3, slot)[-1])
        id = table.examples[int(layer.top.image[1, slot])][0]
        page.shows("#hover .id", id)


def test_focus_mouse_and_tap_show_the_whole_image_in_a_unit(page, folder, given):
    table = given[0]
    layer = table.layers["block/2 ü"]
    unit, slot = hanging(layer)
    ids = [table.examples[int(i)][0] for i in layer.top.image[unit]]
    least = [table.examples[int(i)][0] for i in layer.least.image[unit]]
    page.open(folder, address("block/2 ü"))
    page.click("#units a", unit)
    page.move(5, 5)
    page.shows(".whole .id", ids[0])
    for _ in page.each(".links a"):
        page.press("Tab")
    for i in range(9):
        page.press("Tab")
        assert page.each(".whole .id") == [ids[i]]
        if i == slot:
            image = int(layer.top.image[unit, slot])
            seen_whole(page, ".whole svg", layer.top.box[unit, slot], image)
            told = page.each(".whole svg", "x.getAttribute('aria-label')")
            top, left, bottom, right = layer.top.box[unit, slot]
            rows = f"rows {top} to {bottom} and columns {left} to {right} of 64"
            assert told == [f"Image {ids[slot]}; receptive field: {rows}"]
    page.press("Tab")
    assert page.each(".whole .id") == [least[0]]
    page.move(*page.middle(".strongest canvas", 4))
    page.shows(".whole .id", ids[4])
    chosen = page.each(".strongest button", "x.classList.contains('chosen')")
    assert chosen == [i == 4 for i in range(9)]
    page.tap(".strongest canvas", 2)
    page.shows(".whole .id", ids[2])


def test_sorts(page, folder, given):
    layer = given[0].layers["block/2 ü"]
    page.open(folder, address("block/2 ü"))
    assert numbers(page) == list(range(40))
    keys = {
        "mean": (layer.mean, shown),
        "std": (layer.std, shown),
        "selectivity": (selectivity(layer), shown),
        "maximum": (layer.top.score[:, 0], shown),
        "sparsity": (layer.sparsity, lambda x: f"{shown(100 * x)} %"),
    }
    assert {*page.each("#sort option")} == {"number", *keys}
    for name, (values, told) in keys.items():
        choose(page, "#sort", name)
        order = np.argsort(-values, kind="stable")
        assert numbers(page) == order.tolist()
        captions = page.each("#units .caption")
        assert all(c.endswith(told(values[i])) for c, i in zip(captions, order))
        x, y = inside(page.box("#units canvas"), 3, 0)[-1]
        page.looks({(x, y): colour(1, order[0], 0)})
    # The order leads from unit to unit, too, and the dead come first.
    page.go(address("block/2 ü", order[1]))
    page.shows("#title", f"block/2 ü / {order[1]}")
    assert page.each(".links a")[:2] == [f"← {order[0]}", f"{order[2]} →"]
    page.go("#conv1")
    page.shows("#name", "conv1")
    assert numbers(page)[:2] == [3, 0]


def test_a_statistic_of_one_s_own_is_a_fact_and_a_sort_order(
    page, given, tmp_path, monkeypatch
):
    monkeypatch.setattr(statistics, "_functions", dict(statistics._functions))
    values = np.array([3, np.nan, -2, 9, 3.5])

    @statistics.statistic("<b>spread</b>", "mean & <i>more</i>", percent=True)
    def spread(layer):
        return values[: len(layer.mean)]

    table, patches, pictures = given
    layers = {"conv1": table.layers["conv1"]}
    atlas.write(tmp_path, table_of(layers, CLASSES, 60), patches, pictures)
    page.open(tmp_path, "#conv1/4")
    assert page.each("dt")[-1] == "<b>spread</b>"
    assert page.each("dd b")[-1] == "350 %"
    assert page.each("dd small")[-1] == "mean & <i>more</i>"
    page.go("#conv1")
    page.shows("#name", "conv1")
    choose(page, "#sort", "<b>spread</b>")
    # A unit without the number comes last, and lacks the fact.
    assert numbers(page) == [3, 4, 0, 2, 1]
    captions = page.each("#units .caption", "x.lastChild.textContent")
    assert captions == ["900 %", "350 %", "300 %", "−200 %", "?"]
    page.go("#conv1/1")
    page.shows("#title", "conv1 / 1")
    assert page.each("dt")[-1] == "selectivity"


def test_panels_are_shown_instead_of_the_patches_and_beside_them(page, folder, panels):
    page.window(height=1500)
    page.open(folder)
    assert page.js("document.querySelector('#kinds').hidden")
    page.open(panels)
    assert page.each("#shown option") == ["patches", "deconvnet", "features"]
    places = [inside(page.box("#units canvas", 4), 3, slot) for slot in range(9)]
    for kind, of in (
        ("deconvnet", panel_colour),
        ("patches", lambda unit, slot: colour(0, unit, slot)),
    ):
        choose(page, "#shown", kind)
        points = {p: of(4, slot) for slot in range(9) for p in places[slot]}
        page.looks(points)
    # Of a layer that has none, the patches are shown.
    choose(page, "#shown", "features")
    page.looks({p: colour(0, 4, slot) for slot in range(9) for p in places[slot]})
    page.go(address("block/2 ü"))
    page.shows("#name", "block/2 ü")
    for unit in (2, 3):
        x, y = inside(page.box("#units canvas", unit), 1, 0)[-1]
        page.looks({(x, y): panel_colour(2, 0) if unit == 2 else PAPER["light"]})
    page.go(address("conv1", 2))
    page.shows("#title", "conv1 / 2")
    assert page.each(".panel h3") == ["deconvnet"]
    for slot in range(9):
        left, top, width, height = page.box(".panel canvas", slot)
        page.looks({(left + width / 2, top + height / 2): panel_colour(2, slot)})
    page.go(address("block/2 ü", 33))
    page.shows("#title", "block/2 ü / 33")
    assert page.each(".panel h3") == []


def test_names_are_shown_to_the_letter_and_never_run(page, folder, given):
    layer = given[0].layers["block/2 ü"]
    for hash in ("", address("block/2 ü"), address("block/2 ü", 4), address("fc", 0)):
        page.open(folder, hash)
        search(page, "<")
        page.until(COUNTED)
        assert page.js("document.documentElement.dataset.hacked") is None
        assert not page.each("main script, bdi > *, [src=x], [onerror]")
    page.open(folder, address("block/2 ü"))
    favourites = [CLASSES[i] for i in layer.favourite()]
    assert set(favourites) >= set(CLASSES[2:6])
    assert page.each("#units .caption bdi") == favourites
    # Reordering characters turn nothing but the name itself.
    kinds = page.each(".caption bdi", "getComputedStyle(x).unicodeBidi")
    assert set(kinds) == {"isolate"}


def test_zoom_and_pixels(page, tmp_path):
    # Halves: black and white meet at three and a half pixels of seven.
    cells = np.zeros((60, 9, 7, 7, 3), np.uint8)
    cells[:, :, :, 4:] = 255
    layer = layer_of(0, 60, 9, 7, 0, 60)
    atlas.write(tmp_path, table_of({"conv1": layer}, [], 60), {"conv1": cells}, {})
    page.open(tmp_path)

    def greys(canvas="#units canvas", patches=3):
        x, y, width, _ = map(round, page.box(canvas))
        row = page.pixels()[y + 10, x + 2 : x + width // patches - 4, 0].astype(int)
        return row, int(((row > 20) & (row < 235)).sum())

    # No seam: left of the second patch's black there is the first one's white.
    left, top, width, _ = page.box("#units canvas")
    seam = left + round((width + 2) / 3)
    page.looks({(seam, top + 9): (0, 0, 0), (seam - 3, top + 9): (255, 255, 255)}, 4)
    assert greys()[1] >= 4
    page.click("#pixelated")
    end = time.monotonic() + 10
    while greys()[1] > 1:
        assert time.monotonic() < end
    assert {0, 255} <= set(greys()[0].tolist())
    width = page.box("#units li")[2]
    page.click("#larger")
    assert page.box("#units li")[2] > 1.2 * width
    page.looks({inside(page.box("#units canvas"), 3, 8)[2]: (255, 255, 255)})
    assert greys()[1] <= 1
    page.open(tmp_path, fresh=False)
    assert page.box("#units li")[2] > 1.2 * width
    # What one looks at stays where it is.
    page.js("scrollTo(0, 1500)")
    tops = np.array(page.each("#units li", "x.getBoundingClientRect().top"))
    first = int(np.argmax(tops > 0))
    page.click("#larger")
    assert page.box("#units li", first)[1] == pytest.approx(tops[first], abs=2)
    for _ in range(8):
        page.click("#smaller")
    assert page.js("document.querySelector('#smaller').disabled")
    assert page.box("#units li")[2] < 0.6 * width
    for _ in range(8):
        page.click("#larger")
    assert page.js("document.querySelector('#larger').disabled")
    # In a unit, too.
    page.open(tmp_path, "#conv1/1")
    width = page.box(".strongest li")[2]
    page.looks({inside(page.box(".strongest canvas"), 1, 0)[0]: (0, 0, 0)})
    assert greys(".strongest canvas", 1)[1] >= 4
    page.click("#pixelated")
    end = time.monotonic() + 10
    while greys(".strongest canvas", 1)[1] > 1:
        assert time.monotonic() < end
    page.click("#smaller")
    assert page.box(".strongest li")[2] < width


def test_few_patches_no_classes_one_unit(page, tmp_path):
    layer = layer_of(0, 1, 5, 8, 0, 3)
    layer.top.image[0] = [0, 1, 2, -1, -1]
    layer.least.image[0] = [2, 1, 0, -1, -1]
    table = table_of({"conv": layer}, [], 3)
    patches = patches_of({"conv": (1, 8)}, 5)
    atlas.write(tmp_path, table, patches, pictures_of(3))
    page.open(tmp_path)
    assert status(page) == "1 unit"
    assert page.each("#units .caption bdi") == [""]
    box = page.box("#units canvas")
    points = {}
    for slot in range(5):
        there = colour(0, 0, slot) if slot < 3 else PAPER["light"]
        points |= dict.fromkeys(inside(box, 3, slot), there)
    page.looks(points)
    page.move(*inside(box, 3, 4)[-1])
    assert not page.js(HOVERING)
    page.press("ArrowRight")
    page.press("Enter")
    page.shows("#title", "conv / 0")
    assert page.each(".strongest .none") == ["no image"] * 2
    assert page.each(".links a") == ["All of conv"]
    assert page.each("h3") == ["Activations", "Least-activating images"]
    assert "selectivity" not in page.each("dt")
    unit = atlas.Atlas(tmp_path).unit("conv", 0)
    assert unit.favourite is None and unit.strongest == []
    assert [len(x) for x in (unit.top, unit.least, unit.patches())] == [3, 3, 3]
    # No image at all.
    layer.top.image[:], layer.least.image[:], layer.histogram[:] = -1, -1, 0
    atlas.write(tmp_path, table, patches, {})
    page.open(tmp_path, "#conv/0")
    assert page.each(".strongest .none") == ["no image"] * 5
    assert "No images." in page.each(".about section")[0]
    assert atlas.Atlas(tmp_path).unit("conv", 0).patches() == []


def test_what_is_missing_is_told(page, folder, tmp_path):
    here = tmp_path / "atlas"
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (here / "0-0.webp").unlink()
    page.open(tmp_path)
    page.shows("#status", "atlas/0-0.webp is missing or damaged")
    (here / "2.js").write_text("atlas.layers[2].content = {")
    page.open(tmp_path, "#fc")
    assert status(page) == "atlas/2.js is missing or damaged"
    page.click("nav a", 1)
    page.shows("#status", "40 units")
    (here / "table.js").unlink()
    page.open(tmp_path)
    assert status(page).startswith("atlas/table.js is missing or damaged")
    page.events.clear()
