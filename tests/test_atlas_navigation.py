"""Ways through the atlas's page: search, keyboard, addresses, phones, large networks."""

import itertools
import re

import numpy as np
import pytest
from atlas_page import (
    COUNTED,
    HOVERING,
    IN_LAYER,
    PAPER,
    address,
    inside,
    numbers,
    search,
    status,
)
from atlases import (
    LAYERS,
    layer_of,
    table_of,
)

from nstvis.units import atlas

pytest_plugins = ["atlas_fixtures"]
pytestmark = pytest.mark.slow

TEXTS = """[...document.querySelectorAll("body *")].filter((element) =>
  element.checkVisibility() && !element.closest("svg, option, :disabled, script")
  && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).map((element) => {
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  return [element.tagName + element.className, getComputedStyle(element).color,
    getComputedStyle(behind).backgroundColor];
})"""
VGG19 = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8


def test_finds_units_by_their_classes_in_all_layers(page, folder, given):
    table = given[0]

    def expected(name, label):
        layer = table.layers[name]
        classes = np.array([table.examples[i][1] for i in range(60)])
        hit = (classes[layer.top.image] == label).any(1) | (layer.favourite() == label)
        return np.flatnonzero(hit).tolist()

    page.open(folder)
    search(page, "TIGER")
    page.until(COUNTED)
    assert page.each("nav small") == [str(len(expected(name, 1))) for name in LAYERS]
    assert numbers(page) == expected("conv1", 1)
    assert status(page) == f"{len(numbers(page))} of 5 units matching “TIGER”"
    page.click("nav a", 1)
    page.shows("#name", "block/2 ü")
    few = expected("block/2 ü", 1)
    assert 0 < len(few) < 40
    assert numbers(page) == few
    assert status(page) == f"{len(few)} of 40 units matching “TIGER”"
    page.click("#units a", 1)
    page.shows("#title", f"block/2 ü / {few[1]}")
    assert status(page) == f"2 of {status(page).partition(' of ')[2]}"
    assert page.each(".links a")[:2] == [f"← {few[0]}", f"{few[2]} →"]
    # A unit that does not match can be seen, and its neighbours.
    other = next(i for i in range(1, 39) if i not in few)
    page.go(address("block/2 ü", other))
    page.shows("#title", f"block/2 ü / {other}")
    assert page.each(".links a")[:2] == [f"← {other - 1}", f"{other + 1} →"]
    page.press("Escape")
    search(page, "no such thing")
    assert numbers(page) == []
    assert status(page) == "0 of 40 units matching “no such thing”"
    search(page, "")
    page.js("document.querySelector('#query').dispatchEvent(new Event('input'))")
    assert len(numbers(page)) == 40
    assert page.each("nav small") == ["", "", ""]


def focused(page):
    """Address or id of what has the focus."""
    return "".join(page.each(":focus", "x.getAttribute('href') || x.id"))


def test_the_keyboard_alone_is_enough(page, folder):
    page.open(folder)
    assert "Shift" in page.each(".help")[0]
    assert page.box(".help")[3] > 0
    # One stop for all units; arrows lead from one to the next, and to the rows.
    for _ in range(40):
        page.press("Tab")
        if focused(page).startswith("#conv1/"):
            break
    assert focused(page) == "#conv1/0"
    page.press("Tab")
    assert not focused(page).startswith("#conv1/")
    page.press("Tab", shift=True)
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert focused(page) == "#conv1/2"
    page.press("ArrowLeft")
    assert focused(page) == "#conv1/1"
    (ring,) = page.each(":focus", "getComputedStyle(x).outline")
    assert ring == "rgb(165, 53, 26) solid 2px"
    # Enter opens, arrows lead on, Escape goes back to the unit seen last.
    page.press("Enter")
    page.shows("#title", "conv1 / 1")
    assert focused(page) == "title"
    page.press("ArrowRight")
    page.shows("#title", "conv1 / 2")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    page.shows("#title", "conv1 / 0")
    page.press("ArrowLeft")
    assert page.js("location.hash") == "#conv1/0"
    page.press("ArrowRight", shift=True)
    page.shows("#title", "block/2 ü / 0")
    page.go("#block%2F2%20%C3%BC/30")
    page.shows("#title", "block/2 ü / 30")
    page.press("ArrowRight", shift=True)
    page.shows("#title", "fc / 5")
    page.press("Escape")
    page.until("location.hash", "#fc")
    page.until("document.activeElement.hash", "#fc/5")
    page.press("ArrowLeft", shift=True)
    page.shows("#name", "block/2 ü")
    assert focused(page) == "#block%2F2%20%C3%BC/0"
    tops = page.each("#units a", "x.offsetTop")
    row = tops.count(tops[0])
    page.press("ArrowDown")
    assert focused(page) == f"#block%2F2%20%C3%BC/{row}"
    page.press("ArrowRight")
    page.press("ArrowUp")
    assert focused(page) == "#block%2F2%20%C3%BC/1"
    page.press("ArrowUp")
    assert focused(page) == "#block%2F2%20%C3%BC/1"
    # In the list of layers, arrows lead from layer to layer.
    page.js("document.querySelectorAll('nav a')[1].focus()")
    page.press("ArrowLeft")
    page.shows(":focus", "conv1")
    page.shows("#name", "conv1")
    # The search takes its keys for itself.
    page.press("/")
    assert focused(page) == "query"
    page.press("ArrowLeft")
    page.press("/")
    assert page.js("document.querySelector('#query').value") == "/"


