"""Evolution of units: its numbers are brute force's, whatever interrupts it."""

import csv
import dataclasses
import io
import json
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image
from test_runs import finish, signal_when, start

from experiments import evolution as experiment
from nstvis import crops, data, images, weights
from nstvis.probes import evolution
from nstvis.runs import config as configs
from nstvis.runs import workdir as workdirs
from nstvis.runs.progress import Interrupted
from nstvis.training.loop import TrainingRun, train
from nstvis.training.settings import Settings
from nstvis.units import scan
from nstvis.units.table import RankedPatches

IMAGES, SIZE, EPOCHS = 96, 24, (1, 2, 3)
LAYERS = {"conv1": 4, "conv2": 6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a tiny training, and how it went."""
    folder = tmp_path_factory.mktemp("evolution")
    model, dataset = small.write(folder)
    settings = Settings(
        model=model,
        dataset=dataset,
        validation="",
        size=SIZE,
        growth="",
        epochs=EPOCHS[-1],
        batch=32,
    )
    workdir = folder / "train"
    workdirs.claim(workdir, "train", settings)
    workdirs.finish(workdir, train(settings, workdir))
    return workdir, settings


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("evolution") / "whole"
    results = experiment.run(experiment.Config(run=str(trained[0])), workdir)
    assert results == ["evolution.png", "evolution_numbers.png", "evolution.csv"]
    return workdir


@pytest.fixture(scope="module")
def killed(trained, whole, tmp_path_factory):
    """The workdir of a run through the launcher, killed after an epoch's scan."""
    workdir = tmp_path_factory.mktemp("evolution") / "killed"
    command = "--experiment=evolution", f"--config.run={trained[0]}"
    command = *command, f"--workdir={workdir}"
    # For which the programs are compiled already.
    as_here = {"JAX_NUM_CPU_DEVICES": "4"}
    first = workdir / "epochs/01/scan.npz"
    process = start(*command, environment=as_here)
    signal_when(process, signal.SIGKILL, first.exists)
    finish(process, -signal.SIGKILL)
    assert not (workdir / "evolution.csv").exists()
    written = first.stat().st_mtime_ns
    finish(start(*command, environment=as_here))
    assert first.stat().st_mtime_ns == written  # not scanned again
    return workdir


def rows(workdir):
    text = (workdir / "evolution.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def highest(trained):
    """Epoch to layer to the activations of all images, the highest of each map."""
    run = TrainingRun(trained[1], trained[0])
    source = data.load(trained[1].dataset, "train")
    seen = [np.asarray(crops.centered(source[i], SIZE)) for i in range(IMAGES)]
    found = {}
    for epoch in EPOCHS:
        params = run.average_after(epoch)
        maps = run.forward(params, jnp.asarray(np.stack(seen), jnp.float32))
        found[epoch] = {name: np.asarray(maps[name]).max((1, 2)) for name in LAYERS}
    return found


@pytest.mark.slow
def test_the_numbers_are_brute_force_s(whole, highest):
    stats = pytest.importorskip("scipy.stats")
    table = {(row["layer"], int(row["epoch"])): row for row in rows(whole)}
    assert list(table) == [(layer, epoch) for layer in LAYERS for epoch in EPOCHS]
    for (layer, epoch), row in table.items():
        a = highest[epoch][layer]
        assert int(row["units"]) == LAYERS[layer]
        assert int(row["dead"]) == (a <= 0).all(0).sum()
        for word, other in ("previous", epoch - 1), ("last", EPOCHS[-1]):
            if not other:
                assert row[f"overlap_{word}"] == row[f"rank_correlation_{word}"] == ""
                continue
            shares, correlations = [], []
            for x, y in zip(a.T, highest[other][layer].T, strict=True):
                mine, theirs = (
                    [i for i in np.argsort(-z, kind="stable")[:9] if z[i] > 0]
                    for z in (x, y)
                )
                if mine and theirs:
                    shares.append(len({*mine} & {*theirs}) / len(mine))
                    correlations.append(stats.spearmanr(x, y).statistic)
            for name, values in (
                ("overlap", shares),
                ("rank_correlation", correlations),
            ):
                expected = pytest.approx(np.mean(values), abs=6e-5)
                assert float(row[f"{name}_{word}"]) == expected


@pytest.mark.slow
def test_the_pictures_show_what_they_should(whole):
    page = images.read(whole / "evolution.png").convert("RGB")
    assert page.width > 2 * len(EPOCHS) * 2 * experiment.SIDE
    assert page.height > LAYERS["conv2"] * experiment.SIDE
    assert len(np.unique(np.asarray(page).reshape(-1, 3), axis=0)) > 1000
    assert images.read(whole / "evolution_numbers.png").width == 1560


@pytest.mark.exhaustive
@pytest.mark.slow
def test_killed_between_epochs_it_ends_the_same(killed, whole):
    mine, other = (folder / "evolution.csv" for folder in (killed, whole))
    assert mine.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_finished_scans_are_not_repeated(trained, killed, whole, monkeypatch):
    monkeypatch.delattr(scan, "run")
    experiment.run(experiment.Config(run=str(trained[0])), killed)
    table = (killed / "evolution.csv").read_bytes()
    assert table == (whole / "evolution.csv").read_bytes()


def interrupted(*_, **__):
    raise Interrupted(signal.SIGINT)


@pytest.mark.slow
def test_interrupted_it_leaves_no_results(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "run", interrupted)
    config = experiment.Config(run=str(trained[0]))
    with pytest.raises(Interrupted):
        experiment.run(config, tmp_path)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.slow
def test_the_last_epoch_s_weights_are_those_training_left(trained, tmp_path):
    folder, config = trained
    run = TrainingRun(config, folder)
    assert run.kept_epochs() == list(EPOCHS)
    for epoch in EPOCHS:
        weights.save(tmp_path / "mine", run.average_after(epoch), run.source.classes)
        same = (tmp_path / "mine").read_bytes() == (
            folder / "tiny.safetensors"
        ).read_bytes()
        assert same == (epoch == EPOCHS[-1])


@pytest.mark.slow
def test_a_training_that_goes_on_is_left_alone(trained, tmp_path):
    copy = tmp_path / "train"
    shutil.copytree(trained[0], copy)
    saving = copy / "checkpoints/12.orbax-checkpoint-tmp/state"
    saving.mkdir(parents=True)
    (copy / "checkpoints/4").mkdir()  # steps, and no whole epoch
    before = sorted(copy.rglob("*"))
    run = TrainingRun(trained[1], copy)
    assert run.kept_epochs() == list(EPOCHS)
    run.average_after(2)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.slow
def test_a_unit_that_dies_is_counted_and_compared_with_none(
    trained, highest, tmp_path, monkeypatch
):
    average_after = TrainingRun.average_after

    def with_a_dead_unit(run, epoch):
        params = average_after(run, epoch)
        bias = params["conv1"]["bias"]
        if epoch == 2:
            params["conv1"]["bias"] = bias.at[1].set(-1e6)
        return params

    monkeypatch.setattr(TrainingRun, "average_after", with_a_dead_unit)
    config = experiment.Config(run=str(trained[0]), layers="conv1,fc3")
    experiment.run(config, tmp_path)
    table = {(row["layer"], row["epoch"]): row for row in rows(tmp_path)}
    assert [table["conv1", epoch]["dead"] for epoch in "123"] == ["0", "1", "0"]
    a, b = (
        np.argsort(-highest[epoch]["conv1"], 0, kind="stable")[:9].T for epoch in (2, 3)
    )
    live = [len({*x} & {*y}) / 9 for x, y in zip(a, b, strict=True)]
    del live[1]
    expected = pytest.approx(np.mean(live), abs=6e-5)
    assert float(table["conv1", "3"]["overlap_previous"]) == expected


@pytest.mark.slow
def test_one_epoch_is_drawn_on_pictures_of_one_s_own(trained, tmp_path, caplog):
    copy, pictures = tmp_path / "train", tmp_path / "pictures"
    shutil.copytree(trained[0], copy)
    for step in (3, 6):
        shutil.rmtree(copy / f"checkpoints/{step}")
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        noise = rng.integers(0, 256, (30, 40, 3), "uint8")
        Image.fromarray(noise).save(pictures / f"{i}.png")
    (pictures / "2.png").write_bytes(b"no picture")
    config = experiment.Config(
        run=str(copy), dataset=f"folder:{pictures}", layers="conv1", batch=4
    )
    experiment.run(config, tmp_path / "run")
    assert "only epoch 3 was kept: nothing to compare" in caplog.text
    (row,) = rows(tmp_path / "run")
    assert row["epoch"] == "3"
    assert row["overlap_previous"] == ""
    assert float(row["overlap_last"]) == 1
    assert "left out of the sample: 2.png" in caplog.text
    assert (tmp_path / "run/evolution.png").exists()


@pytest.mark.slow
def test_without_a_run_it_trains_first(trained, tmp_path, monkeypatch):
    learned = []

    def learn(settings, workdir):
        assert settings == trained[1]
        learned.append(workdir)
        shutil.copytree(trained[0], workdir, dirs_exist_ok=True)
        return ["tiny.safetensors"]

    monkeypatch.setattr(experiment, "TRAINED", trained[1])
    monkeypatch.setattr(scan, "run", interrupted)
    monkeypatch.setattr(experiment, "train", interrupted)
    with pytest.raises(Interrupted):
        experiment.run(experiment.Config(), tmp_path)
    record = json.loads((tmp_path / "train/run.json").read_text())
    assert record["config"] == dataclasses.asdict(trained[1])
    assert not (tmp_path / "epochs").exists()
    monkeypatch.setattr(experiment, "train", learn)
    for _ in range(2):
        with pytest.raises(Interrupted):
            experiment.run(experiment.Config(), tmp_path)
    assert learned == [tmp_path / "train"]  # once, as it is finished
    assert "train, epoch 1" in (tmp_path / "epochs/01/scan.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "fields", "message"),
    [
        ("", {"run": "nowhere"}, "nowhere is no workdir of an --experiment=train"),
        ("", {"layers": "conv9"}, "conv9"),
        ("", {"layers": "conv1,conv1"}, "conv1 is given twice"),
        ("", {"units": 0}, "units should be at least 1"),
        ("", {"split": "tranquil"}, "tranquil"),
        ("experiment", {}, "it is a run of style"),
        ("field", {}, "no workdir of an --experiment=train"),
        ("checkpoints", {}, "keeps no checkpoint of a whole epoch yet"),
        ("network", {}, "is of another network"),
    ],
)
def test_mistakes_get_one_line(spoil, fields, message, trained, tmp_path):
    copy = tmp_path / "train"
    shutil.copytree(trained[0], copy)
    record = json.loads((copy / "run.json").read_text())
    if spoil == "experiment":
        record["experiment"] = "style"
    if spoil == "field":
        record["config"]["depth"] = 3
    if spoil == "checkpoints":
        shutil.rmtree(copy / "checkpoints")
    if spoil == "network":
        wider = small.NETWORK.replace("4, 5,", "5, 5,").replace("conv(4,", "conv(5,")
        (tmp_path / "wider.py").write_text(wider)
        record["config"]["model"] = str(tmp_path / "wider.py")
    (copy / "run.json").write_text(json.dumps(record))
    config = experiment.Config(**{"run": str(copy)} | fields)
    with pytest.raises(ValueError, match=message):
        configs.check(config)
        experiment.run(config, tmp_path / "run")


def test_rank_correlation_is_spearman_s():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, (40, 5)).astype(np.float32)  # with ties
    b = np.maximum(a + rng.normal(0, 2, a.shape), 0).astype(np.float32)
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a.T, b.T, strict=True)]
    np.testing.assert_allclose(evolution.rank_correlation(a, b), expected, rtol=1e-6)


