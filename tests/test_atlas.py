"""The atlas's reader and writer: Python reads what was written, of any version."""

import contextlib
import dataclasses
import json
import math
import os
import resource
import shutil

import numpy as np
import pytest
from atlases import (
    CLASSES,
    EDGES,
    LAYERS,
    encoded,
    layer_of,
    panel_colour,
    panel_of,
    table_of,
)
from PIL import Image

from nstvis.units import atlas, atlas_json, sprites, statistics

pytest_plugins = ["atlas_fixtures"]


def check(folder, given):
    """Reads an atlas, and compares all of it with what it was written from."""
    table, patches, pictures = given
    read = atlas.Atlas(folder)
    assert read.layers == {"conv1": 5, "block/2 ü": 40, "fc": 6}
    assert read.fields == {name: list(field) for name, (*_, field) in LAYERS.items()}
    assert (read.classes, read.edges, read.about) == (CLASSES, EDGES, table.about)
    assert {*read.statistics} == {"maximum", "mean", "std", "sparsity", "selectivity"}
    for name, layer in table.layers.items():
        selectivity = statistics.compute(layer)["selectivity"]
        for number in range(read.layers[name]):
            unit = read.unit(name, number)
            assert (unit.layer, unit.number) == (name, number)
            for part in ("top", "least"):
                wanted, found = getattr(layer, part), getattr(unit, part)
                scores = np.float32([patch.score for patch in found])
                np.testing.assert_array_equal(scores, wanted.score[number])
                boxes = [*map(tuple, wanted.box[number].tolist())]
                assert [patch.box for patch in found] == boxes
                for patch, image in zip(found, wanted.image[number].tolist()):
                    assert patch.image == table.examples[image][0]
                    assert patch.label == CLASSES[table.examples[image][1]]
                    if image == 59:
                        assert patch.picture is None
                    else:
                        assert patch.picture.read_bytes() == pictures[image]
            favourite = None if unit.dead else CLASSES[layer.favourite()[number]]
            assert unit.favourite == favourite
            for field in ("mean", "std", "sparsity"):
                assert np.float32(getattr(unit, field)) == getattr(layer, field)[number]
            assert np.float32(unit.selectivity) == selectivity[number]
            assert unit.statistics == {
                "maximum": pytest.approx(layer.top.score[number, 0]),
                "mean": unit.mean,
                "std": unit.std,
                "sparsity": unit.sparsity,
                "selectivity": unit.selectivity,
            }
            assert unit.histogram == layer.histogram[number].tolist()
            assert unit.dead == ((name, number) == ("conv1", 3))
            strongest = sorted(zip(layer.class_mean[number], CLASSES), reverse=True)
            if not unit.dead:
                assert unit.strongest == [
                    (label, pytest.approx(mean)) for mean, label in strongest[:8]
                ]
            for patch, drawn in zip(unit.patches(), patches[name][number], strict=True):
                difference = np.abs(np.asarray(patch) - drawn.astype(int))
                assert difference.max() <= (0 if drawn.shape[0] <= 32 else 12)


def test_python_reads_what_was_written(folder, given):
    check(folder, given)


def rewrite(script, change):
    """Changes the JSON of a script."""
    target, _, text = script.read_text().partition(" = ")
    content = change(json.loads(text.rstrip(";\n")))
    script.write_text(f"{target} = {json.dumps(content)};\n")


def older(folder):
    """Makes an atlas one of version 1."""

    def table(content):
        del content["version"], content["statistics"]
        return content

    def layer(content):
        for unit in content["units"]:
            values = unit.pop("statistics")
            del values["maximum"]
            unit |= values | {"silent": values.pop("sparsity")}
        return content

    rewrite(folder / "atlas/table.js", table)
    for number in range(len(LAYERS)):
        rewrite(folder / f"atlas/{number}.js", layer)


def test_an_atlas_of_version_1_is_read_and_added_to(given, panels, tmp_path):
    shutil.copytree(panels, tmp_path, dirs_exist_ok=True)
    older(tmp_path)
    text = (tmp_path / "atlas/0.js").read_text()
    assert '"silent": ' in text and "sparsity" not in text and "maximum" not in text
    check(tmp_path, given)
    atlas.add(tmp_path, "new", {"fc": panel_of([4], 1, 24)})
    check(tmp_path, given)
    unit = atlas.Atlas(tmp_path).unit("fc", 4)
    assert {*unit.panels()} == {"deconvnet", "new"}
    # Without images there is no maximum.
    rewrite(tmp_path / "atlas/0.js", lambda content: without_images(content))
    assert math.isnan(atlas.Atlas(tmp_path).unit("conv1", 0).statistics["maximum"])


