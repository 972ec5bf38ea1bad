"""Benchmarks: the table, its JSON and its documents; that both sides do the same work."""

import importlib
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from launcher import ROOT

from benchmarks import features, growth, report, scan, style, train
from benchmarks.report import Row
from benchmarks.turns import Turn
from nstvis import models
from nstvis.synthesis import canvas, transforms
from nstvis.units.atlas import Atlas

UNITS = {
    "style": "steps/s",
    "train": "images/s",
    "scan": "images/s",
    "attribution": "pictures/s",
    "features": "pictures x steps/s",
    "convolutions": "steps/s",
}
DOCUMENT = (ROOT / "docs/benchmarks.md").read_text()


def turns(*speeds, peak=100.0):
    return [Turn(speed, peak) for speed in speeds]


def fake_measure(case, tasks, count):
    """Every task is as fast as its number says, and takes 100 MB more."""
    return [turns(1, n, 7, peak=100.0 * n) for n in range(1, len(tasks) + 1)]


@pytest.fixture
def notes(monkeypatch):
    """What benchmarks do beside their turns takes no time."""
    monkeypatch.setattr(style, "first_picture", lambda: 1.0)
    monkeypatch.setattr(train, "waiting", lambda: "")
    monkeypatch.setattr(scan, "state", lambda model: "")
    monkeypatch.setattr(scan, "photographs", lambda folder: None)


# The table.


def test_a_record_has_medians_bests_and_our_speed_over_theirs():
    row = Row("a", "b", turns(1, 3, 8, peak=50.0), turns(1.5, 5, 2, peak=200.0))
    assert row.record() == {
        "name": "a",
        "against": "b",
        "ours": 3,
        "theirs": 2,
        "ratio": 1.5,
        "ours_best": 8,
        "theirs_best": 5,
        "ours_mb": 50,
        "theirs_mb": 200,
        "mb_ratio": 0.25,
    }


def test_the_peak_is_that_of_the_last_turn():
    growing = [Turn(1, 10.0), Turn(1, 30.0)]
    assert Row("a", "b", growing, growing).record()["ours_mb"] == 30


def test_a_line_is_a_row_of_its_table():
    row = Row("a", "b", turns(1234.5, peak=50.4), turns(0.51234, peak=200.0))
    line = report.line(row.record())
    cells = "a | b | 1234 / 1234 | 0.512 / 0.512 | 2409.53 | 50 | 200 | 0.25"
    assert line == f"| {cells} |"
    first, second = report.header("images/s").splitlines()
    assert first.count("|") == second.count("|") == line.count("|")
    assert "images/s" in first


def test_what_has_no_process_has_no_memory():
    row = Row("a", "b", turns(2), turns(1, peak=None))
    assert row.record()["mb_ratio"] is row.record()["theirs_mb"] is None
    assert report.line(row.record()).endswith("| 2.00 | 100 |  |  |")


# The benchmarks.


@pytest.mark.parametrize("name", UNITS)
def test_every_row_of_a_benchmark_is_told_from_the_others(name, notes):
    module = importlib.import_module(f"benchmarks.{name}")
    quick, full = (
        [row for row in module.rows(fake_measure, quick) if isinstance(row, Row)]
        for quick in (True, False)
    )
    names = [(row.work, row.against) for row in full]
    assert len(set(names)) == len(names)
    assert {(row.work, row.against) for row in quick} <= set(names)


def test_the_bound_and_the_forward_pass_of_a_scan(notes):
    rows = {
        (row.work, row.against): row.record()
        for row in scan.rows(fake_measure, quick=True)
        if isinstance(row, Row)
    }
    step = rows[
        "scan step of alexnet_small, 64 px", "our forward pass (scan : forward)"
    ]
    assert (step["ours"], step["theirs"], step["theirs_mb"]) == (2, 1, None)
    bound = rows["scan of JPEGs by alexnet_small, 64 px", "the bound"]
    assert bound["ours"] == 3
    assert bound["theirs"] == pytest.approx(1 / (1 / 1 + 1 / 2))


