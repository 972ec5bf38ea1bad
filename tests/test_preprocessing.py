"""Preprocessing: what networks see of images, and which files want which."""

import dataclasses
import pathlib

import numpy as np
import pytest
import small
from flax import nnx

from nstvis import launcher, models
from nstvis import weights as weights_io
from nstvis.runs import registry
from nstvis.units import receptive_fields, scan_file


def picture(height, width):
    random = np.random.default_rng(0)
    return random.uniform(0, 255, (1, height, width, 3)).astype(np.float32)


def test_caffes_networks_see_bgr_less_its_mean():
    plain, params = models.load("vgg_small", "random", last="conv1_1")
    caffe, _ = models.load("vgg_small", "random", preprocessing="caffe", last="conv1_1")
    image = picture(8, 9)
    bgr = image[..., [2, 1, 0]] - np.array([103.939, 116.779, 123.68], np.float32)
    # An image that torchvision's preprocessing turns into that.
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    expected = plain(params, 255 * (bgr * std + mean))["conv1_1"]
    found = caffe(params, image)["conv1_1"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_scans_of_another_preprocessing_do_not_mix():
    hashes = {
        scan_file.network_hash(
            *models.load("vgg_small", "random", preprocessing=name, last="pool1"), 16
        )
        for name in ("auto", "torchvision", "caffe")
    }
    assert len(hashes) == 2


def test_receptive_fields_are_the_same_with_any_preprocessing():
    fields = [
        receptive_fields.receptive_fields(
            *models.load("vgg_small", "random", preprocessing=name, last="pool1"),
            16,
            16,
        )
        for name in ("torchvision", "caffe")
    ]
    for name in ("conv1_1", "conv1_2", "pool1"):
        found = [(x[name].stride, x[name].size(0)) for x in fields]
        assert found[0] == found[1]


TINY_VGG = """
from nstvis.layers import Chain, conv

CAFFE_FILE = "tiny-00000000.pth"
TORCHVISION_FILE = "tiny-11111111.pth"

def build(*, pooling, last, rngs):
    return Chain({"conv1": conv(3, 2, 1, rngs=rngs), "conv2": conv(2, 2, 1, rngs=rngs)}, last)
"""


@pytest.fixture
def tiny_vgg(tmp_path):
    """A network of which there are weights of both kinds."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY_VGG)
    return path


def preprocessing_of(network, weights, **options):
    """Loads a copy of random weights by that name, and tells what the network sees."""
    _, params = models.load(str(network), "random")
    tensors = {f"{k}.{kind}": a for k, p in params.items() for kind, a in p.items()}
    np.savez(weights, **tensors)
    graph, _ = nnx.split(models.network(str(network), str(weights), **options))
    return nnx.merge(graph, params).preprocessing


@pytest.mark.parametrize(
    "name, asked, expected, level, line",
    [
        ("vgg19-d01eb7cb.npz", "auto", "caffe", "INFO", "Caffe's, so images are BGR"),
        ("VGG16-00b39a1b (1).npz", "auto", "caffe", "INFO", "Caffe's, so images"),
        ("vgg19_caffe.npz", "auto", "caffe", "INFO", "Caffe's, so images are BGR"),
        ("mine.npz", "auto", "torchvision", "WARNING", "preprocessing=caffe"),
        ("mine.npz", "caffe", "caffe", None, None),
        ("mine.npz", "torchvision", "torchvision", None, None),
        ("vgg19-d01eb7cb.npz", "torchvision", "torchvision", "WARNING", "named like"),
    ],
)
def test_files_tell_their_preprocessing_and_the_log_says_which(
    tiny_vgg, tmp_path, caplog, name, asked, expected, level, line
):
    caplog.set_level("INFO", "nstvis")
    found = preprocessing_of(tiny_vgg, tmp_path / name, preprocessing=asked)
    assert found == expected
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    if line is None:
        assert not logged
    else:
        [(found_level, message)] = logged
        assert found_level == level
        assert name in message and line in message


def test_weights_that_were_trained_here_need_no_word(tiny_vgg, tmp_path, caplog):
    _, params = models.load(str(tiny_vgg), "random")
    weights_io.save(tmp_path / "tiny.safetensors", params, ["one", "two"])
    models.load(str(tiny_vgg), str(tmp_path / "tiny.safetensors"))
    assert not caplog.records


@pytest.mark.parametrize(
    "model, source, asked",
    [
        ("alexnet_small", "bundled", "caffe"),
        ("alexnet", "torchvision", "caffe"),
        ("vgg19", "caffe", "torchvision"),
    ],
)
def test_weights_of_known_training_refuse_another_preprocessing(model, source, asked):
    with pytest.raises(ValueError, match=f"weights={source} were trained with"):
        models.load(model, source, preprocessing=asked)


OWN_NETWORK = """
from flax import nnx

class Own(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)

    def __call__(self, images):
        return {"conv1": self.conv1(images / 255)}

def build(*, pooling, last, rngs):
    return Own(rngs)
"""

PLAIN_NETWORK = """
def init(seed):
    return {"scale": 1.0}

def forward(params, images):
    return {"mean": params["scale"] * images.mean((1, 2))}
"""


@pytest.mark.parametrize("source", [OWN_NETWORK, PLAIN_NETWORK])
def test_a_network_that_preprocesses_itself_is_asked_for_nothing(tmp_path, source):
    (tmp_path / "own.py").write_text(source)
    name = str(tmp_path / "own.py")
    models.load(name, "random", preprocessing="auto")
    for asked in ("caffe", "torchvision"):
        with pytest.raises(ValueError, match=r"own\.py preprocesses its images itself"):
            models.load(name, "random", preprocessing=asked)


class LoadedError(Exception):
    """With what the network would have been loaded."""


def loading(monkeypatch, name, dataset):
    """Returns the preprocessing with which an experiment loads its network."""
    experiment = registry.find("experiment", name, launcher.experiments())

    def load(name, weights, *, preprocessing="auto", **options):
        raise LoadedError(preprocessing)

    monkeypatch.setattr(models, "load", load)
    values = {"preprocessing": "caffe", "dataset": dataset, "split": "train"}
    values |= {"weights": "random"}
    known = [field.name for field in dataclasses.fields(experiment.Config)]
    config = experiment.Config(**{k: v for k, v in values.items() if k in known})
    if "preprocessing" not in known:
        return None
    with pytest.raises(LoadedError) as found:
        experiment.run(config, pathlib.Path("nowhere"))
    return str(found.value)


@pytest.mark.parametrize("name", registry.names(launcher.experiments()))
def test_every_experiment_that_takes_weights_takes_their_preprocessing(
    monkeypatch, name, tmp_path
):
    without = ("train", "evolution", "compare", "scores", "preflight")
    expected = None if name in without else "caffe"
    _, dataset = small.write(tmp_path)
    assert loading(monkeypatch, name, dataset) == expected