def without_images(content):
    for unit in content["units"]:
        unit["top"] = [None] * len(unit["top"])
    return content


def test_an_atlas_that_is_too_new_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path / "atlas/table.js", lambda content: content | {"version": 3})
    message = "an atlas of version 3, written by a newer nstvis: .* up to 2"
    with pytest.raises(ValueError, match=message):
        atlas.Atlas(tmp_path)
    with pytest.raises(ValueError, match=message):
        atlas.add(tmp_path, "new", {"fc": panel_of([4], 1, 24)})


def test_a_second_atlas_replaces_the_first_and_nothing_else(folder, given, tmp_path):
    table, patches, pictures = given
    (tmp_path / "units.npz").write_text("not the atlas's")
    atlas.write(tmp_path, *given)
    few = table_of({"conv1": table.layers["conv1"]}, CLASSES, 60)
    atlas.write(tmp_path, few, patches, {3: pictures[3]})
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    wanted = {"index.html", "atlas/table.js", "atlas/0.js", "atlas/0-0.webp"}
    wanted |= {
        "atlas/panels.js",
        "atlas/findings.js",
        "atlas/search.js",
        "atlas/pictures/3.png",
        "units.npz",
    }
    scripts = ["pictures", "layer", "unit", "explain", "search", "main"]
    wanted |= {f"atlas/page/{name}.js" for name in scripts} | {"atlas/page/style.css"}
    assert left == wanted
    assert atlas.Atlas(tmp_path).layers == {"conv1": 5}


def test_pictures_keep_their_format(given, tmp_path):
    table, patches, _ = given
    image = int(table.layers["conv1"].top.image[0, 0])
    for format in ("JPEG", "WEBP", "PNG"):
        atlas.write(
            tmp_path, table, patches, {image: encoded(np.zeros((8, 8, 3)), format)}
        )
        picture = atlas.Atlas(tmp_path).unit("conv1", 0).top[0].picture
        assert picture.suffix == {"JPEG": ".jpg"}.get(format, f".{format.lower()}")
        with Image.open(picture) as opened:
            assert opened.format == format
    with pytest.raises(ValueError, match="picture of image 7 is neither JPEG"):
        atlas.write(tmp_path, table, patches, {7: b"<svg>"})