def test_the_sum_of_all_layers_takes_as_long_as_they_do():
    attribution = importlib.import_module("benchmarks.attribution")
    counts = np.array([*attribution.UNITS.values()]) * 9
    speeds = np.array([10.0, 20, 30, 40, 50])
    (turn,) = attribution.total([[Turn(speed, speed)] for speed in speeds])
    assert turn.speed == pytest.approx(counts.sum() / (counts / speeds).sum())
    assert turn.peak == 50


@pytest.mark.slow
def test_a_benchmark_from_the_command_line(tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "tiny.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from benchmarks import report, style\n"
        "style.QUICK = [('vgg_small', 48, 48, 1)]\n"
        "report.main('steps/s', style.work, style.rows)\n"
    )
    command = [sys.executable, script, "--quick", f"--json={tmp_path / 'numbers'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "numbers").read_text())
    about, empty, *table = done.stdout.splitlines()
    assert record["command"] in about and record["machine"]["cpu"] in about
    assert not empty
    assert table == [*report.header("steps/s").splitlines(), report.line(record)]
    assert record["name"] == "vgg_small 48x48"
    assert record["ratio"] == record["ours"] / record["theirs"]
    assert min(record["ours_mb"], record["theirs_mb"]) > 50
    assert {"python", "jax", "torch"} == record["machine"]["versions"].keys()


@pytest.mark.slow
def test_growth_is_measured_over_images_with_ids_of_their_own(
    tmp_path, monkeypatch, capsys
):
    model, dataset = small.write(tmp_path)
    smaller = small.flags({"model": model, "size": 32, "batch": 8, "workers": 0})
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command: start([*command, *smaller])
    )
    monkeypatch.setattr(growth, "COUNTS", (200,))  # the data set has 96
    growth.main(str(tmp_path), dataset)
    header, _, row = capsys.readouterr().out.splitlines()
    assert row.count("|") == header.count("|")
    images, scanned, _, cpu, peak, *_ = map(float, row.strip("|").split("|"))
    assert images == 200
    assert scanned > 0 and cpu > 1
    assert peak > 100  # the test's own, if that is more: the process began as a fork
    source = growth.load(dataset, "200", "")
    top = Atlas(tmp_path / "200").unit("conv2", 0).top
    assert source[196].id == "train/0000196"
    assert source[196].encoded == source[100].encoded
    assert len({source.index(patch.image) for patch in top}) == 9


# Both sides do the same work.


@pytest.mark.parametrize("model", ["alexnet", "alexnet_small", "vgg19", "vgg_small"])
def test_networks_of_pytorch_have_our_layers(model):
    torch = pytest.importorskip("torch")
    networks = importlib.import_module("benchmarks.torch_networks")
    build = importlib.import_module(f"nstvis.models.{model}").build
    module = nnx.eval_shape(lambda: build(pooling="max", last=None, rngs=nnx.Rngs(0)))
    forward, params = models.functional(module)
    ours = jax.eval_shape(
        forward, params, jax.ShapeDtypeStruct((1, 70, 70, 3), "float32")
    )
    with torch.device("meta"):
        dense = model in networks.DENSE
        make = networks.classifier if dense else networks.convolutions
        network, x = make(model), torch.zeros(1, 3, 70, 70)
    found = {}
    for name, layer in network.named_children():
        x = found[name] = layer(x)
    for name in networks.LAYERS[model]:
        n, channels, height, width = found[name].shape
        assert ours[name].shape == (n, height, width, channels), name
    if dense:
        assert ours[module.logits].shape == x.shape
    theirs = [(*p.shape,) for p in network.parameters() if p.ndim > 1]
    kernels = [x.shape for x in jax.tree.leaves(params) if x.ndim > (1 if dense else 3)]
    assert sorted(shape[::-1] for shape in kernels) == sorted(theirs)


