"""The atlas's page explains units: names, connections, samples, maps; and finds them."""

import functools
import http.server
import re
import shutil
import threading

import numpy as np
import pytest
from atlas_page import address, choose, inside, search
from atlases import (
    CLASSES,
    colour,
    layer_of,
    panel_of,
    patches_of,
    picture_colour,
    pictures_of,
    table_of,
)

from nstvis.units import atlas

pytest_plugins = ["atlas_fixtures"]
pytestmark = pytest.mark.slow

HACK = CLASSES[2]
SIZES = {"conv1": (5, 7), "block/2 ü": (40, 24), "logits": (8, 16)}
FINDINGS = {
    "name": {
        "logits": {
            "concept": np.array(["grating", "tabby", HACK, *"defgh"]),
            "auroc": np.array([0.875, 0.9, 0.75, 0.5, 0.5, 0.5, 0.5, np.nan]),
            "q": np.array([0.02, 1e-9, 0.03, 0.5, 0.5, 0.5, 0.5, np.nan]),
            "tested": np.arange(8) < 3,
            "constant": np.array(["animal"] * 8),
            "constant_auroc": np.full(8, 0.625),
        }
    },
    "inputs": {
        "logits": {
            "layer": np.array([["conv1", "block/2 ü", "block/2 ü", "pool9", ""]] * 8),
            "unit": np.array([[4, 33, 7, 2, -1]] * 8),
            "contribution": np.array([[2.5, 1.25, -3.5, -1, np.nan]] * 8),
            "ablation": np.array([[0.5, 0.25, -0.125, np.nan, np.nan]] * 8),
            "strongest": np.full(8, 0.625),
            "random": np.full(8, 0.0625),
        }
    },
    "outputs": {
        "conv1": {
            "layer": np.array([["logits"] * 8] * 5),
            "unit": np.tile(np.arange(8), (5, 1)),
            "contribution": np.full((5, 8), 2.5),
        }
    },
    "neighbours": {
        "logits": {
            "layer": np.array([["logits", "conv1"]] * 8),
            "unit": np.array([[3, 2]] * 8),
            "similarity": np.array([[0.75, 0.5]] * 8),
        }
    },
    "samples": {
        "logits": {
            "quantile": np.array([[0.0, 0.5]] * 8),
            "score": np.array([[-1.5, 0.25]] * 8),
            "image": np.array([[3, 999]] * 8),
            "box": np.array([[[0, 0, 32, 32]] * 2] * 8),
        }
    },
    "scores": {
        "logits": {
            "pairs": np.full(8, 40),
            "deconvnet": np.full(8, 0.75),
            "features": np.full(8, np.nan),
        }
    },
    "mine": {"logits": {"odd_one": np.full((8, 2), 1.5), "b": np.full(8, HACK)}},
    "maps": {"conv1": {"box": np.tile([0, 0, 64, 64], (5, 1))}},
}


def maps_of(units):
    """Maps of 4 x 4, all 0 but for 1 at the bottom left."""
    maps = np.zeros((9, 4, 4, 3), np.uint8)
    maps[:, 3, 0] = 255
    return dict.fromkeys(range(units), maps)


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    layers = {
        name: layer_of(i, units, 9, side, len(CLASSES), 60)
        for i, (name, (units, side)) in enumerate(SIZES.items())
    }
    table = table_of(layers, CLASSES, 60)
    atlas.write(folder, table, patches_of(SIZES, 9), pictures_of(59))
    atlas.add(folder, "deconvnet", {"conv1": panel_of(range(5), 9, 7)})
    atlas.add(folder, "kernels", {"logits": panel_of(range(8), 5, 5)})
    atlas.add(folder, "samples", {"logits": panel_of(range(8), 2, 16)})
    atlas.add(folder, "maps", {"conv1": maps_of(5)})
    for title, findings in FINDINGS.items():
        atlas.add_findings(folder, title, findings)
    return folder, table


def opened(page, folder, layer, unit):
    page.open(folder, address(layer, unit))
    page.shows("#title", f"{layer} / {unit}")


def requested(page):
    return {
        event["params"]["request"]["url"].split("/")[-1]
        for event in page.events
        if event["method"] == "Network.requestWillBeSent"
    }


