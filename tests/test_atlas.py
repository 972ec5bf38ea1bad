"""The atlas shows what it was given: in Python, and in a browser, opened from disk."""

import base64
import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from nstvis.units import atlas
from nstvis.units.table import Layer, RankedPatches, Table

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking"
    " --disable-component-update --disable-sync --no-first-run --hide-scrollbars"
    " --remote-debugging-pipe"
)
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
PAPER = {"light": (252, 251, 249), "dark": (19, 19, 18)}
GREY = (127, 127, 127)


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


def winners(scores, images, boxes):
    shape = np.shape(scores)
    return RankedPatches(
        score=np.asarray(scores, np.float32),
        image=np.asarray(images, np.int32),
        position=np.zeros((*shape, 2), np.int32),
        box=np.broadcast_to(np.asarray(boxes, np.int32), (*shape, 4)),
    )


def layer_of(number, units, k, height, classes, images):
    """Random winners; scores go down from unit to unit, and are never equal."""
    rng = np.random.default_rng(number)
    top = -np.sort(-rng.uniform(1, 3, (units, k)), axis=1) - np.arange(units)[:, None]
    least = top.min() - 1 + np.sort(rng.uniform(0, 1, (units, k)), axis=1)
    corners = rng.integers(-height // 2, SIZE - height // 2, (units, k, 2))
    silent = rng.uniform(0, 0.9, units).astype(np.float32)
    return Layer(
        top=winners(
            top,
            rng.integers(0, images, (units, k)),
            np.concatenate([corners, corners + height], -1),
        ),
        least=winners(
            least, rng.integers(0, images, (units, k)), [0, 0, height, height]
        ),
        by_class=winners(
            np.zeros((units, classes, 0)), np.zeros((units, classes, 0)), 0
        ),
        mean=rng.uniform(-1, 1, units).astype(np.float32),
        std=rng.uniform(0.1, 1, units).astype(np.float32),
        sparsity=silent,
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


@pytest.fixture(scope="module")
def given():
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


@pytest.fixture(scope="module")
def folder(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas with a space # and %")
    atlas.write(folder, *given)
    return folder


# In Python.


def test_python_reads_what_was_written(folder, given):
    table, patches, pictures = given
    read = atlas.Atlas(folder)
    assert read.layers == {"conv1": 5, "block/2 ü": 40, "fc": 6}
    assert read.fields == {name: list(field) for name, (*_, field) in LAYERS.items()}
    assert (read.classes, read.edges, read.about) == (CLASSES, EDGES, table.about)
    for name, layer in table.layers.items():
        for number in range(read.layers[name]):
            unit = read.unit(name, number)
            assert (unit.layer, unit.number) == (name, number)
            for part in ("top", "least"):
                mine = getattr(layer, part)
                known = getattr(unit, part)
                np.testing.assert_array_equal(
                    np.float32([x.score for x in known]), mine.score[number]
                )
                assert [x.box for x in known] == [
                    *map(tuple, mine.box[number].tolist())
                ]
                for winner, image in zip(known, mine.image[number].tolist()):
                    assert winner.image == table.examples[image][0]
                    assert winner.label == CLASSES[table.examples[image][1]]
                    if image == 59:
                        assert winner.picture is None
                    else:
                        assert winner.picture.read_bytes() == pictures[image]
            favourite = None if unit.dead else CLASSES[layer.favourite()[number]]
            assert unit.favourite == favourite
            for field in ("mean", "std", "sparsity"):
                assert np.float32(getattr(unit, field)) == getattr(layer, field)[number]
            assert np.float32(unit.selectivity) == layer.selectivity()[number]
            assert unit.histogram == layer.histogram[number].tolist()
            assert unit.dead == ((name, number) == ("conv1", 3))
            strongest = sorted(zip(layer.class_mean[number], CLASSES), reverse=True)
            if not unit.dead:
                assert unit.strongest == [
                    (label, pytest.approx(mean)) for mean, label in strongest[:8]
                ]
            for patch, drawn in zip(unit.patches(), patches[name][number], strict=True):
                difference = np.abs(np.asarray(patch) - drawn.astype(int))
                assert difference.max() <= (0 if drawn.shape[0] <= 32 else 12)


def test_a_second_atlas_replaces_the_first_and_nothing_else(folder, given, tmp_path):
    table, patches, pictures = given
    (tmp_path / "units.npz").write_text("mine")
    atlas.write(tmp_path, *given)
    few = table_of({"conv1": table.layers["conv1"]}, CLASSES, 60)
    atlas.write(tmp_path, few, patches, {3: pictures[3]})
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    ours = {"index.html", "atlas/table.js", "atlas/0.js", "atlas/0-0.webp"}
    ours |= {"atlas/panels.js"}
    assert left == ours | {"atlas/pictures/3.png", "units.npz"}
    assert atlas.Atlas(tmp_path).layers == {"conv1": 5}


def test_pictures_keep_their_format(given, tmp_path):
    table, patches, _ = given
    image = int(table.layers["conv1"].top.image[0, 0])
    for format in ("JPEG", "WEBP", "PNG"):
        atlas.write(
            tmp_path, table, patches, {image: encoded(np.zeros((8, 8, 3)), format)}
        )
        picture = atlas.Atlas(tmp_path).unit("conv1", 0).top[0].picture
        assert picture.suffix == {"JPEG": ".jpg"}.get(format, f".{format.lower()}")
        with Image.open(picture) as opened:
            assert opened.format == format
    with pytest.raises(ValueError, match="picture of image 7 is neither JPEG"):
        atlas.write(tmp_path, table, patches, {7: b"<svg>"})


@contextlib.contextmanager
def small_files(limit):
    """No file can be larger: writing fails as on a full disk, and names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_leaves_the_earlier_atlas(given, tmp_path):
    table, patches, pictures = given
    atlas.write(tmp_path, *given)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for limit, name in ((10, "0.png"), (1000, r"0\.js"), (10000, r"1\.js")):
        with small_files(limit), pytest.raises(OSError, match=name) as caught:
            atlas.write(tmp_path, table, patches, pictures)
        assert caught.value.filename
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert after == before


def test_an_interruption_leaves_no_page_of_something_else(given, tmp_path, monkeypatch):
    atlas.write(tmp_path, *given)

    replace = os.replace

    def interrupted(source, target):
        if target == tmp_path / "atlas":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atlas.write(tmp_path, *given)
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        atlas.Atlas(tmp_path)
    monkeypatch.undo()
    atlas.write(tmp_path, *given)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "atlas"}


def test_names_of_files_need_not_be_text(given, tmp_path):
    table, patches, _ = given
    odd = {i: (f"\udcff/\u2028/{i}", -1) for i in range(60)}
    atlas.write(tmp_path, dataclasses.replace(table, examples=odd), patches, {})
    winner = atlas.Atlas(tmp_path).unit("conv1", 0).top[0]
    image = table.layers["conv1"].top.image[0, 0]
    assert (winner.image, winner.label) == (f"\udcff/\u2028/{image}", None)


@pytest.fixture(scope="module")
def panels(given, tmp_path_factory):
    """An atlas with a panel for all units, and one for some that was added to it."""
    folder = tmp_path_factory.mktemp("panels")
    layers = {"conv1": panel_of(range(5), 9, 7), "fc": panel_of(range(6), 9, 64)}
    atlas.write(folder, *given, {"deconvnet": layers})
    atlas.add(folder, "features", {"block/2 ü": panel_of([1, 33], 4, 16)})
    atlas.add(folder, "features", {"fc": panel_of([1, 3], 1, 24)})
    atlas.add(folder, "features", {"fc": panel_of([5], 1, 24)})
    atlas.add(folder, "features", {"block/2 ü": panel_of([2, 34], 1, 20)})
    return folder


def test_panels_are_read_and_those_of_another_size_replaced(panels):
    read = atlas.Atlas(panels)
    wanted = [("conv1", 4, "deconvnet", 9, 7), ("fc", 0, "deconvnet", 9, 64)]
    wanted += [("block/2 ü", unit, "features", 1, 20) for unit in (2, 34)]
    for layer, number, title, n, side in wanted:
        found = read.unit(layer, number).panels()
        assert list(found) == [title]
        assert [picture.size for picture in found[title]] == [(side, side)] * n
        for slot, picture in enumerate(found[title]):
            difference = np.array(picture) - panel_colour(number, slot)
            assert np.abs(difference).max() <= (0 if side <= 32 else 12)
    assert read.unit("block/2 ü", 33).panels() == {}
    for unit in (1, 3, 5):  # of two calls
        (picture,) = read.unit("fc", unit).panels()["features"]
        assert (np.array(picture) == panel_colour(unit, 0)).all()
    assert set(read.unit("fc", 4).panels()) == {"deconvnet"}
    assert len(read.unit("conv1", 4).patches()) == 9


@pytest.mark.parametrize("side", [16, 20])
def test_after_half_a_change_no_panel_is_read_wrongly(
    given, tmp_path, monkeypatch, side
):
    layer, put = "block/2 ü", atlas._put
    atlas.write(tmp_path, *given)
    atlas.add(tmp_path, "features", {layer: panel_of([1, 33], 1, 16)})

    def fail(path, content):
        if path.name == "features-1-2.webp":  # unit 33's, the second one
            raise OSError("the disk is full")
        put(path, content)

    monkeypatch.setattr(atlas, "_put", fail)
    with pytest.raises(OSError, match="full"):
        atlas.add(tmp_path, "features", {layer: panel_of([1, 33], 1, side)})
    for unit in (1, 33):
        found = atlas.Atlas(tmp_path).unit(layer, unit).panels()
        assert list(found) == (["features"] if side == 16 else [])
        for (picture,) in found.values():
            assert (np.array(picture) == panel_colour(unit, 0)).all()


def test_panels_that_do_not_fit_are_refused(folder, panels, tmp_path):
    good = panel_of([0], 1, 7)
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        atlas.add(tmp_path, "features", {"conv1": good})
    for layer, pictures, message in [
        ("conv7", good, "no layer 'conv7'"),
        ("conv1", panel_of([5], 1, 7), "no unit 5 in conv1"),
        ("conv1", panel_of([0], 1, 7) | panel_of([1], 1, 8), "of one size"),
        ("conv1", {0: good[0].astype(float)}, "should be uint8"),
        ("conv1", {0: good[0][0]}, "should be uint8"),
    ]:
        with pytest.raises(ValueError, match=message):
            atlas.add(panels, "new", {layer: pictures})
    with pytest.raises(ValueError, match="letters and digits"):
        atlas.add(panels, "../x", {"conv1": good})
    titles = [set(atlas.Atlas(panels).unit("conv1", i).panels()) for i in range(5)]
    assert titles == [{"deconvnet"}] * 5


def test_wrong_patches_are_refused(given, tmp_path):
    table, patches, _ = given
    for wrong in (
        patches["conv1"][:, :8],
        patches["conv1"][:4],
        patches["conv1"][..., :6, :],
        patches["conv1"][0],
        patches["conv1"].astype(np.float32),
        patches["conv1"][:, :, :0, :0],
    ):
        message = r"conv1 should be uint8 \[5, 9, side, side, 3\]"
        with pytest.raises(ValueError, match=message):
            atlas.write(tmp_path, table, patches | {"conv1": wrong}, {})
    k = 1100
    layer = layer_of(0, 1, k, 7, 0, 60)
    cells = {"conv1": np.zeros((1, k, 7, 7, 3), np.uint8)}
    with pytest.raises(ValueError, match="1100 pictures of 7 pixels are too many"):
        atlas.write(tmp_path, table_of({"conv1": layer}, [], 60), cells, {})
    assert not any(tmp_path.iterdir())


def test_wrong_names_and_damage_get_one_clear_line(folder, tmp_path):
    read = atlas.Atlas(folder)
    with pytest.raises(ValueError, match="no layer 'conv2': did you mean 'conv1'"):
        read.unit("conv2", 0)
    for number in (5, -1):
        with pytest.raises(ValueError, match=f"no unit {number} in conv1: .* 0 to 4"):
            read.unit("conv1", number)
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        atlas.Atlas(tmp_path)
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged/atlas/0.js").write_text("atlas.layers[0].content = {")
    with pytest.raises(ValueError, match=r"0\.js is damaged"):
        atlas.Atlas(tmp_path / "damaged").unit("conv1", 0)


def test_what_is_not_finite_is_null(given, tmp_path):
    _, patches, _ = given
    layer = layer_of(0, 5, 9, 7, len(CLASSES), 60)
    layer.class_mean[0, 1:] = np.nan
    layer.class_mean[0, 0] = 2
    layer.top.score[1, 8] = -np.inf
    atlas.write(tmp_path, table_of({"conv1": layer}, CLASSES, 60), patches, {})
    for path in tmp_path.glob("atlas/*.js"):
        text = path.read_text().partition(" = ")[2].rstrip(";\n")
        json.loads(text, parse_constant=pytest.fail)
    read = atlas.Atlas(tmp_path)
    assert read.unit("conv1", 0).strongest == [("tabby", 2)]
    assert read.unit("conv1", 1).top[8].score is None


# In a browser.


class Page:
    """A tab of headless Chromium, over the pipe of the DevTools protocol."""

    def __init__(self, profile):
        self.socket, theirs = socket.socketpair()
        fd = theirs.fileno()
        self.process = subprocess.Popen(
            # Chromium reads commands from 3 and writes answers to 4.
            ["bash", "-c", f'exec "$0" "$@" 3<&{fd} 4>&{fd}', CHROMIUM, *FLAGS.split()]
            + [f"--user-data-dir={profile}", "about:blank"],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self.socket.settimeout(60)
        self.session, self.received, self.calls, self.events = None, b"", 0, []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(x["targetId"] for x in targets if x["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        self.process.wait(10)
        self.socket.close()

    def call(self, method, **parameters):
        """What the browser answers."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.socket.sendall(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.received:
                more = self.socket.recv(1 << 20)
                if not more:
                    raise ConnectionError("Chromium is gone")
                self.received += more
            answer, _, self.received = self.received.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("id") == self.calls:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def js(self, expression):
        """The value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def until(self, expression, wanted=True):
        """Waits until an expression has a value, and fails if it never does."""
        end = time.monotonic() + 20
        while (value := self.js(expression)) != wanted:
            assert time.monotonic() < end, f"{expression} is {value!r}, not {wanted!r}"
            time.sleep(0.02)

    def shows(self, selector, wanted):
        """Waits until an element has a text."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.until(f"{element}?.textContent", wanted)

    def each(self, selector, expression="x.textContent"):
        """What an expression of x is for each of the elements."""
        found = f"document.querySelectorAll({json.dumps(selector)})"
        return self.js(f"[...{found}].map((x) => {expression})")

    def go(self, hash):
        self.js(f"location.hash = {json.dumps(hash)}")

    def window(self, width=1200, height=900, scale=1, mobile=False, theme="light"):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)
        preference = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[preference])

    def open(self, folder, hash="", fresh=True):
        """Loads an atlas from disk; `fresh` forgets the settings of an earlier one."""
        for again in (True, False) if fresh else (False,):
            self.call("Page.navigate", url="about:blank")
            self.until("location.href", "about:blank")
            url = f"{(folder / 'index.html').as_uri()}{hash}"
            self.call("Page.navigate", url=url)
            self.until("location.protocol + document.readyState", "file:complete")
            if again:
                self.js("localStorage.clear()")
                self.events.clear()
        self.until("document.getElementById('status').textContent !== ''")

    def pixels(self):
        """What is seen, uint8 [height, width, 3]."""
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))

    def looks(self, points, tolerance=10):
        """Waits until points (x, y) have colours."""
        end = time.monotonic() + 20
        while True:
            seen = self.pixels()
            wrong = {
                point: (seen[int(point[1]), int(point[0])].tolist(), wanted)
                for point, wanted in points.items()
                if np.abs(seen[int(point[1]), int(point[0])] - np.array(wanted)).max()
                > tolerance
            }
            if not wrong:
                return
            assert time.monotonic() < end, wrong
            time.sleep(0.05)

    def box(self, selector, index=0):
        """Left, top, width and height in the window."""
        return self.js(
            f"(({{ x, y, width, height }}) => [x, y, width, height])(document"
            f".querySelectorAll({json.dumps(selector)})[{index}].getBoundingClientRect())"
        )

    def middle(self, selector, index=0):
        x, y, width, height = self.box(selector, index)
        element = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        at = f"document.elementFromPoint({x + width / 2}, {y + height / 2})"
        if not self.js(f"{element}.contains({at})"):
            self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.box(selector, index)
        return x + width / 2, y + height / 2

    def move(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector, index=0):
        x, y = self.middle(selector, index)
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            mouse = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", **mouse)

    def tap(self, selector, index=0):
        x, y = self.middle(selector, index)
        touch = "Input.dispatchTouchEvent"
        self.call(touch, type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call(touch, type="touchEnd", touchPoints=[])

    def press(self, key, shift=False):
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27, "Tab": 9}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=8 * shift,
                **({"text": text} if kind == "keyDown" and text else {}),
            )

    def problems(self):
        """Whatever the browser complained about, and all it wanted from elsewhere."""
        found = []
        for event in self.events:
            kind, told = event["method"], event["params"]
            if kind in ("Log.entryAdded", "Runtime.exceptionThrown"):
                found.append(told)
            if kind == "Runtime.consoleAPICalled":
                found.append(told["args"])
            if kind == "Network.requestWillBeSent":
                found.append(told["request"]["url"])
        ours = ("file:", "data:", "about:")
        return [x for x in found if not (isinstance(x, str) and x.startswith(ours))]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture
def page(chromium):
    """A window of 1200 x 900; nothing may be complained about, or come from elsewhere."""
    chromium.window()
    yield chromium
    assert chromium.problems() == []


LEAST = "section > .strip"
IN_LAYER = "document.querySelector('#unit').hidden"
HOVERING = "!document.querySelector('#hover').hidden"
COUNTED = "[...document.querySelectorAll('nav small')].every((x) => x.textContent)"


def status(page):
    return page.each("#status")[0]


def numbers(page):
    """The units in the order in which they are shown."""
    return [int(number) for number in page.each("#units b")]


def address(layer, unit=None):
    name = {"block/2 ü": "block%2F2%20%C3%BC"}.get(layer, layer)
    return f"#{name}" if unit is None else f"#{name}/{unit}"


def shown(x):
    """A number as the page writes it."""
    return f"{float(f'{x:.3g}'):g}".replace("-", "−")


def inside(box, columns, slot, gap=2):
    """Points of a patch: its middle, and two pixels inside each of its corners."""
    left, top, width, _ = box
    step = (width + gap) / columns
    left, top = left + slot % columns * step, top + slot // columns * step
    near, far = 2, step - gap - 3
    return [
        (left + x, top + y)
        for x, y in [
            (near, near),
            (near, far),
            (far, near),
            (far, far),
            (far / 2, far / 2),
        ]
    ]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("pixelated", [False, True])