@pytest.fixture(scope="module")
def coefficients():
    """Fourier coefficients of pictures, as our canvas has them."""
    shape = canvas.fourier(features.SIZE, features.SIZE).shape
    return np.random.default_rng(0).normal(size=(3, *shape[1:])).astype(np.float32)


def drawn(coefficients):
    torch = pytest.importorskip("torch")
    numbers = torch.from_numpy(np.moveaxis(coefficients, 3, 1).copy())
    return features.draw(numbers)


def test_pytorch_draws_our_pictures(coefficients):
    theirs = drawn(coefficients).permute(0, 2, 3, 1)
    ours = canvas.fourier(features.SIZE, features.SIZE).draw(coefficients)
    assert np.ptp(ours) > 100
    np.testing.assert_allclose(theirs, ours, atol=0.01)


def test_pytorch_moves_pictures_as_we_do(coefficients):
    torch = pytest.importorskip("torch")
    pictures = drawn(coefficients)
    reach = features.JITTER
    shift = torch.tensor([[reach, -reach], [-reach, -reach], [3, reach]])
    factor = torch.tensor([1 - features.SCALE, 1 + features.SCALE, 1 - features.SCALE])
    degrees = torch.tensor([features.ROTATE, -features.ROTATE, -features.ROTATE])
    theirs = features.moved(pictures, shift, factor, degrees).permute(0, 2, 3, 1)
    channels_last = jnp.asarray(pictures.permute(0, 2, 3, 1).numpy())
    for i, picture in enumerate(theirs):
        amounts = shift[i].numpy(), factor[i].numpy(), degrees[i].numpy()
        ours = transforms.moved(channels_last[i : i + 1], *map(jnp.asarray, amounts))
        np.testing.assert_allclose(picture, ours[0], atol=0.05)


# The documents.


def tables():
    """The rows of each benchmark's table in the document, as lists of cells."""
    sections = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]
    found = {}
    for section in sections[:-1]:  # the last one has no peer
        name = re.findall(r"`python benchmarks/(\w+)\.py", section)[0]
        first, second, *lines = re.findall(r"^\|.*\|$", section, re.MULTILINE)
        assert f"{first}\n{second}" == report.header(UNITS[name])
        found[name] = [[cell.strip() for cell in x.split("|")[1:-1]] for x in lines]
    return found


@pytest.mark.parametrize("name", UNITS)
def test_the_document_has_rows_of_every_benchmark(name, notes):
    module = importlib.import_module(f"benchmarks.{name}")
    rows = [row for row in module.rows(fake_measure, False) if isinstance(row, Row)]
    known = {(row.work, row.against) for row in rows}
    told = [tuple(cells[:2]) for cells in tables()[name]]
    assert told and set(told) <= known


def test_the_readme_says_from_which_ratio_to_which():
    readme = " ".join((ROOT / "README.md").read_text().split())
    for name, said in {
        "style": "style transfer runs at {} times its speed",
        "scan": "a scan at {}",
    }.items():
        ratios = {}  # to PyTorch where it is fastest
        for work, against, *_, ratio in (cells[:5] for cells in tables()[name]):
            if against.startswith("PyTorch"):
                ratios[work] = min(ratios.get(work, math.inf), float(ratio))
        least, most = min(ratios.values()), max(ratios.values())
        assert said.format(f"{least:.2f} to {most:.2f}") in readme


def test_numbers_for_a_missing_folder_are_refused_first(tmp_path, monkeypatch, capsys):
    path = tmp_path / "none/a.json"
    monkeypatch.setattr(sys, "argv", ["style.py", f"--json={path}"])
    with pytest.raises(SystemExit):
        report.main("steps/s", style.work, style.rows)
    assert (
        f"{path}: no such folder; make {path.parent} first" in capsys.readouterr().err
    )