def test_rank_correlation_in_closed_form():
    x = np.array([1, 2, 4, 8], np.float32)
    columns = [np.exp(x), -x, [0, 0, 1, 1], [3, 3, 3, 3]]
    found = evolution.rank_correlation(np.stack([x] * 4, 1), np.stack(columns, 1))
    # Ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: 4 / sqrt(5 * 4).
    np.testing.assert_allclose(found, [1, -1, 4 / np.sqrt(20), np.nan], rtol=1e-6)


def test_overlap_in_closed_form():
    a = np.array([[1, 2, 3], [1, 2, 3], [1, 2, -1], [-1, -1, -1], [1, 2, 3]])
    b = np.array([[3, 1, 2], [4, 5, 1], [2, -1, -1], [1, 2, 3], [-1, -1, -1]])
    expected = [1, 1 / 3, 1 / 2, np.nan, np.nan]
    np.testing.assert_allclose(evolution.overlap(a, b), expected)
    assert evolution.mean(evolution.overlap(a, b)) == pytest.approx(11 / 18)
    assert np.isnan(evolution.mean(np.array([np.nan])))


def test_an_image_that_does_not_activate_a_unit_is_none_of_its_nine():
    score = np.array([[2, 1, 0], [0, 0, 0]], np.float32)
    image = np.array([[7, 5, 0], [0, 1, 2]], np.int32)
    empty = np.zeros((2, 3, 4), np.int32)
    top = RankedPatches(score=score, image=image, position=empty[..., :2], box=empty)
    np.testing.assert_array_equal(evolution.activated(top), [[7, 5, -1], [-1, -1, -1]])