def test_every_patch_is_in_its_place_whole_and_without_seams(
    page, folder, pixelated, scale
):
    page.window(height=1200, scale=scale)
    page.open(folder)
    if pixelated:
        page.click("#pixelated")
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
    true = "Receptive field: true size {} × {} px, every {} px; drawn at equal size."
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
        facts = dict(zip(page.each("dt"), page.each("dd"), strict=True))
        assert facts == {
            "highest": shown(layer.top.score[number, 0]),
            "mean": shown(layer.mean[number]),
            "standard deviation": shown(layer.std[number]),
            "silent for": f"{shown(100 * layer.sparsity[number])} % of 600 images",
            "selectivity": shown(layer.selectivity()[number]),
        }
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
            assert told == [f"Image {ids[slot]}; the unit sees {rows}"]
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
        "selectivity": (layer.selectivity(), shown),
        "maximum": (layer.top.score[:, 0], shown),
        "dead, sparsity": (layer.sparsity, lambda x: f"{shown(100 * x)} %"),
    }
    for name, (values, told) in keys.items():
        change = f"(x.value = '{name}', x.dispatchEvent(new Event('change')))"
        page.each("#sort", change)
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


def choose(page, menu, name):
    change = f"(x.value = '{name}', x.dispatchEvent(new Event('change')))"
    page.each(menu, change)


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


