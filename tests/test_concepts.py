"""Concepts are what the data set knows of its images, and what is measured of them."""

import json

import numpy as np
import pytest
from test_responses import Drawn

from nstvis import class_names
from nstvis.data import primitives
from nstvis.units import concepts, names
from nstvis.units.responses import Responses


def responses(index, label):
    return Responses(np.array(index), np.array(label), {}, {})


def column(found, name):
    return found.present[:, found.names.index(name)].tolist()


class Tagged(Drawn):
    classes = ("goldfish, Carassius auratus", "n02099601", "mine")

    def tags(self, index):
        return ["lucky"] if index == 3 else []


def test_they_are_classes_groups_tags_and_measurements():
    sources = [Drawn(2, 0), Tagged(4, 1)]
    sources[0].classes = Tagged.classes
    found = concepts.known(responses([0, 2, 3, 5], [0, 1, -1, 2]), sources, 4)
    assert column(found, "goldfish") == [True, False, False, False]
    assert column(found, "golden retriever") == [False, True, False, False]
    assert column(found, "mine") == [False, False, False, True]
    # Its groups from small to large; what is the same of all images is left out.
    assert column(found, "vertebrate") == [True, True, False, False]
    assert "animal" not in found.names
    # An image's index is among those of all data sets; the tag is of its own.
    assert "lucky" not in found.names  # it is the same as "mine"
    assert {"dark", "bright", "many edges", "edges at 0 degrees"} & set(found.names)
    assert found.present.any(0).all()
    assert not found.present.all(0).any()


def test_the_user_s_file_replaces_all_others(tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text("id,tags,more\n1,cat; black,\n3,cat,old\nunknown,dog,\n")
    given = responses([0, 1, 3], [0, 0, 0])
    found = concepts.known(given, [Drawn(4, 0)], 4, str(path))
    assert found.names == ["cat", "black", "old"]
    assert column(found, "cat") == [False, True, True]
    assert column(found, "black") == [False, True, False]
    path.write_text("id,tags\nunknown,dog\n")
    with pytest.raises(ValueError, match="no tag of any of the 3 images.*such as 0"):
        concepts.known(given, [Drawn(4, 0)], 4, str(path))


@pytest.mark.parametrize("angle", concepts.ANGLES)
def test_the_angle_of_edges_is_that_of_a_grating(angle):
    y, x = np.mgrid[:32, :32]
    turned = np.deg2rad(angle)
    across = x * np.sin(turned) + y * np.cos(turned)  # y goes down
    wave = 127 + 60 * np.sin(across)
    image = np.repeat(wave[..., None], 3, 2).astype(np.uint8)
    shares = {
        name: value
        for name, value in concepts.measure(image).items()
        if name.startswith("edges at")
    }
    assert max(shares, key=shares.__getitem__) == f"edges at {angle:g} degrees"
    assert sum(shares.values()) == pytest.approx(1)


def test_a_plain_image_is_its_colour():
    plain = np.full((4, 4, 3), [10, 10, 200], np.uint8)
    found = concepts.measure(plain)
    assert found["blue on the whole"] == pytest.approx(0.95)
    assert found["smooth|many edges"] == found["red on the whole"] == 0
    assert found["dark|bright"] == pytest.approx((0.886 * 10 + 0.114 * 200) / 255)


def test_drawn_images_tell_what_they_were_drawn_with():
    drawn = {kind: primitives.draw(kind, np.random.default_rng(2)) for kind in KINDS}
    for kind, (_, parameters) in drawn.items():
        tags = primitives.tags(kind, json.loads(json.dumps(parameters)))
        assert len(tags) == len(set(tags)), tags
        assert sum(tag.endswith("ground") for tag in tags) == 2
        lines = [tag for tag in tags if tag.startswith("lines at")]
        assert len(lines) == (kind in ("grating", "edge"))
        if kind == "grating":
            _, _, angle, _ = lines[0].split()
            apart = abs(parameters["angle"] - float(angle)) % 180
            assert min(apart, 180 - apart) <= 11.25
    face = drawn["face"][1]
    assert f"nose: {face['nose']}" in primitives.tags("face", face)


KINDS = ("grating", "edge", "face", "noise")
MADE_OF = {
    "contrast": 0.7,
    "ground": "plain",
    "colors": [[0, 0, 0], [255, 0, 0], [200, 200, 210]],
    "x": 20.0,
    "y": 50.0,
    "period": 7.0,
}


def test_tags_are_words_for_parameters():
    tags = primitives.tags("rings", MADE_OF)
    colours = ["plain ground", "black ground", "red paint", "white paint"]
    others = ["low contrast paint", "period 6 to 10", "left", "below"]
    assert tags == colours + others


def test_classes_of_imagenet_are_known_by_wnid_and_by_words():
    known = class_names.imagenet()
    assert len(known) == 1000
    assert list(known) == sorted(known)
    for name in ("n02099601", "golden retriever"):
        found = class_names.find(name)
        assert found is not None
        assert found.groups[:4] == [
            "retriever",
            "sporting dog",
            "hunting dog",
            "dog",
        ]
    assert class_names.find("crane") is None  # a bird, or a machine
    assert class_names.find("dachshund of mine") is None


def test_logits_have_the_names_of_their_weights():
    of_weights = class_names.of_logits("bundled", "alexnet_small", 200)
    assert of_weights[0] == "Egyptian cat"
    # All are classes of ImageNet, and all but the crane are one alone.
    assert sum(class_names.find(name) is not None for name in of_weights) == 199
    published = class_names.of_logits("torchvision", "alexnet", 1000)
    assert published[1] == "goldfish, Carassius auratus"
    assert published[-1].startswith("toilet tissue")
    assert class_names.of_logits("random", "alexnet", 2, ["a", "b"]) == ["a", "b"]
    assert class_names.of_logits("random", "alexnet", 3, ["a", "b"]) == []


def test_the_finding_of_logits_is_of_the_last_layer_alone():
    from test_responses import target

    there = target([Drawn(4, 0)])
    assert names.of_logits(there)["dense"]["name"].tolist() == ["even", "odd"]
