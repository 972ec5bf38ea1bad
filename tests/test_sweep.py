"""Sweeps: each cell is the transfer of its settings, painted once, on any device."""

import csv
import dataclasses
import itertools
import logging
import re
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_runs import finish, start, start_hosts

from experiments import style as style_experiment
from experiments import sweep as experiment
from nstvis import images, plots
from nstvis.runs import config as configs
from nstvis.runs.progress import Interrupted, Progress
from nstvis.synthesis import cells, style, sweep

NETWORK = """
from nstvis.layers import Chain, conv, pool

def build(*, pooling, last, rngs, classes=3):
    layers = {
        "conv1": conv(3, 8, 3, rngs=rngs),
        "pool1": pool(pooling, 2, 2),
        "conv2": conv(8, 6, 3, rngs=rngs),
        "logits": lambda x: x.mean((1, 2))[:, :3],
    }
    return Chain(layers, last)
"""
STEPS = 20
NAMES = [
    "1-1__alpha=0.5__style_layers=conv1.png",
    "1-2__alpha=0.5__style_layers=conv1,conv2.png",
    "2-1__alpha=20__style_layers=conv1.png",
    "2-2__alpha=20__style_layers=conv1,conv2.png",
]


def picture(height, width, seed, channels=3):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), np.uint8)
    return Image.fromarray(small).resize((width, height))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network of two convolutions, contents, one of them transparent, and styles."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "two.py").write_text(NETWORK)
    for name in ("contents", "styles"):
        (folder / name).mkdir()
    picture(32, 40, 0).save(folder / "contents/lake.png")
    picture(40, 32, 1, channels=4).save(folder / "contents/tree, at dusk.png")
    picture(36, 48, 2).save(folder / "styles/oil.jpg")
    picture(36, 48, 3).save(folder / "styles/pastel.png")
    return folder


def config(folder, kind: Any = experiment.Config, **changes) -> Any:
    known = {
        "model": str(folder / "two.py"),
        "weights": "random",
        "content": str(folder / "contents/lake.png"),
        "style": str(folder / "styles/oil.jpg"),
        "content_layers": "conv2",
        "style_layers": "conv1",
        "size": 40,
        "steps": STEPS,
        "scales": 1,
        "gamma": 0.0,
    }
    if kind is experiment.Config:
        known["rows"] = "alpha:0.5,20"
        known["columns"] = "style_layers:conv1;conv1,conv2"
    return kind(**(known | changes))


def arguments(folder, **changes):
    chosen = vars(config(folder, **changes)).items()
    return ["--experiment=sweep", *(f"--config.{name}={x}" for name, x in chosen)]


def table(workdir):
    with (workdir / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "cells").iterdir()}


@pytest.fixture(scope="module")
def painted(folder, tmp_path_factory):
    """A sweep on one device, and the labels of its cells in the order of painting."""
    workdir, order = tmp_path_factory.mktemp("sweep"), []
    paint = cells.Cell.paint

    def noted(self, *arguments):
        order.append(self.label)
        return paint(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells.Cell, "paint", noted)
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        results = experiment.run(config(folder), workdir)
    assert results == ["sheet.png", "cells.csv"]
    return workdir, order


@pytest.mark.slow
def test_a_cell_is_the_transfer_of_its_settings(folder, painted):
    workdir, _ = painted
    assert sorted(contents(workdir)) == NAMES
    rows = table(workdir)
    assert [row["file"] for row in rows] == [f"cells/{name}" for name in NAMES]
    for row in rows:
        alpha, layers = float(row["alpha"]), row["style_layers"]
        settings = config(folder, alpha=alpha, style_layers=layers)
        pictures = (images.read(path) for path in settings.paths())
        with jax.default_device(jax.devices()[0]):  # or all would share the picture
            transfer = style.StyleTransfer(next(pictures), list(pictures), settings)
            *_, last = transfer.run()
        file = workdir / row["file"]
        np.testing.assert_array_equal(images.read(file), transfer.picture(last.state))
        assert float(row["J"]) == float(last.state.best_loss)
        terms = alpha * float(row["J_content"]) + settings.beta * float(row["J_style"])
        assert float(row["J"]) == pytest.approx(terms, rel=1e-5)
        note = images.read_settings(file)
        assert note["alpha"] == alpha and note["style_layers"] == layers
        assert note["J"] == float(row["J"]) and note["step"] == STEPS