def test_a_name_is_a_guess_with_its_score(page, explained):
    folder, _ = explained
    constant = "; one name for all units: animal 0.625 "
    kept = "on images kept apart, q"
    for unit, told in [
        (0, f"gratinga guessAUROC 0.875 {kept} = 0.02{constant}"),
        (1, f"tabbya guessAUROC 0.9 {kept} < 0.001{constant}"),
        (2, f"{HACK}a guessAUROC 0.75 {kept} = 0.03{constant}"),
        (3, f"no namenone is significantAUROC 0.5 {kept} = 0.5{constant}"),
    ]:
        opened(page, folder, "logits", unit)
        assert page.each(".guess") == [told]
    assert page.js("document.documentElement.dataset.hacked") is None
    opened(page, folder, "conv1", 0)
    assert page.each(".guess") == []


def test_logits_have_their_classes_names(page, explained):
    folder, table = explained
    page.open(folder, "#logits")
    assert page.each("#units .caption bdi") == CLASSES
    page.click("#units a", 1)
    page.shows("#title", "logits / 1")
    favourite = CLASSES[table.layers["logits"].favourite()[1]]
    told = f"logit of {CLASSES[1]}; favourite class: {favourite}"
    assert page.each(".title p")[0] == told
    # Of another layer with as many units nobody knows.
    page.open(folder, "#conv1/1")
    assert not page.each(".title p")[0].startswith("logit")


def test_connections_are_linked_and_drawn(page, explained):
    folder, _ = explained
    page.window(height=4000)
    opened(page, folder, "logits", 2)
    assert page.each("h4") == ["excitatory", "inhibitory"]
    assert page.each(".plate .linked", "x.innerText.split(/\\s*\\n\\s*/)")[:4] == [
        ["conv1:4", "+2.5", "−50 %"],
        ["block/2 ü:33", "+1.25", "−25 %"],
        ["block/2 ü:7", "−3.5", "+12.5 %"],
        ["pool9:2", "−1", "?"],
    ]
    several = (
        "all excitatory ones of these −62.5 %, without as many random inputs −6.25 %."
    )
    assert any(several in told for told in page.each("section p"))
    links = page.each("a.linked", "x.getAttribute('href')")[:3]
    assert links == ["#conv1/4", *(address("block/2 ü", i) for i in (33, 7))]
    # The patches of the other unit, and the kernel of this one.
    box = page.box(".linked canvas", 0)
    points = {p: colour(0, 4, slot) for slot in (0, 4, 8) for p in inside(box, 3, slot)}
    for canvas, slot in [(1, 0), (3, 1), (5, 2), (6, 3)]:
        points[page.middle(".linked canvas", canvas)] = (250 - 25 * slot, 230, 200)
    page.looks(points)
    page.click("a.linked", 1)
    page.shows("#title", "block/2 ü / 33")


def test_what_is_secondary_is_folded_and_stays_open_once_opened(page, explained):
    folder, _ = explained
    page.window(height=2400)
    opened(page, folder, "logits", 2)
    assert page.each("details", "x.open") == [False] * 4
    titles = ["Similar units", "The whole range", "How well pictures explain it"]
    titles += ["mine"]
    assert page.each("summary h3") == titles
    for place in (0, 1):
        page.click("summary", place)
    page.press("ArrowRight")
    page.shows("#title", "logits / 3")
    assert page.each("details", "x.open") == [True, True, False, False]
    assert page.each("details a", "x.getAttribute('href')") == ["#logits/3", "#conv1/2"]
    assert page.each("details button > span") == ["0 %: −1.5", "50 %: 0.25"]
    page.looks({page.middle("details button canvas", 1): (225, 225, 200)})
    page.click("details button", 0)
    page.shows(".whole .id", "train/0003/<b>3</b>")
    page.click("details button", 1)
    page.shows(".whole .id", "image 999")
    facts = page.each("details dl > *")
    assert facts == ["deconvnet", "75 %", "odd one", "1.5, 1.5", "b", HACK]
    assert "in so many of 40 pairs." in page.each("details p")[1]
    # More than six are folded, too.
    opened(page, folder, "conv1", 0)
    assert page.each("summary")[-1] == "2 more"


def test_findings_are_loaded_with_the_first_unit_of_their_layer(page, explained):
    folder, _ = explained
    page.open(folder, "#logits")
    assert "2.js" in requested(page)
    found = {name for name in requested(page) if re.search(r"[a-z]-\d\.js", name)}
    assert found == set()
    opened(page, folder, "logits", 0)
    found = {name for name in requested(page) if re.search(r"[a-z]-\d\.js", name)}
    assert found == {f"{t}-2.js" for t in FINDINGS if t not in ("outputs", "maps")}