def test_the_first_tab_skips_to_the_units(page, folder):
    page.open(folder)
    page.press("Tab")
    assert focused(page) == "skip"
    assert page.box("#skip")[0] >= 0
    page.press("Enter")
    assert focused(page) == "#conv1/0"


def test_addresses_lead_to_units_also_back_and_forth(page, folder):
    page.open(folder, address("block/2 ü", 17))
    page.shows("#title", "block/2 ü / 17")
    assert page.each("nav a[aria-current]") == ["block/2 ü"]
    assert page.js("document.querySelector('#layer').hidden")
    page.click("nav a", 0)
    page.until(IN_LAYER)
    page.click("#units a", 2)
    page.shows("#title", "conv1 / 2")
    page.js("history.back()")
    page.until(IN_LAYER)
    assert page.each("#name") == ["conv1"]
    page.js("history.back()")
    page.shows("#title", "block/2 ü / 17")
    page.js("history.go(2)")
    page.shows("#title", "conv1 / 2")
    assert page.js("document.querySelector('#layer').hidden")
    # By hand, with an unescaped slash.
    page.open(folder, "#block/2 ü/3")
    page.shows("#title", "block/2 ü / 3")
    page.open(folder, "#block/2 ü")
    assert page.each("#name") == ["block/2 ü"]


def test_a_wrong_address_is_told_and_something_shown(page, folder):
    unknown = "There is no “{}” in this atlas; showing conv1."
    for hash, told, layer in [
        ("#conv1/5", "There is no unit 5 in conv1: there are 0 to 4.", "conv1"),
        ("#fc/99999999999999999999", "There is no unit 9+ in fc: .* 0 to 5.", "fc"),
        *[
            (f"#{name}", re.escape(unknown.format(name)), "conv1")
            for name in ("conv9", "fc/-1", "%E0%A4%A", "__proto__/0", "<img src=x>")
        ],
    ]:
        page.open(folder, hash)
        assert re.fullmatch(told, status(page))
        assert page.each("#name") == [layer]
        assert len(numbers(page)) == LAYERS[layer][0]
        page.click("nav a", 2)
        page.shows("#status", "6 units")


