"""What one unit is, in sentences; the experiment that says it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from atlases import CLASSES, layer_of, patches_of, pictures_of, table_of

from nstvis import images
from nstvis.launcher import experiments
from nstvis.runs import config as configs
from nstvis.runs import registry
from nstvis.runs.progress import Interrupted
from nstvis.units import atlas, description, statistics, survey

SIZES = {"conv1": (4, 16), "mean": (4, 16)}


def forward(params, pixels):
    """A network of one convolution of 3 x 3 pixels, stride 2, and the mean of its maps."""
    kernel = params["conv1"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        pixels, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return {"conv1": jax.nn.relu(maps), "mean": maps.mean((1, 2))}


PARAMS = {"conv1": {"kernel": jnp.ones((3, 3, 3, 4))}}


def write(folder, layers, k=9, classes=CLASSES, about=None):
    """Writes an atlas of layers with `k` patches."""
    table = table_of(layers, classes, 60)
    sizes = {name: (len(layer.mean), 16) for name, layer in layers.items()}
    table.about.update(about or {})
    atlas.write(folder, table, patches_of(sizes, k), pictures_of(60))
    return atlas.Atlas(folder)


@pytest.fixture(scope="module")
def layers():
    """Two layers, whose unit 3 is dead in conv1."""
    layers = {
        name: layer_of(i, units, 9, 16, len(CLASSES), 60)
        for i, (name, (units, _)) in enumerate(SIZES.items())
    }
    conv1 = layers["conv1"]
    for part in (conv1.top.score, conv1.mean, conv1.std, conv1.class_mean):
        part[3] = 0
    conv1.sparsity[3] = 1
    return layers


@pytest.fixture(scope="module")
def small(layers, tmp_path_factory):
    return write(tmp_path_factory.mktemp("small"), layers)


def describe(read, layer, number):
    lines = description.describe(read, read.unit(layer, number), forward, PARAMS)
    return "\n".join(lines)


def test_a_unit_is_described(small, layers):
    told = describe(small, "conv1", 1)
    assert told.startswith("conv1:1 is one of 4 units of conv1 in net (weights: some).")
    assert "Its filter has 3 x 3 x 3 weights" in told
    assert "receptive field is 3 x 3 pixels in an image of 64 x 64" in told
    assert "every 2 pixels" in told
    assert "Sizes by layer: conv1 3." in told
    assert "for 600 images (primitives train):" in told
    unit = small.unit("conv1", 1)
    assert f"favourite class, by mean activation, is {unit.favourite}." in told
    assert "Its 9 top-activating patches." in told
    for patch in unit.top:
        place = f"{patch.image} at row {patch.box[0]}, column {patch.box[1]}"
        assert f"{patch.score:.3f}  {place}  {patch.label}" in told
    assert "dead" not in told
    for known in statistics.registered().values():
        value = re.escape(known.text(unit.statistics[known.name]))
        line = rf"^  {known.name} +{value}  {re.escape(known.description)}$"
        assert re.search(line, told, re.MULTILINE)


def test_its_inputs_are_listed(layers, tmp_path):
    of_mean = {
        "layer": np.tile(["conv1", ""], (4, 1)),
        "unit": np.tile([2, -1], (4, 1)),
        "contribution": np.tile([-1.25, np.nan], (4, 1)),
        "ablation": np.array([[-0.25, np.nan], *[[np.nan] * 2] * 3]),
    }
    write(tmp_path, layers)
    atlas.add_findings(tmp_path, "inputs", {"mean": of_mean})
    read = atlas.Atlas(tmp_path)
    told = [describe(read, "mean", number).splitlines() for number in (0, 1)]
    for lines, last in zip(told, ("-25.0%", "-1.25"), strict=True):
        place = lines.index(
            "Its strongest inputs: contribution, and activation lost without it."
        )
        assert lines[place + 1].split()[:2] == ["conv1:2", "-1.25"]
        assert lines[place + 1].split()[-1] == last
        assert not lines[place + 2].startswith("  conv")
    assert "inputs" not in describe(read, "conv1", 0)


def test_a_dead_unit_is_called_one(small):
    told = describe(small, "conv1", 3)
    assert "It is a dead unit: its activation is 0 for every image." in told
    assert "favourite class, by" not in told
    assert "what the unit responds to" not in told


def test_a_unit_of_a_dense_layer_sees_the_whole_image(small):
    told = describe(small, "mean", 0)
    assert "It sees the whole image of 64 x 64 pixels" in told
    assert "filter" not in told and "stride" not in told


def test_one_patch_and_no_classes(tmp_path):
    read = write(tmp_path, {"conv1": layer_of(0, 4, 1, 16, 0, 60)}, 1, [])
    told = describe(read, "conv1", 0)
    assert "Its top-activating patch:" in told
    assert "favourite class, by" not in told and "None" not in told
    assert "selectivity" not in told and "nan" not in told


def test_a_statistic_of_one_s_own_is_stated(layers, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "_functions", dict(statistics._functions))
    statistics.statistic("spread", "deviation over the mean", percent=True)(
        lambda layer: np.full(len(layer.mean), 0.25)
    )
    told = describe(write(tmp_path, layers), "mean", 2)
    assert re.search(r"^  spread +25 %  deviation over the mean$", told, re.MULTILINE)


# The experiment.

RANDOM = {"model": "alexnet_small", "weights": "random"}
explain_unit = registry.find("experiment", "explain_unit", experiments())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a scan of conv1 of a random network."""
    folder = tmp_path_factory.mktemp("finished")
    units = layer_of(0, 64, 9, 7, len(CLASSES), 60)
    write(folder, {"conv1": units}, about=RANDOM)
    panel = {3: np.zeros((9, 16, 16, 3), np.uint8)}
    atlas.add(folder, "deconvnet", {"conv1": panel})
    return folder