@contextlib.contextmanager
def small_files(limit):
    """No file can be larger: writing fails as on a full disk, and names no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_leaves_the_earlier_atlas(given, tmp_path):
    table, patches, pictures = given
    atlas.write(tmp_path, *given)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for limit, name in ((10, "0.png"), (1000, r"0\.js"), (10000, r"1\.js")):
        with small_files(limit), pytest.raises(OSError, match=f"{name}: cannot write"):
            atlas.write(tmp_path, table, patches, pictures)
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert after == before


def test_an_interruption_leaves_no_page_of_something_else(given, tmp_path, monkeypatch):
    atlas.write(tmp_path, *given)

    replace = os.replace

    def interrupted(source, target):
        if target == tmp_path / "atlas":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atlas.write(tmp_path, *given)
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        atlas.Atlas(tmp_path)
    monkeypatch.undo()
    atlas.write(tmp_path, *given)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "atlas"}


def test_names_of_files_need_not_be_text(given, tmp_path):
    table, patches, _ = given
    odd = {i: (f"\udcff/\u2028/{i}", -1) for i in range(60)}
    atlas.write(tmp_path, dataclasses.replace(table, examples=odd), patches, {})
    patch = atlas.Atlas(tmp_path).unit("conv1", 0).top[0]
    image = table.layers["conv1"].top.image[0, 0]
    assert (patch.image, patch.label) == (f"\udcff/\u2028/{image}", None)


def test_panels_are_read_and_those_of_another_size_replaced(panels):
    read = atlas.Atlas(panels)
    wanted = [("conv1", 4, "deconvnet", 9, 7), ("fc", 0, "deconvnet", 9, 64)]
    wanted += [("block/2 ü", unit, "features", 1, 20) for unit in (2, 34)]
    for layer, number, title, n, side in wanted:
        found = read.unit(layer, number).panels()
        assert list(found) == [title]
        assert [picture.size for picture in found[title]] == [(side, side)] * n
        for slot, picture in enumerate(found[title]):
            difference = np.array(picture) - panel_colour(number, slot)
            assert np.abs(difference).max() <= (0 if side <= 32 else 12)
    assert read.unit("block/2 ü", 33).panels() == {}
    for unit in (1, 3, 5):  # of two calls
        (picture,) = read.unit("fc", unit).panels()["features"]
        assert (np.array(picture) == panel_colour(unit, 0)).all()
    assert set(read.unit("fc", 4).panels()) == {"deconvnet"}
    assert len(read.unit("conv1", 4).patches()) == 9


@pytest.mark.parametrize("side", [16, 20])
def test_after_half_a_change_no_panel_is_read_wrongly(
    given, tmp_path, monkeypatch, side
):
    layer, write = "block/2 ü", sprites.write
    atlas.write(tmp_path, *given)
    atlas.add(tmp_path, "features", {layer: panel_of([1, 33], 1, 16)})

    def fail(path, *arguments):
        if path.name == "features-1-2.webp":  # unit 33's, the second one
            raise OSError("the disk is full")
        write(path, *arguments)

    monkeypatch.setattr(sprites, "write", fail)
    with pytest.raises(OSError, match="full"):
        atlas.add(tmp_path, "features", {layer: panel_of([1, 33], 1, side)})
    for unit in (1, 33):
        found = atlas.Atlas(tmp_path).unit(layer, unit).panels()
        assert list(found) == (["features"] if side == 16 else [])
        for (picture,) in found.values():
            assert (np.array(picture) == panel_colour(unit, 0)).all()


def test_panels_that_do_not_fit_are_refused(folder, panels, tmp_path):
    good = panel_of([0], 1, 7)
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        atlas.add(tmp_path, "features", {"conv1": good})
    for layer, pictures, message in [
        ("conv7", good, "no layer 'conv7'"),
        ("conv1", panel_of([5], 1, 7), "no unit 5 in conv1"),
        ("conv1", panel_of([0], 1, 7) | panel_of([1], 1, 8), "of one size"),
        ("conv1", {0: good[0].astype(float)}, "should be uint8"),
        ("conv1", {0: good[0][0]}, "should be uint8"),
    ]:
        with pytest.raises(ValueError, match=message):
            atlas.add(panels, "new", {layer: pictures})
    with pytest.raises(ValueError, match="letters and digits"):
        atlas.add(panels, "../x", {"conv1": good})
    titles = [set(atlas.Atlas(panels).unit("conv1", i).panels()) for i in range(5)]
    assert titles == [{"deconvnet"}] * 5


def test_wrong_patches_are_refused(given, tmp_path):
    table, patches, _ = given
    for wrong in (
        patches["conv1"][:, :8],
        patches["conv1"][:4],
        patches["conv1"][..., :6, :],
        patches["conv1"][0],
        patches["conv1"].astype(np.float32),
        patches["conv1"][:, :, :0, :0],
    ):
        message = r"conv1 should be uint8 \[5, 9, side, side, 3\]"
        with pytest.raises(ValueError, match=message):
            atlas.write(tmp_path, table, patches | {"conv1": wrong}, {})
    k = 1100
    layer = layer_of(0, 1, k, 7, 0, 60)
    cells = {"conv1": np.zeros((1, k, 7, 7, 3), np.uint8)}
    with pytest.raises(ValueError, match="1100 pictures of 7 pixels are too many"):
        atlas.write(tmp_path, table_of({"conv1": layer}, [], 60), cells, {})
    assert not any(tmp_path.iterdir())


def test_wrong_names_and_damage_get_one_clear_line(folder, tmp_path):
    read = atlas.Atlas(folder)
    with pytest.raises(ValueError, match="no layer 'conv2': did you mean 'conv1'"):
        read.unit("conv2", 0)
    for number in (5, -1):
        with pytest.raises(ValueError, match=f"no unit {number} in conv1: .* 0 to 4"):
            read.unit("conv1", number)
    with pytest.raises(FileNotFoundError, match="holds no atlas"):
        atlas.Atlas(tmp_path)
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged/atlas/0.js").write_text("atlas.layers[0].content = {")
    with pytest.raises(ValueError, match=r"0\.js is damaged"):
        atlas.Atlas(tmp_path / "damaged").unit("conv1", 0)


def mutants(content):
    """Yields a JSON value with one of its parts left out, or replaced by another kind."""
    for other in (None, [], {}, -1, 10**40, "x"):
        if type(other) is not type(content):
            yield other
    if isinstance(content, dict):
        for key in content:
            yield {k: v for k, v in content.items() if k != key}
            yield from ({**content, key: part} for part in mutants(content[key]))
    elif isinstance(content, list) and content:
        yield content[:-1]
        yield from ([part, *content[1:]] for part in mutants(content[0]))


@pytest.mark.parametrize("name", ["table", "0"])
def test_wrong_contents_of_scripts_are_damage(name, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    script = tmp_path / f"atlas/{name}.js"
    before, equals, text = script.read_text().partition(" = ")
    tried = [*mutants(json.loads(text.rstrip(";\n")))]
    refused = 0
    for content in tried:
        script.write_text(f"{before}{equals}{json.dumps(content)};\n")
        try:
            unit = atlas.Atlas(tmp_path).unit("conv1", 0)
            unit.patches()
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > len(tried) / 4
    script.write_text(f"{before}{equals}{9**6 * '['};\n")
    with pytest.raises(ValueError, match=rf"{name}\.js is damaged"):
        atlas.Atlas(tmp_path).unit("conv1", 0)


def test_what_is_not_finite_is_null(given, tmp_path):
    _, patches, _ = given
    layer = layer_of(0, 5, 9, 7, len(CLASSES), 60)
    layer.class_mean[0, 1:] = np.nan
    layer.class_mean[0, 0] = 2
    layer.top.score[1, 8] = -np.inf
    atlas.write(tmp_path, table_of({"conv1": layer}, CLASSES, 60), patches, {})
    for path in tmp_path.glob("atlas/*.js"):
        text = path.read_text().partition(" = ")[2].rstrip(";\n")
        json.loads(text, parse_constant=pytest.fail)
    read = atlas.Atlas(tmp_path)
    assert read.unit("conv1", 0).strongest == [("tabby", 2)]
    assert read.unit("conv1", 1).top[8].score is None


FINDING = {
    "concept": np.array(["grating", "<b>\u2028", "no name", "dot", "dog AND NOT cat"]),
    "auroc": np.array([0.5, 0.75, np.nan, 1, 0.9]),
    "unit": np.arange(10).reshape(5, 2),
    "tested": np.array([True, False, False, True, True]),
}


def test_findings_are_read_as_they_were_written(given, tmp_path):
    wanted, *rest = given
    wanted = dataclasses.replace(wanted, findings={"name": {"conv1": FINDING}})
    atlas.write(tmp_path, wanted, *rest)
    atlas.add_findings(tmp_path, "inputs", {"fc": {"unit": np.zeros((6, 3), int)}})
    read = atlas.Atlas(tmp_path)
    assert read.unit("block/2 ü", 0).findings == {}
    assert read.unit("fc", 5).findings == {"inputs": {"unit": [0, 0, 0]}}
    assert read.unit("conv1", 1).findings["name"] == {
        "concept": "<b>\u2028",
        "auroc": 0.75,
        "unit": [2, 3],
        "tested": False,
    }
    assert read.unit("conv1", 2).findings["name"]["auroc"] is None
    # Another call's replace them.
    atlas.add_findings(tmp_path, "name", {"fc": {"concept": np.full(6, "x")}})
    read = atlas.Atlas(tmp_path)
    assert read.unit("fc", 0).findings["name"] == {"concept": "x"}
    assert "name" not in read.unit("conv1", 1).findings


@pytest.mark.parametrize(
    ("title", "layer", "units", "message"),
    [
        ("a/b", "fc", 6, "the title 'a/b' should be of letters and digits"),
        ("name", "fc6", 6, "no layer 'fc6': did you mean 'fc'"),
        ("name", "fc", 5, "name should say something of all units of fc"),
    ],
)
def test_findings_that_do_not_fit_are_refused(folder, title, layer, units, message):
    with pytest.raises(ValueError, match=message):
        atlas.add_findings(folder, title, {layer: {"x": np.zeros(units)}})
    assert atlas.Atlas(folder).unit("fc", 0).findings == {}


def test_the_page_is_told_the_classes_of_logits(given, tmp_path):
    wanted, *rest = given
    names = {"name": np.array([*"abcdef"])}
    atlas.write(
        tmp_path, dataclasses.replace(wanted, findings={"class": {"fc": names}}), *rest
    )
    table = atlas_json.read_table(atlas_json.find(tmp_path))
    assert table["logits"] == [*"abcdef"]
    assert atlas.Atlas(tmp_path).unit("fc", 2).findings["class"] == {"name": "c"}