def test_an_atlas_without_findings_shows_none(page, folder):
    opened(page, folder, "block/2 ü", 17)
    assert page.each(".guess, details, .linked, .key, figcaption button") == []


def test_cells_of_attributions_choose_their_patches(page, explained):
    folder, table = explained
    top = table.layers["conv1"].top
    opened(page, folder, "conv1", 2)
    page.click(".panel button", 4)
    page.shows(".whole .id", table.examples[int(top.image[2, 4])][0])
    assert page.each(".chosen", "x.dataset.slot") == ["4", "4"]
    assert page.each(".keys")[0].startswith("0outside the image or the field")
    greys = page.each(".keys i", "getComputedStyle(x).backgroundColor")
    assert greys == ["rgb(127, 127, 127)", "rgb(63, 63, 63)"]
    page.go("#conv1")
    page.shows("#name", "conv1")
    choose(page, "#shown", "deconvnet")
    assert "outside the image" in page.each("#legend")[0]


def test_where_a_layer_is_linear_one_attribution_is_shown_and_the_filter(
    page, explained, tmp_path
):
    shutil.copytree(explained[0], tmp_path, dirs_exist_ok=True)
    atlas.add(tmp_path, "kernels", {"conv1": panel_of(range(5), 1, 7)})
    top = explained[1].layers["conv1"].top
    within = ((top.box >= 0) & (top.box <= 64)).all(-1)[2].argmax()
    opened(page, tmp_path, "conv1", 2)
    assert page.each(".panel h3") == ["deconvnet", "filter"]
    slots = page.each(".panel button", "x.dataset.slot")
    assert slots == [str(within)]
    page.looks({page.middle(".panel canvas"): (250 - 25 * within, 230, 200)})
    page.looks({page.middle(".panel canvas", 1): (250, 230, 200)})
    page.open(tmp_path, "#conv1")
    choose(page, "#shown", "deconvnet")
    columns = page.js("document.querySelector('#units').style.cssText")
    assert columns == "--columns: 1; --rows: 1;"
    page.looks({page.middle("#units canvas", 2): (250 - 25 * within, 230, 200)})


def test_the_activation_map_lies_over_the_whole_image(page, explained):
    folder, table = explained
    opened(page, folder, "conv1", 2)
    picture = np.array(picture_colour(int(table.layers["conv1"].top.image[2, 0])))
    scale, x0, y0 = page.js(
        "((m) => [m.a, m.e, m.f])(document.querySelector('.whole svg').getScreenCTM())"
    )

    def at(x, y):
        return x0 + scale * x, y0 + scale * y

    heat = 0.2 * picture + 0.8 * np.array([255, 64, 0])
    # At its own resolution: whole cells of 16 pixels.
    page.looks({at(1, 49): heat, at(15, 62): heat, at(18, 50): picture}, 16)
    page.looks({at(8, 46): picture, at(60, 60): picture}, 16)
    page.click("figcaption button")
    page.looks({at(1, 50): picture * 0.6}, 16)


def test_the_histogram_stays_where_it_is(page, explained):
    folder, _ = explained
    place = "Object.values(document.querySelector('.histogram').getBoundingClientRect().toJSON()).join()"
    for width in (390, 1000, 1400):
        page.window(width, 900, mobile=width < 500)
        page.open(folder, "#conv1")
        page.js(
            "window.places = new Set();"
            "new MutationObserver(() => document.querySelector('.histogram') &&"
            f" places.add({place})).observe(document.body,"
            " {subtree: true, childList: true, attributes: true})"
        )
        page.go("#conv1/2")
        page.until("document.querySelector('.strongest canvas')?.width > 0")
        page.looks({page.middle(".strongest canvas"): colour(0, 2, 0)})
        page.js("scrollTo(0, 0)")
        page.js("places.clear()")
        for slot in range(9):
            page.js(f"document.querySelectorAll('.strip button')[{slot}].click()")
        assert len(page.js("[...places]")) == 1


