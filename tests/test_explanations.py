"""A survey's explanations are in the atlas and its table, and each is found once."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import test_drawing
from test_drawing import IMAGES, LAYERS, Killed, contents, draw

from nstvis.units import kept_steps, names, samples, table
from nstvis.units.atlas import Atlas
from nstvis.units.explanations import Explanations

scanned = test_drawing.scanned
SETTINGS = dataclasses.replace(test_drawing.SETTINGS, rule="", explain=True)
TITLES = {"name", "inputs", "outputs", "neighbours", "samples", "maps"}
PARTS = ("_neighbours", "_connections", "_names", "_samples", "_maps")


@pytest.fixture(scope="module")
def whole(scanned, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    draw(scanned, workdir, SETTINGS)
    return workdir


def test_every_unit_is_explained(scanned, whole):
    atlas, found = Atlas(whole), table.load(whole / "units.npz")
    assert {*found.findings} == TITLES
    for layer, count in LAYERS.items():
        dense = layer == "dense"
        expected = TITLES - ({"outputs", "maps"} if dense else {"inputs"})
        assert {t for t, x in found.findings.items() if layer in x} == expected
        for number in range(count):
            unit = atlas.unit(layer, number)
            assert {*unit.findings} == expected
            for title, finding in unit.findings.items():
                arrays = found.findings[title][layer]
                assert {*finding} == {*arrays}
                assert all(len(array) == count for array in arrays.values())
            panels = unit.panels()
            assert {"samples"} <= {*panels} <= {"samples", "kernels", "maps"}
            assert ("maps" in panels) == (not dense)
            assert len(panels["samples"]) == len(samples.QUANTILES)
    # What samples are of can be opened, too.
    ids = {f"noise/{i}" for i in found.findings["samples"]["conv"]["image"].ravel()}
    listed = (whole / "atlas/0.js").read_text()
    assert all(f'["{id}"' in listed for id in ids)


def test_samples_are_patches_of_the_images_that_they_are_of(scanned, whole):
    pixels, finding = (
        scanned[1].sources[0].images,
        Atlas(whole).unit("conv", 7).findings,
    )
    top, left = finding["samples"]["box"][3][:2]
    shown = np.asarray(Atlas(whole).unit("conv", 7).panels()["samples"][3])
    image = pixels[finding["samples"]["image"][3]]
    np.testing.assert_array_equal(shown, image[top : top + 5, left : left + 5])


def test_the_reader_links_units(whole):
    read = Atlas(whole)
    unit = read.unit("dense", 5)
    assert 5 < len(unit.inputs) <= 10
    for slot, link in enumerate(unit.inputs):
        assert (link.layer, link.value > 0) == ("conv", slot < 5)
        assert link.ablation is not None
        back = [x for x in read.unit(*link[:2]).outputs if x.number == 5]
        assert [(x.layer, x.value, x.ablation) for x in back] in (
            [("dense", link.value, None)],
            [],  # of its ten strongest alone
        )
    for link in unit.neighbours:
        assert -1 <= link.value <= 1 and read.unit(*link[:2]) != unit
    assert unit.name is None or unit.name == unit.findings["name"]["concept"]
    scores = [sample.score for sample in unit.samples]
    assert scores == sorted(scores) and len(scores) == len(samples.QUANTILES)
    assert all(sample.picture.exists() for sample in unit.samples)


def test_interrupted_after_any_part_it_ends_the_same(
    scanned, whole, tmp_path, monkeypatch
):
    calls = []

    def interrupting(part):
        find = getattr(Explanations, part)

        def called(self):
            calls.append(part)
            found = find(self)
            if calls.count(part) == 1:
                raise KeyboardInterrupt
            return found

        called.__name__ = part
        return called

    for part in PARTS:
        monkeypatch.setattr(Explanations, part, interrupting(part))
    for _ in PARTS:
        with pytest.raises(KeyboardInterrupt):
            draw(scanned, tmp_path, SETTINGS)
    draw(scanned, tmp_path, SETTINGS)
    assert calls == [*itertools.chain.from_iterable((x, x) for x in PARTS)]
    assert contents(tmp_path) == contents(whole)


def test_killed_within_any_part_it_goes_on_there(scanned, whole, tmp_path, monkeypatch):
    """Killed after the first step of each loop that keeps its steps, none is repeated."""
    killing = {
        *("found_inputs.npz", "tested_inputs.npz", "measured.npz", "names-0.npz"),
        *("names-1.npz", "samples-1-0.webp", "samples-1-1.webp", "maps-0.npz", "shown"),
    }
    replace, written = os.replace, collections.Counter()

    def replacing(source, target):
        replace(source, target)
        path = pathlib.Path(target)
        name = path.name
        if path.parent.name == "pictures":
            shown = (tmp_path / "atlas.partial/work/samples.npz").exists()
            name = "shown" if shown else "drawn"
        elif path.suffix == ".npz" and path.parent.name == "work":
            written[name, int(np.load(path).get("done", 0))] += 1
        elif path.suffix == ".webp":
            written[name] += 1
        if name in killing:
            killing.remove(name)
            raise Killed

    monkeypatch.setattr(kept_steps, "_PAUSE", 0)
    monkeypatch.setattr(names, "_BLOCK", 16)
    monkeypatch.setattr(os, "replace", replacing)
    starts = len(killing) + 1
    for _ in range(starts):
        with contextlib.suppress(Killed):
            draw(scanned, tmp_path, SETTINGS)
    assert not killing
    assert {*written.values()} == {1}
    assert contents(tmp_path) == contents(whole)


KILLED = """
import os, pathlib, signal, sys
import test_drawing, test_explanations
from nstvis.units import kept_steps

def killing(source, target, replace=os.replace):
    replace(source, target)
    if pathlib.Path(target).name == "tested_inputs.npz":
        os.kill(os.getpid(), signal.SIGKILL)

workdir, scan = map(pathlib.Path, sys.argv[1:])
scanned = test_drawing.scan_in(scan)
kept_steps._PAUSE, os.replace = 0, killing
test_drawing.draw(scanned, workdir, test_explanations.SETTINGS)
"""


@pytest.mark.slow
def test_after_a_kill_within_a_part_the_rest_of_it_is_found(
    scanned, whole, tmp_path, caplog
):
    workdir, scan = tmp_path / "run", tmp_path / "scan"
    for folder in (workdir, scan):
        folder.mkdir()
    shutil.copy(scanned[0] / "scan.npz", workdir)
    tests = pathlib.Path(__file__).parent
    paths = os.pathsep.join(map(str, (tests, tests.parent)))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, workdir, scan],
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    with caplog.at_level(logging.INFO):
        draw(scanned, workdir, SETTINGS)
    assert "resuming after step 1 of" in caplog.text
    assert "testing inputs" in caplog.text and "finding inputs" not in caplog.text
    assert contents(workdir) == contents(whole)


def test_units_are_named_by_tags_of_one_s_own(scanned, tmp_path):
    target = scanned[1]
    pixels = target.sources[0].images.astype(np.float32)
    score = np.asarray(target.forward(target.params, pixels)["conv"]).max((1, 2))[:, 3]
    high = np.argsort(-score)[:90]
    rows = [f"noise/{i},{'mine' if i in high else 'other'}" for i in range(IMAGES)]
    tags = tmp_path / "tags.csv"
    tags.write_text("\n".join(["id,tags", *rows]))
    draw(scanned, tmp_path, dataclasses.replace(SETTINGS, concepts=str(tags)))
    assert Atlas(tmp_path).unit("conv", 3).findings["name"]["concept"] == "mine"