def luminance(colour):
    x = np.array(colour) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(page, folder, theme):
    page.window(theme=theme)
    for hash in ("", address("conv1", 2), address("conv1", 3)):
        page.open(folder, hash)
        page.looks({(3, 3): PAPER[theme]}, 0)
        texts = page.js(TEXTS)
        assert len(texts) > 20
        for element, *colours in texts:
            ink, paper = ([int(n) for n in re.findall(r"\d+", c)] for c in colours)
            low, high = sorted([luminance(ink), luminance(paper)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (element, ink, paper)


def test_dark_follows_the_system_until_one_chooses(page, folder):
    pressed = "document.querySelector('#dark').getAttribute('aria-pressed')"
    page.open(folder)
    page.looks({(3, 3): PAPER["light"]}, 0)
    page.window(theme="dark")
    page.looks({(3, 3): PAPER["dark"]}, 0)
    page.until(pressed, "true")
    page.click("#dark")
    page.looks({(3, 3): PAPER["light"]}, 0)
    assert page.js(pressed) == "false"
    page.open(folder, fresh=False)
    page.looks({(3, 3): PAPER["light"]}, 0)
    page.window()
    page.click("#dark")
    page.looks({(3, 3): PAPER["dark"]}, 0)


def test_a_phone_shows_all_of_it_without_scrolling_aside(page, folder, given):
    page.window(390, 844, 2, mobile=True)
    page.open(folder)
    wide = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    for name, (units, *_) in LAYERS.items():
        page.go(address(name))
        page.shows("#name", name)
        assert page.js(wide) == 390
        assert page.js("visualViewport.scale") == 1
        for unit in range(0, units, 3):
            page.go(address(name, unit))
            page.shows("#title", f"{name} / {unit}")
            assert page.js(wide) == 390
    assert page.box(".help")[3] == 0
    # A tap opens a unit; another shows the whole image, which stays in sight.
    page.go(address("conv1"))
    page.until(IN_LAYER)
    assert not page.js(HOVERING)
    page.tap("#units canvas", 2)
    page.shows("#title", "conv1 / 2")
    page.tap(".strongest canvas", 8)
    layer = given[0].layers["conv1"]
    id = given[0].examples[int(layer.top.image[2, 8])][0]
    page.shows(".whole .id", id)
    _, top, _, height = page.box(".whole svg")
    assert 0 <= top and top + height < 844
    # Things to tap are large enough (WCAG 2.5.8).
    tools = page.each("button, select, input, nav a", "[x.offsetWidth, x.offsetHeight]")
    assert all(min(size) >= 24 for size in tools if max(size))


def test_a_screen_reader_finds_its_way(page, folder):
    for hash in ("", address("block/2 ü", 17)):
        page.open(folder, hash)
        nodes = [
            (node["role"]["value"], node.get("name", {}).get("value", ""), node)
            for node in page.call("Accessibility.getFullAXTree")["nodes"]
            if not node["ignored"]
        ]
        roles = [role for role, *_ in nodes]
        for landmark in ("banner", "navigation", "main"):
            assert roles.count(landmark) == 1
        acting = "link|button|searchbox|combobox|listbox|image|img|region"
        assert all(n.strip() for role, n, _ in nodes if re.fullmatch(acting, role))
        levels = [
            known["value"]["value"]
            for role, _, node in nodes
            for known in node.get("properties", ())
            if (role, known["name"]) == ("heading", "level")
        ]
        assert levels[:2] == [1, 2]
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert ("navigation", "Layers") in {x[:2] for x in nodes}
        assert roles.count("status") == 1
    page.open(folder, address("conv1"))
    names = page.each("#units a", "x.getAttribute('aria-label')")
    assert names[3] == "Unit 3, dead"


def test_all_units_of_a_large_network_load_as_one_looks_at_them(page, tmp_path):
    layers = {
        f"conv{i}": layer_of(i, units, 9, 8, 1000, 400) for i, units in enumerate(VGG19)
    }
    cell = np.full((9, 8, 8, 3), 90, np.uint8)
    patches = {name: np.stack([cell] * len(x.mean)) for name, x in layers.items()}
    classes = [f"class {i}" for i in range(1000)]
    atlas.write(tmp_path, table_of(layers, classes, 400), patches, {})

    def loaded():
        urls = [
            event["params"]["request"]["url"]
            for event in page.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {url.split("/")[-1] for url in urls if re.search(r"\d\.(js|webp)$", url)}

    page.open(tmp_path)
    page.looks({inside(page.box("#units canvas"), 3, 0)[0]: (90, 90, 90)})
    names = loaded()
    assert "0.js" in names and len(names) <= 1 + 4
    page.events.clear()
    page.open(tmp_path, "#conv15")
    page.looks({inside(page.box("#units canvas"), 3, 0)[0]: (90, 90, 90)})
    assert page.js("performance.now()") < 5000
    names = loaded()
    assert len(numbers(page)) == 512
    assert {"15.js", "15-0.webp"} <= set(names) and len(names) <= 1 + 5
    page.js("scrollTo(0, document.body.scrollHeight)")
    page.looks({inside(page.box("#units canvas", 511), 3, 8)[0]: (90, 90, 90)})
    names = loaded()
    assert "15-31.webp" in names and "15-16.webp" not in names
    # What is out of sight holds no memory.
    page.until("document.querySelector('#units canvas').width", 0)
    widths = page.each("#units canvas", "x.width")
    assert 0 < sum(width not in (0, 300) for width in widths) < 100
    # And a search through all 5,504.
    search(page, "class 77")
    page.until(COUNTED)
    assert page.js("performance.now()") < 15000
