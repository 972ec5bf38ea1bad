"""The page of a run: what is written, and what a browser shows while the run lives."""

import contextlib
import dataclasses
import functools
import http.server
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from atlas_page import PAPER
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nstvis import images
from nstvis.runs import page as pages
from nstvis.runs import workdir as workdirs
from nstvis.runs.metrics import Metrics
from nstvis.runs.page import Page
from nstvis.runs.progress import Interrupted, Progress

pytest_plugins = ["atlas_fixtures"]

ROOT = pathlib.Path(__file__).parent.parent
TEMPLATE = ROOT / "nstvis" / "runs" / "page.html"
STEPS = 40
COLOURS = [(180, 40, 40), (40, 150, 40), (40, 40, 190), (200, 160, 30), (90, 90, 90)]
MARKUP = "<img src=x onerror=hacked=1></script><script>hacked=1</script>"


@dataclasses.dataclass
class Config:
    size: int = 384
    style: str = "demo"
    beta: float = 1.5


def colour(step):
    """The colour of the picture after a step."""
    return COLOURS[step // 10]


def flat(color, size=(80, 60)):
    return Image.new("RGB", size, color)


def loss(step):
    return 30 * 0.8**step + 0.02


@contextlib.contextmanager
def running(folder, done=0, **changes):
    """A run of `STEPS` steps; yields what takes the next ones, to be shown at once."""
    (folder / "frames").mkdir(exist_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if done:
        (folder / "checkpoints" / str(done)).mkdir(parents=True)
    about = {
        "title": "photo in the style of painting",
        "pictures": [("photo", flat("navy")), ("painting", flat("gold"))],
        "config": Config(),
        "curves": ["J", "J_style"],
        "results": ["G.png", "index.html", "loss #1.png"],
    }
    page = Page(folder, **(about | changes))
    with page, Metrics(folder, done) as metrics, Progress([1] * STEPS, done) as loop:

        def reach(step):
            first = len(metrics.read()) + 1
            for number in range(first, step + 1):
                row = {"step": number, "J": loss(number), "J_style": loss(number) / 2}
                metrics.write(row)
                loop.show(number, "")
            metrics.flush()
            if step % 10 == 0:
                images.write(folder / f"frames/{step:06}.png", flat(colour(step)))
            page.show(step, flat(colour(step)), metrics, loop)

        yield reach


def read(folder):
    """What the page is told, without what needs no page to run."""
    script = (folder / "page/data.js").read_text()
    assert script.startswith("var run = {") and script.endswith("};\n")
    return json.loads(script[len("var run = ") : -len(";\n")])


def test_the_page_stands_before_the_first_step(tmp_path, caplog):
    caplog.set_level("INFO", "nstvis")
    large = flat("navy", (2000, 1000))
    with running(tmp_path, pictures=[("a", large), ("b", flat("gold"))]):
        assert (tmp_path / "index.html").read_text() == TEMPLATE.read_text()
        told = read(tmp_path)
        assert told["state"] == "running" and "step" not in told
        assert caplog.messages == [f"watch {(tmp_path / 'index.html').as_uri()}"]
        sizes = {
            caption: images.read(tmp_path / file).size
            for caption, file in told["pictures"]
        }
        assert sizes == {"a": (640, 320), "b": (80, 60)}


def test_nothing_is_left_by_a_run_that_fails_before_it_starts(tmp_path):
    Page(tmp_path, title="", pictures=[], config=Config(), curves=[], results=[])
    assert not list(tmp_path.iterdir())


def test_a_step_is_told_with_frames_and_curves(tmp_path):
    with running(tmp_path) as reach:
        for step in (0, 4):
            reach(step)
        told = read(tmp_path)
        assert (told["step"], told["steps"]) == (4, STEPS)
        frame = [0, "frames/000000.png"]
        assert told["frames"] == [frame, [4, "page/now.jpg?4"]]
        assert told["at"] == [1, 2, 3, 4]
        np.testing.assert_allclose(
            told["curves"]["J"], [loss(step) for step in told["at"]], rtol=1e-3
        )
        reach(10)  # whose frame is the picture as it stands
        assert read(tmp_path)["frames"] == [frame, [10, "frames/000010.png"]]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("count", [1, 399, 400, 401, 5000])
def test_long_curves_are_thinned(count):
    rows = [{"step": step} for step in range(1, count + 1)]
    kept = [row["step"] for row in pages._thinned(rows)]
    assert min(count, 200) <= len(kept) <= 400
    assert kept[-1] == count
    assert len({*np.diff(kept)}) <= 1


def test_a_loss_that_is_not_finite_or_missing_leaves_a_gap(tmp_path):
    with running(tmp_path, curves=["J", "TV"]) as reach:
        reach(1)
        lines = '{"step": 2, "J": null}\n{"step": 3, "J": 0.123456, "TV": 0}\n'
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(lines)
        reach(3)
    told = read(tmp_path)
    assert told["curves"] == {"J": [24.02, None, 0.1235], "TV": [None, None, 0]}


@pytest.mark.parametrize(
    ("error", "state", "line"),
    [
        (None, "finished", None),
        (KeyboardInterrupt(), "interrupted", None),
        (Interrupted(signal.SIGTERM), "interrupted", None),
        (ValueError("\nno such layer\nof all"), "failed", "no such layer"),
        (ZeroDivisionError(), "failed", "ZeroDivisionError()"),
    ],
)
def test_the_end_is_told(error, state, line, tmp_path):
    with contextlib.suppress(type(error) if error else ()), running(tmp_path) as reach:
        reach(0)
        if error:
            raise error
    told = read(tmp_path)
    assert told["state"] == state
    assert told.get("error") == line
    assert ("results" in told) == (state == "finished")


def test_time_goes_on_where_the_run_does(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=100.0, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(pages, "time", clock)

    def start(done, seconds):
        with running(tmp_path, done):
            clock.now += seconds
        return read(tmp_path)["seconds"]

    assert start(0, 30) == 30
    assert start(5, 12) == 42
    assert start(0, 7) == 7  # from the first step again
    (tmp_path / "page/data.js").write_text("var run = {")
    assert start(5, 3) == 3


def test_a_resumed_run_goes_on_with_the_same_page(tmp_path):
    with pytest.raises(KeyboardInterrupt), running(tmp_path) as reach:
        reach(10)
        raise KeyboardInterrupt
    with running(tmp_path, 10) as reach:
        assert read(tmp_path)["state"] == "running"
        reach(20)
        told = read(tmp_path)
    assert [step for step, _ in told["frames"]] == [10, 20]
    assert told["at"] == [*range(1, 21)]


def test_a_write_that_fails_leaves_the_page_as_it_was(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("no space left on device")

    with pytest.raises(ValueError, match="the cause"), running(tmp_path) as reach:
        reach(2)
        before = read(tmp_path)
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="cannot write: no space left"):
            reach(3)
        raise ValueError("the cause")
    assert read(tmp_path) == before
    assert not list(tmp_path.rglob("*.partial"))


def test_showing_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=0.0, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(pages, "time", clock)
    page = Page(tmp_path, title="", pictures=[], config=Config(), curves=[], results=[])
    for cost, wait in [(0.001, 2), (0.1, 5), (9, 30)]:
        with page, Metrics(tmp_path, 0) as metrics, Progress([1]) as loop:

            def read(cost=cost):
                clock.now += cost
                return []

            metrics.read = read
            assert page.due()
            began = clock.now
            page.show(0, flat("navy"), metrics, loop)
            clock.now = began + wait - 0.01
            assert not page.due()
            clock.now = began + wait + 0.01
            assert page.due()


def test_settings_that_differ_come_first(tmp_path):
    with running(tmp_path, config=Config(beta=4.0)):
        pass
    assert read(tmp_path)["settings"] == [
        ["beta", "4.0", "1.5"],
        ["size", "384", "384"],
        ["style", "demo", "demo"],
    ]


def command(folder, *argv):
    """The command that resumes what was started with some words."""
    folder.mkdir(exist_ok=True)
    record = {"experiment": "style", "config": {}, "starts": [{"command": argv}]}
    (folder / "run.json").write_text(json.dumps(record))
    return shlex.split(" ".join(workdirs.command(folder)))


@pytest.mark.parametrize(
    "workdir", [["--workdir=x"], ["--workdir", "x"], ["-workdir=x"]]
)
def test_the_command_is_the_one_that_was_given(workdir, tmp_path):
    given = ["here/launch.py", "--config.style=a b'$(c).jpg", *workdir]
    assert command(tmp_path, *given) == ["python", *given]


def test_the_command_names_the_workdir_and_the_module(tmp_path):
    named = f"--workdir={tmp_path / 'a b'}"
    assert command(tmp_path / "a b", "launch.py") == ["python", "launch.py", named]
    module = command(tmp_path / "a b", "/site/nstvis/__main__.py", "--config.size=9")
    assert module == ["python", "-m", "nstvis", "--config.size=9", named]
    assert workdirs.command(tmp_path) == []  # no launcher


@settings(deadline=None, max_examples=20)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_name_is_told_as_it_is(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    with running(folder, title=name, pictures=[(name, flat("navy"))]):
        pass
    told = read(folder)
    assert told["title"] == told["pictures"][0][0] == name
    assert (folder / "page/data.js").read_text().isascii()


# In a browser.


@pytest.fixture
def served(page, tmp_path):
    """The address of a folder that `python -m http.server` serves."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    yield address
    page.call("Page.navigate", url="about:blank")
    page.until("location.href", "about:blank")
    server.shutdown()
    server.server_close()
    others = [x for x in page.problems() if not str(x).startswith(address)]
    page.events.clear()
    assert others == []


def asked(page):
    """How often the page has loaded its data."""
    page.js("0")  # whose answer comes after the events
    requests = [x for x in page.events if x["method"] == "Network.requestWillBeSent"]
    return sum("data.js" in x["params"]["request"]["url"] for x in requests)


def shows(page, step):
    """Waits until the picture is the one after a step."""
    page.shows("#frame", f"step {step}")
    page.looks({page.middle("#picture"): colour(step)})


@pytest.mark.slow
def test_the_page_follows_a_run_and_stops_with_it(page, tmp_path):
    page.window(height=700)
    with running(tmp_path) as reach:
        reach(0)
        page.open(tmp_path)
        page.js("window.loadedOnce = true")
        shows(page, 0)
        reach(4)
        page.until(
            "document.querySelector('#status').textContent.includes('step 4 of')"
        )
        assert page.each("#status", "x.className") == ["live"]
        assert page.js("document.title") == "10 % · photo in the style of painting"
        reach(10)
        shows(page, 10)
        # The slider stays where it was put, and so does all else.
        page.click("summary")
        page.js("document.getElementById('slider').focus()")
        page.press("Home")
        shows(page, 0)
        page.js("scrollTo(0, 60)")
        reach(24)
        page.until("document.getElementById('slider').max", "2")
        shows(page, 0)
        assert page.js("[scrollY, document.querySelector('details').open]") == [
            60,
            True,
        ]
        page.press("End")
        shows(page, 24)
        reach(30)
        shows(page, 30)
    page.until(
        "/^finished in \\d+ s$/.test(document.getElementById('status').textContent)"
    )
    links = [["G.png", "G.png"], ["loss #1.png", "loss%20%231.png"]]
    assert page.each("#results a", "[x.textContent, x.getAttribute('href')]") == links
    assert page.js("document.title") == "photo in the style of painting"
    loaded = asked(page)
    time.sleep(2.2)
    page.js("dispatchEvent(new Event('focus'))")
    assert asked(page) == loaded > 3
    assert page.js("loadedOnce")


@pytest.mark.slow
def test_the_page_follows_a_run_on_another_machine(page, served, tmp_path):
    with running(tmp_path) as reach:
        reach(0)
        page.call("Page.navigate", url=served)
        page.until("location.href", served)
        shows(page, 0)
        reach(14)
        shows(page, 14)


def fits(page, width, theme):
    page.window(width=width, theme=theme)
    page.looks({(5, 5): PAPER[theme]})
    assert page.js("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_names_do_nothing_and_it_is_light_dark_and_narrow(page, tmp_path):
    with contextlib.suppress(ValueError):
        long = MARKUP + "x" * 200
        pictures, config = [(MARKUP, flat("navy"))] * 3, Config(style=MARKUP)
        with running(tmp_path, title=long, pictures=pictures, config=config) as reach:
            command(tmp_path, "launch.py", f"--config.style={MARKUP}")
            reach(3)
            raise ValueError(MARKUP)
    page.open(tmp_path)
    assert page.each("h1") == [long]
    assert page.each("figcaption") == [MARKUP] * 3
    assert page.each("tr:first-child td > *") == [MARKUP, "default demo"]
    assert page.each("#status") == [f"Stopped at step 3 of {STEPS}: {MARKUP}"]
    assert page.js("typeof hacked") == "undefined"
    page.click("summary")
    for theme in ("dark", "light"):
        for width in (1400, 400):
            fits(page, width, theme)


@pytest.mark.slow
def test_a_run_that_was_killed_has_no_news_until_it_is_resumed(page, tmp_path):
    with running(tmp_path) as reach:
        reach(4)
        killed = read(tmp_path) | {"time": time.time() - 1000, "command": ["resume"]}
    script = f"var run = {json.dumps(killed)};\n"
    (tmp_path / "page/data.js").write_text(script)
    page.open(tmp_path)
    said = page.each("#status")[0]
    assert said.startswith(f"No news for 16 min, at step 4 of {STEPS}. ")
    assert said.endswith(" Run the command below again to resume.")
    assert page.each("#status", "x.className") == [""]
    with running(tmp_path, 4) as reach:
        reach(10)
        page.js("dispatchEvent(new Event('focus'))")
        shows(page, 10)
        assert page.each("#status", "x.className") == ["live"]


@pytest.mark.slow
def test_curves_are_where_their_logarithms_are(page, tmp_path):
    with running(tmp_path) as reach:
        reach(STEPS)
    told = read(tmp_path)
    told["curves"]["J"][19] = None
    (tmp_path / "page/data.js").write_text(f"var run = {json.dumps(told)};\n")
    page.open(tmp_path)
    labels = page.each(
        "#curves text[text-anchor=end][dy]",
        "[+x.textContent, +x.getAttribute('y')]",
    )
    across = page.each(
        "#curves text[text-anchor=middle]", "[+x.textContent, +x.getAttribute('x')]"
    )
    assert [value for value, _ in labels] == [0.1, 1, 10]
    assert [step for step, _ in across] == [0, 10, 20, 30, 40]
    y = np.polyfit(*np.transpose([(np.log(value), y) for value, y in labels]), 1)
    x = np.polyfit(*np.transpose(across), 1)
    lines = page.each("#lines path", "x.getAttribute('d')")
    for name, line in zip(("J", "J_style"), lines, strict=True):
        points = [map(float, point.split()) for point in re.split("[ML]", line)[1:]]
        values = [(s, v) for s, v in zip(told["at"], told["curves"][name]) if v]
        wanted = [
            (np.polyval(x, step), np.polyval(y, np.log(value)))
            for step, value in values
        ]
        np.testing.assert_allclose([[*point] for point in points], wanted, atol=0.2)
        assert line.count("M") == (2 if name == "J" else 1)
    # The values are those at the frame that is shown.
    assert page.each("#legend li") == ["J 0.024", "J_style 0.012"]


def reached(process, folder, step):
    """Waits until a run has shown a step or a later one; returns the last it has."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if (last := read(folder).get("step", -1)) >= step:
                return last
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_style_run_is_watched_until_it_is_stopped(page, tmp_path):
    small = ["--config.size=64", "--config.scales=1", "--config.steps=1000000"]
    small += ["--config.style_loss=gram"]
    process = subprocess.Popen(
        [sys.executable, "launch.py", "--experiment=style", *small]
        + ["--config.frame_every=20", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        reached(process, tmp_path, 0)
        page.open(tmp_path)
        page.js("window.loadedOnce = true")
        for step in (1, reached(process, tmp_path, 1) + 1):
            reached(process, tmp_path, step)
            page.until(f"data.step >= {step}")
            page.until("document.querySelectorAll('#lines path').length", 3)
            newest = (
                "document.getElementById('picture').src.endsWith(data.frames.at(-1)[1])"
            )
            page.until(newest)
        assert page.js("loadedOnce")
        assert page.each("h1") == ["demo_content in the style of demo_style"]
        assert page.each("#pictures img", "x.naturalWidth > 0") == [True, True]
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM, said
    step = read(tmp_path)["step"]
    resume = (
        f"Interrupted at step {step} of 1000000. Run the command below again to resume."
    )
    page.shows("#status", resume)
    assert page.each("#command")[0].split()[-1] == f"--workdir={tmp_path}"