def search(page, wanted):
    page.js("document.querySelector('#query').value = ''")
    page.click("#query")
    page.call("Input.insertText", text=wanted)


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
    assert status(page) == f"{len(numbers(page))} of 5 units with a class like “TIGER”"
    page.click("nav a", 1)
    page.shows("#name", "block/2 ü")
    few = expected("block/2 ü", 1)
    assert 0 < len(few) < 40
    assert numbers(page) == few
    assert status(page) == f"{len(few)} of 40 units with a class like “TIGER”"
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
    assert status(page) == "0 of 40 units with a class like “no such thing”"
    search(page, "")
    page.js("document.querySelector('#query').dispatchEvent(new Event('input'))")
    assert len(numbers(page)) == 40
    assert page.each("nav small") == ["", "", ""]
    assert page.each("#classes option", "x.value") == CLASSES


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


@pytest.mark.parametrize(
    "hash, told, layer",
    [
        ("#conv9", "There is no “conv9” here. This is conv1.", "conv1"),
        ("#conv1/5", "There is no unit 5 in conv1: there are 0 to 4.", "conv1"),
        (
            "#fc/99999999999999999999",
            "There is no unit 9+ in fc: there are 0 to 5.",
            "fc",
        ),
        ("#fc/-1", "There is no “fc/-1” here. This is conv1.", "conv1"),
        ("#%E0%A4%A", "There is no “%E0%A4%A” here. This is conv1.", "conv1"),
        ("#__proto__/0", "There is no “__proto__/0” here. This is conv1.", "conv1"),
        ("#<img src=x>", "There is no “<img src=x>” here. This is conv1.", "conv1"),
    ],
)
def test_a_wrong_address_is_told_and_something_shown(page, folder, hash, told, layer):
    page.open(folder, hash)
    assert re.fullmatch(told.replace(".", r"\."), status(page))
    assert page.each("#name") == [layer]
    assert len(numbers(page)) == LAYERS[layer][0]
    page.click("nav a", 2)
    page.shows("#status", "6 units")


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


def luminance(colour):
    x = np.array(colour) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


TEXTS = """[...document.querySelectorAll("body *")].filter((element) =>
  element.checkVisibility() && !element.closest("svg, option, :disabled, script")
  && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).map((element) => {
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  return [element.tagName + element.className, getComputedStyle(element).color,
    getComputedStyle(behind).backgroundColor];
})"""


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
    assert page.js("document.querySelector('#find').hidden")
    page.press("/")
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
    assert page.each("h3") == ["Activations", "Least activating images"]
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


VGG19 = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8


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