def test_it_explains_a_unit_of_an_atlas(finished, tmp_path, caplog):
    config = explain_unit.Config(unit="conv1:3", atlas=str(finished))
    with caplog.at_level("INFO", logger=explain_unit.__name__):
        assert explain_unit.run(config, tmp_path) == ["unit.png", "unit.txt"]
    text = (tmp_path / "unit.txt").read_text()
    assert text.startswith("conv1:3 is one of 64 units of conv1 in alexnet_small")
    assert caplog.messages == text.rstrip("\n").split("\n")
    # Two blocks of 3 x 3 pictures of 128 pixels.
    picture = images.read(tmp_path / "unit.png")
    assert picture.size == (2 * (3 * 128 + 2 * 4) + 8, 3 * 128 + 2 * 4)


def test_without_an_atlas_it_scans_the_layer(finished, tmp_path, monkeypatch, caplog):
    calls = []

    def scan(settings, workdir):
        calls.append((settings, workdir))
        if len(calls) == 2:
            raise Interrupted(15)
        units = layer_of(0, 64, 9, 7, len(CLASSES), 60)
        write(workdir, {"conv1": units}, 9, ["\udcff", *CLASSES[1:]], RANDOM)
        return ["index.html"]

    monkeypatch.setattr(survey, "survey", scan)
    config = explain_unit.Config(
        unit="conv1:3", weights="random", size=48, batch=7, split="train[:9]"
    )
    with caplog.at_level("INFO", logger=explain_unit.__name__):
        assert explain_unit.run(config, tmp_path) == ["unit.png", "unit.txt"]
    # Names of files need not be text, but what is logged is.
    assert b"\xff" in (tmp_path / "unit.txt").read_bytes()
    assert r"\udcff" in caplog.text
    assert caplog.text.encode()
    (settings, workdir), *_ = calls
    assert isinstance(settings, survey.Settings)
    assert workdir == tmp_path
    asked = [settings.layers, settings.size, settings.batch, settings.split]
    assert asked == ["conv1", 48, 7, "train[:9]"]
    assert (settings.model, settings.weights) == ("alexnet_small", "random")
    with pytest.raises(Interrupted):
        explain_unit.run(config, tmp_path / "interrupted")


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("conv2:192", "no unit 192 in conv2: there are 0 to 191"),
        ("conv6:1", "no layer 'conv6': did you mean 'conv5'?"),
        ("conv2", "'conv2' should be LAYER:NUMBER"),
        (":1", "':1' should be LAYER:NUMBER"),
        ("conv2:-1", "'conv2:-1' should be LAYER:NUMBER"),
    ],
)
def test_units_that_do_not_exist_are_refused_before_a_scan(
    unit, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(survey, "survey", lambda *_: pytest.fail("it scans"))
    config = explain_unit.Config(unit=unit, weights="random")
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.check(config)
        explain_unit.run(config, tmp_path)
    assert not list(tmp_path.iterdir())