@pytest.mark.slow
def test_cells_of_the_same_programs_follow_one_another(painted):
    layers = [label.partition("style_layers=")[2] for label in painted[1]]
    assert layers == ["conv1", "conv1", "conv1,conv2", "conv1,conv2"]


@pytest.mark.slow
def test_stopped_on_two_devices_it_repeats_no_finished_cell(
    folder, painted, tmp_path, monkeypatch, caplog
):
    used, stopped, paint, show = set(), [], cells.Cell.paint, Progress.show

    def noted(self, *arguments):
        used.update(jnp.zeros(3).devices())
        return paint(self, *arguments)

    def stop(self, step, text):
        if step == 3 * STEPS + 2 and not stopped:  # of 4 cells, 2 are at work
            stopped.append(signal.raise_signal(signal.SIGTERM))
        return show(self, step, text)

    monkeypatch.setattr(cells.Cell, "paint", noted)
    monkeypatch.setattr(Progress, "show", stop)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    with pytest.raises(Interrupted):
        experiment.run(config(folder), tmp_path)
    assert used == {*jax.devices()[:2]}
    finished = {path: path.stat() for path in (tmp_path / "cells").iterdir()}
    assert 2 <= len(finished) < 4
    assert not (tmp_path / "sheet.png").exists()
    # One of other settings is painted again.
    wrong, *others = finished
    wrong.write_bytes(others[0].read_bytes())
    with caplog.at_level(logging.INFO):
        experiment.run(config(folder), tmp_path)
    done = STEPS * len(others)
    assert f"resuming after step {done} of {4 * STEPS}" in caplog.text
    # What is painted on any device, whenever, is the same.
    assert contents(tmp_path) == contents(painted[0])
    for name in ("sheet.png", "cells.csv"):
        assert (tmp_path / name).read_bytes() == (painted[0] / name).read_bytes()
    for path, before in finished.items():
        assert (path.stat().st_mtime_ns == before.st_mtime_ns) == (path != wrong)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_killed_it_repeats_no_finished_cell(folder, tmp_path):
    command = arguments(folder, steps=400, columns="style_layers:conv1")
    workdir = tmp_path / "run"
    process = start(*command, f"--workdir={workdir}")
    while not list(workdir.glob("cells/*.png")):
        assert process.poll() is None, finish(process)
        time.sleep(0.002)
    process.kill()
    finish(process, -signal.SIGKILL)
    first = [(path, path.stat()) for path in workdir.glob("cells/*.png")]
    assert len(first) == 1
    out = finish(start(*command, f"--workdir={workdir}"))
    assert "resuming after step 400 of 800" in out
    for name in ("sheet.png", "cells.csv"):
        assert str(workdir / name) in out and (workdir / name).exists()
    for path, before in first:
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(contents(workdir)) == NAMES[::2]
    assert not list(workdir.rglob("*.partial"))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_two_hosts_share_the_cells(folder, painted, tmp_path):
    workdir = tmp_path / "run"
    command = arguments(folder, columns="style_layers:conv1")
    hosts = start_hosts(*command, f"--workdir={workdir}", count=2, devices=1)
    lead, other = (finish(host) for host in hosts)
    assert f"step {STEPS} of {STEPS}: " in lead  # of one of the two cells
    assert str(workdir) not in other
    expected = contents(painted[0])
    assert contents(workdir) == {name: expected[name] for name in NAMES[::2]}
    assert table(workdir) == table(painted[0])[::2]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_a_gap(folder, tmp_path, monkeypatch, caplog):
    run = style.StyleTransfer.run

    def diverging(self, *arguments):
        if self.settings.alpha == 20:
            raise FloatingPointError("the loss is not finite")
        return run(self, *arguments)

    monkeypatch.setattr(style.StyleTransfer, "run", diverging)
    experiment.run(config(folder, columns=""), tmp_path)
    assert "left out: alpha=20: the loss is not finite" in caplog.text
    first, second = table(tmp_path)
    assert float(first["J"]) > 0
    assert second["J"] == "" and second["file"] == "cells/2-1__alpha=20.png"