def test_nothing_from_outside_is_allowed(page, explained):
    folder, _ = explained
    page.open(folder)
    page.js(
        "window.refused = [];"
        "addEventListener('securitypolicyviolation',"
        " (event) => refused.push(event.effectiveDirective))"
    )
    for element, source in [
        ("img", "https://example.org/x.png"),
        ("script", "https://example.org/x.js"),
        ("iframe", "https://example.org/"),
    ]:
        page.js(
            f"document.body.append(Object.assign(document.createElement('{element}'),"
            f" {{src: '{source}'}}))"
        )
    page.js("fetch('https://example.org/').catch(() => 0)")
    page.js(
        "document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: 'document.title = 1'}))"
    )
    wanted = ["img-src", "script-src-elem", "frame-src", "connect-src"]
    page.until("[...refused].sort().join()", ",".join(sorted([*wanted, wanted[1]])))
    assert page.js("document.title") != "1"
    page.events.clear()


def results(page):
    return page.each("#results li", "x.querySelector('b').textContent")


def test_finds_by_number_name_class_and_file(page, explained):
    folder, table = explained
    page.open(folder)
    page.press("/")
    assert page.js("document.activeElement.id") == "query"
    for wanted, first in [
        ("block/2 ü:17", ["block/2 ü:17"]),
        ("LOGITS 3", ["logits:3"]),
        ("conv1/3", ["conv1:3"]),
        ("4", ["conv1:4", "block/2 ü:4", "logits:4"]),
        ("grat", ["logits:0"]),
        ("tiger", [f"conv1:{i}" for i in of_class(table, "conv1", 1)[:1]]),
    ]:
        search(page, wanted)
        page.until("!document.querySelector('#results').hidden")
        page.until("document.querySelector('#status').textContent.includes('match')")
        assert results(page)[: len(first)] == first, wanted
    # A file, of which there is one: those units that it is a patch of.
    image = int(table.layers["logits"].top.image[2, 5])
    search(page, table.examples[image][0][:10])
    having = [
        f"{name}:{unit}"
        for name, layer in table.layers.items()
        for unit in np.flatnonzero((layer.top.image == image).any(1))
    ]
    page.until("document.querySelectorAll('#results li').length", len(having))
    assert results(page) == having
    assert {"1.js", "2.js"}.isdisjoint(requested(page))
    search(page, "conv1:77")
    page.shows("#status", "0 of 5 units matching “conv1:77”")
    assert page.js("document.querySelector('#results').hidden")


def of_class(table, name, label):
    return np.flatnonzero(table.layers[name].favourite() == label).tolist()


def test_the_keyboard_leads_through_what_is_found(page, explained):
    folder, _ = explained
    page.open(folder)
    page.press("/")
    search(page, "4")
    page.until("document.querySelectorAll('#results li').length > 2")
    active = "document.querySelector('#query').getAttribute('aria-activedescendant')"
    assert page.js(active) is None
    for key, wanted in [("Down", 0), ("Down", 1), ("Down", 2), ("Up", 1)]:
        page.press(f"Arrow{key}")
        assert page.js(active) == f"result-{wanted}"
        chosen = page.each("#results [aria-selected='true']", "x.id")
        assert chosen == [f"result-{wanted}"]
    page.press("Enter")
    page.shows("#title", "block/2 ü / 4")
    assert page.js("document.querySelector('#results').hidden")
    assert page.js("document.activeElement.id") == "title"
    # Escape closes the list, and only then leaves the search.
    page.press("/")
    page.press("ArrowDown")
    assert not page.js("document.querySelector('#results').hidden")
    page.press("Escape")
    assert page.js("document.querySelector('#results').hidden")
    assert page.js("document.querySelector('#query').value") == "4"
    # An exact unit is chosen at once.
    search(page, "logits:6")
    page.until("document.querySelectorAll('#results li').length", 1)
    page.press("Enter")
    page.shows("#title", "logits / 6")
    # A click, too.
    search(page, "conv1:2")
    page.until("document.querySelectorAll('#results li').length", 1)
    page.click("#results a")
    page.shows("#title", "conv1 / 2")
    assert page.js("document.querySelector('#results').hidden")


def test_it_works_over_http(page, explained):
    folder, _ = explained
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/#logits/0"
        page.call("Page.navigate", url=url)
        page.shows("#title", "logits / 0")
        search(page, "block/2 ü:17")
        page.until("document.querySelectorAll('#results li').length", 1)
        page.press("Enter")
        page.shows("#title", "block/2 ü / 17")
        page.looks({page.middle(".strongest canvas"): colour(1, 17, 0)})
        page.call("Page.navigate", url="about:blank")
        server.shutdown()
    ours = [x for x in page.problems() if not str(x).startswith(url.split("#")[0])]
    assert ours == []
    page.events.clear()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
