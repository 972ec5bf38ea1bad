"""Images and their classes: the data set's, requested ones, or the network's prediction."""

import jax
import numpy as np
import pytest
from PIL import Image

from nstvis import models
from nstvis.probes import inputs


@pytest.fixture
def goldfish(tmp_path):
    """A folder of two classes, of which the bundled network knows one."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for kind in ("goldfish", "nonsense", "7"):
        (tmp_path / kind).mkdir()
        Image.fromarray(noise).save(tmp_path / kind / "1.png")
    return tmp_path


def load(folder, **options):
    options = {"dataset": f"folder:{folder}", "split": "train", "size": 40} | options
    return inputs.load(inputs.Inputs(**options))


@pytest.mark.slow
def test_the_class_is_the_data_set_s_or_the_network_s_prediction(goldfish):
    loaded = load(goldfish, image="0,1,2")
    by_name = {image.name: image for image in loaded.images}
    assert set(by_name) == {"0 7", "1 goldfish", "2 nonsense"}
    assert by_name["1 goldfish"].label_source == "true class"
    assert loaded.label_name(by_name["1 goldfish"]) == "goldfish"
    name = loaded.classes[by_name["1 goldfish"].label]
    assert name == "goldfish, Carassius auratus"
    forward, params = models.load("alexnet_small")
    for name in ("0 7", "2 nonsense"):  # a number in a data set is no class's number
        logits = jax.jit(forward)(params, by_name[name].pixels[None])["fc8"]
        assert by_name[name].label == int(logits.argmax())
        assert by_name[name].label_source == "predicted"


def test_a_class_can_be_requested_by_name_or_number(goldfish):
    loaded = load(goldfish, image="0,1,2", label="lemon, goldfish,17")
    names = [loaded.classes[image.label] for image in loaded.images]
    assert names == ["lemon", "goldfish, Carassius auratus", loaded.classes[17]]
    assert all(image.label_source == "requested" for image in loaded.images)
    loaded = load(goldfish, image="0,1", label="lemon")
    names = [loaded.classes[image.label] for image in loaded.images]
    assert names == ["lemon", "lemon"]


def test_an_image_that_the_data_set_has_not_is_refused(goldfish):
    with pytest.raises(ValueError, match="no image 3: folder:.* train has 0 to 2"):
        load(goldfish, image="3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": ""}, "image should name at least one image"),
        ({"image": "1,,2"}, "image=1,,2: there is nothing between two commas"),
        ({"image": "1,2", "label": "a,b,c"}, "label has 3 classes for 2 images"),
        ({"size": 0}, "size should be at least 1"),
        ({"batch": 10**6}, "batch should be at least 1 and at most 65536"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        inputs.load(inputs.Inputs(model="nowhere.py", **options))