@pytest.mark.slow
def test_folders_paint_every_content_in_every_style(
    folder, tmp_path, monkeypatch, caplog
):
    contents, styles = folder / "contents", folder / "styles"
    (contents / "broken.jpg").write_text("no picture")
    picture(4, 90, 5).save(contents / "thin.png")
    (contents / "notes.txt").write_text("no picture either")
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    sheets, grid = [], plots.grid
    monkeypatch.setattr(plots, "grid", lambda *x: sheets.append(x) or grid(*x))
    both = {"content": str(contents), "style": str(styles)}
    asked = config(folder, style_experiment.Config, **both)
    configs.check(asked)
    assert style_experiment.run(asked, tmp_path) == ["sheet.png", "cells.csv"]
    assert re.search(r"left out: .*broken\.jpg: not readable", caplog.text)
    assert re.search(r"left out: .*thin\.png: size=40 makes a picture", caplog.text)
    assert f"{contents}: 2 of 4 pictures left out" in caplog.text
    names = [file_name(row["content"]) for row in table(tmp_path)]
    assert names == ["lake.png"] * 2 + ["tree, at dusk.png"] * 2
    names = [file_name(row["style"]) for row in table(tmp_path)]
    assert names == ["oil.jpg", "pastel.png"] * 2
    tree = images.read(tmp_path / "cells/2-1__tree,_at_dusk__oil.png")
    assert tree.size == (32, 40) and tree.mode == "RGBA"
    # The originals are at the left and at the top, and all pictures of one size.
    ((pictures, rows, columns, size),) = sheets
    assert rows == ["style", "lake", "tree, at dusk"]
    assert columns == ["content", "oil", "pastel"]
    assert pictures[0][0] == "" and size == (40, 40)
    assert {x.size for line in pictures for x in line if x} == {size}
    pastel = images.resize(images.read(styles / "pastel.png"), 40)
    np.testing.assert_array_equal(np.asarray(pictures[0][2])[5:35], pastel)


def file_name(path):
    return path.rpartition("/")[2]


def test_folders_without_pictures_and_names_of_one_result_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    asked = config(folder, style_experiment.Config, style=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="none of its 0 pictures can be used"):
        style_experiment.run(asked, tmp_path)
    with pytest.raises(ValueError, match="those of a folder are in cells/"):
        configs.check(dataclasses.replace(asked, output="H.png"))


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("beta:0.5,1.5,5", "beta", [0.5, 1.5, 5.0]),
        ("steps: 1, 2", "steps", [1, 2]),
        ("clip:true;false", "clip", [True, False]),
        ("style_layers:a;a,b:2", "style_layers", ["a", "a,b:2"]),
        ("content:C:/x.jpg", "content", ["C:/x.jpg"]),
    ],
)
def test_values_have_the_type_of_their_field(text, field, values):
    assert sweep.parse_axis("rows", text) == sweep.of_field(field, values)


def test_settings_may_change_apart():
    text = "default; beta=5;style_layers=a:2,b ;start=content start_noise=0.50"
    labels, values = axis = sweep.parse_axis("columns", text)
    assert labels == [part.strip() for part in text.split(";")]  # as they are typed
    assert values == [
        {},
        {"beta": 5.0},
        {"style_layers": "a:2,b"},
        {"start": "content", "start_noise": 0.5},
    ]
    assert axis.fields == ["beta", "style_layers", "start", "start_noise"]
    assert sweep.parse_axis("columns", " ") == ([""], [{}])


def sheet(tmp_path, painting, rows, columns):
    """The sheet of cells that are painted already, each in a colour of its own."""
    axes = sweep.parse_axis("rows", rows), sweep.parse_axis("columns", columns)
    grid = sweep._grid(painting, *axes, tmp_path)
    for number, cell in enumerate(cell for line in grid for cell in line):
        note = dataclasses.asdict(cell.painting) | dict.fromkeys(cells.LOSSES, 1.0)
        plain = Image.new("RGB", (40, 30), (20 * number, 100, 0))
        images.write(cell.path, plain, note)
    return grid, np.asarray(sweep._sheet(grid, *axes))


