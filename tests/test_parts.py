"""Parts of images: drawn faces, and images of one's own."""

import json

import numpy as np
import pytest
from PIL import Image

from nstvis.data import primitives
from nstvis.probes import parts

FACES = 30 * primitives.SPLITS["train"]  # the number of the first one

# Drawn faces.


def test_drawn_faces_have_the_boxes_that_were_drawn():
    faces = parts.drawn(3, 64)
    for i in range(3):
        kind, image, parameters = primitives.example(0, "train", FACES + i)
        assert kind == "face"
        np.testing.assert_array_equal(faces.images[i], np.asarray(image))
        assert {name: x[i].tolist() for name, x in faces.boxes.items()} == (
            parameters["boxes"]
        )


@pytest.mark.parametrize("count", [1, 201])
def test_there_are_two_to_two_hundred_of_them(count):
    with pytest.raises(ValueError, match=f"count={count} should be 2 to 200"):
        parts.drawn(count, 64)


# Images of one's own.


@pytest.mark.parametrize(
    ("width", "height", "size", "box", "expected"),
    [
        (64, 64, 64, [3, 4, 10, 9], [3, 4, 10, 9]),
        (96, 64, 32, [2, 18, 10, 28], [1, 1, 5, 6]),
        (64, 96, 32, [18, 2, 28, 10], [1, 1, 6, 5]),
        (50, 81, 50, [20, 5, 31, 11], [4, 5, 16, 11]),
        (30, 30, 45, [1, 2, 4, 5], [1, 3, 6, 8]),
    ],
)
def test_boxes_are_scaled_with_their_image(
    width, height, size, box, expected, tmp_path
):
    picture = np.zeros((height, width, 3), np.uint8)
    top, left, bottom, right = box
    picture[top:bottom, left:right] = 255
    for name in "ab":
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    listed = {f"{name}.png": {"part": box} for name in "ab"}
    (tmp_path / "parts.json").write_text(json.dumps(listed))
    annotated = parts.read(tmp_path / "parts.json", size)
    assert annotated.boxes["part"].tolist() == [expected] * 2
    # The part is there: the middle of the light is that of the box.
    light = annotated.images[0, ..., 0] / 255
    middle = [(light.sum(1 - i) * (np.arange(size) + 0.5)).sum() for i in (0, 1)]
    corners = np.reshape(expected, (2, 2))
    np.testing.assert_allclose(middle / light.sum(), corners.mean(0), atol=0.6)


GOOD = {"a.png": {"eye": [1, 11, 9, 19]}, "b.png": {"eye": [2, 12, 8, 18]}}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([1, 2], "should list two or more images"),
        ({"a.png": GOOD["a.png"]}, "should list two or more images"),
        (GOOD | {"a.png": [1, 2, 3, 4]}, "should list two or more images"),
        (GOOD | {"c.png": GOOD["a.png"]}, r"there is no image .*c\.png"),
        (GOOD | {"b.png": {"nose": [1, 11, 5, 19]}}, "a.png has no 'nose'"),
        (GOOD | {"b.png": {"eye": [1, 11, 5]}}, "b.png: 'eye' .* should be"),
        (GOOD | {"b.png": {"eye": [1, 11, 5, "x"]}}, "b.png: 'eye' .* should be"),
        (GOOD | {"b.png": {"eye": 5}}, "b.png: 'eye' 5 should be"),
        (GOOD | {"b.png": {"eye": [1, 11, 31, 19]}}, "not within the 40 x 30 pixels"),
        (GOOD | {"b.png": {"eye": [-1, 11, 9, 19]}}, "not within"),
        (GOOD | {"b.png": {"eye": [9, 11, 9, 19]}}, "not within"),
        (GOOD | {"b.png": {"eye": [1, 3, 9, 19]}}, "crop the image"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(listed, message, tmp_path):
    for name in GOOD:
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    path = tmp_path / "parts.json"
    path.write_text(json.dumps(GOOD))
    parts.read(path, 20)
    path.write_text(json.dumps(listed))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        parts.read(path, 20)
    assert len(str(error.value).splitlines()) == 1


def test_a_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json: no such file"):
        parts.read(tmp_path / "nowhere.json", 20)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json: not JSON"):
        parts.read(tmp_path / "bad.json", 20)
