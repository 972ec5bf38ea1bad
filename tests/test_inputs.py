"""Pictures and their classes: the data set's, one that is told, or the network's."""

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


def test_the_class_is_the_data_set_s_or_the_network_s_first_choice(goldfish):
    subject = load(goldfish, image="0,1,2")
    own = {part.name: part for part in subject.pictures}
    assert set(own) == {"0 7", "1 goldfish", "2 nonsense"}
    assert own["1 goldfish"].why == "true class"
    name = subject.classes[own["1 goldfish"].label]
    assert name == "goldfish, Carassius auratus"
    forward, params = models.load("alexnet_small")
    for name in ("0 7", "2 nonsense"):  # a number in a data set is no class's number
        logits = forward(params, own[name].pixels[None])["fc8"]
        assert own[name].label == int(logits.argmax())
        assert own[name].why == "network's first choice"


def test_a_class_can_be_told_by_name_or_number(goldfish):
    subject = load(goldfish, image="0,1,2", label="lemon, goldfish,17")
    names = [subject.classes[picture.label] for picture in subject.pictures]
    assert names == ["lemon", "goldfish, Carassius auratus", subject.classes[17]]
    assert all(picture.why == "asked for" for picture in subject.pictures)
    subject = load(goldfish, image="0,1", label="lemon")
    names = [subject.classes[picture.label] for picture in subject.pictures]
    assert names == ["lemon", "lemon"]


def test_an_image_that_the_data_set_has_not_is_refused(goldfish):
    with pytest.raises(ValueError, match="no image 3: folder:.* train has 0 to 2"):
        load(goldfish, image="3")