def test_settings_that_change_apart_are_in_lines_of_about_one_length(folder, tmp_path):
    columns = "default;" + ";".join(f"beta={x}" for x in range(1, 6)) + ";gamma=1"
    grid, page = sheet(tmp_path, config(folder), "", columns)
    assert len(grid) == 1 and [cell.label for cell in grid[0]] == columns.split(";")
    places = [np.argwhere((page == (20 * i, 100, 0)).all(-1)) for i in range(7)]
    tops, lefts = np.array([place.min(0) for place in places]).T
    assert {len(place) for place in places} == {40 * 30}
    assert (tops[:4] == tops[0]).all() and (tops[4:] >= tops[0] + 40).all()
    assert list(lefts[:4]) == sorted(lefts[:4]) and list(lefts[4:]) == list(lefts[:3])
    sweep._write_table(
        tmp_path / "cells.csv",
        grid,
        sweep.parse_axis("rows", ""),
        sweep.parse_axis("columns", columns),
    )
    rows = table(tmp_path)
    assert [float(row["beta"]) for row in rows] == [3, 1, 2, 3, 4, 5, 3]
    assert [float(row["gamma"]) for row in rows] == [0] * 6 + [1]


def test_labels_break_after_commas_and_slashes_and_are_as_typed():
    assert sweep._wrapped("style_layers=conv1_1,conv2_1", 24) == (
        "style_layers=conv1_1,\nconv2_1"
    )
    assert (
        sweep._wrapped("start=docs/style/red.jpg", 16) == "start=docs/\nstyle/red.jpg"
    )
    assert sweep._wrapped("tree, at dusk", 24) == "tree, at dusk"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": "bta:1,2"}, "no config field 'bta': did you mean 'beta'?"),
        ({"rows": "columns:1,2"}, "no config field 'columns'"),
        ({"rows": "beta"}, "rows=beta should be FIELD:VALUES, such as beta:0.5,1.5,5"),
        ({"rows": "beta:1,x"}, "beta=x should be a number"),
        ({"rows": "steps:1.5"}, "steps=1.5 should be a whole number"),
        ({"rows": "beta:1,,2"}, "rows=beta:1,,2: a value is missing beside a ','"),
        ({"columns": "beta:1,1.0"}, "columns=beta:1,1.0: 1 is given twice"),
        ({"columns": "beta=1;beta=1.0"}, "beta=1;beta=1.0: beta=1 is given twice"),
        ({"columns": "beta=1;;gamma=1"}, "a value is missing beside a ';'"),
        ({"columns": "beta=1;bta=2"}, "no config field 'bta': did you mean 'beta'?"),
        ({"columns": "beta=1;5"}, "columns: '5' should be FIELD=VALUE or default"),
        ({"columns": "default;beta=x"}, "beta=x should be a number"),
        ({"columns": "default;beta=-1"}, "beta should be at least 0"),
        ({"rows": "beta:1,-1"}, "beta should be at least 0"),
        ({"rows": "beta:1,nan"}, "beta=nan should be a finite number"),
        ({"rows": "optimizer:gd,adm"}, "did you mean 'adam'?"),
        ({"rows": "beta:1", "columns": "beta:2"}, "rows and columns both change beta"),
        (
            {"rows": "beta:1", "columns": "default;beta=2"},
            "rows and columns both change beta",
        ),
        ({"rows": "start_noise:0.5"}, "start_noise and start_colors are for start="),
    ],
)
def test_mistakes_get_one_line_before_any_work(folder, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        configs.check(config(folder, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": "content_layers:conv1,cnv2"}, "did you mean 'conv2'?"),
        (
            {"columns": "content:{folder}/contents/lake.png,nowhere.png"},
            "nowhere.png: no such file",
        ),
        ({"columns": "style:demo;{folder}"}, "is a folder; give a picture file"),
        ({"columns": "size:40,32"}, "size=32 makes a picture whose short side"),
        ({"columns": "style_blend:1;1,2"}, "style_blend='1,2' should be 1 numbers"),
    ],
)
def test_what_files_do_not_allow_is_said_before_any_cell(
    folder, tmp_path, changes, message
):
    changes = {name: x.format(folder=folder) for name, x in changes.items()}
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        experiment.run(config(folder, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_defaults_are_figure_3_of_gatys_et_al(folder):
    rows, columns = experiment.Config().axes()
    layers = [value["style_layers"] for value in rows.values]
    assert layers[0] == "conv1_1"
    assert layers[-1] == style_experiment.Config().style_layers
    assert all(b.startswith(a) for a, b in itertools.pairwise(layers))
    alphas = [value["alpha"] for value in columns.values]
    assert alphas == sorted(alphas)
