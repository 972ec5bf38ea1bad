"""Scans in files: kept to the bit, merged, and refused if they do not fit together."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launcher import ROOT

from nstvis import models
from nstvis.data import Example, source_hash
from nstvis.units import maxima, scan_file
from nstvis.units.scan_file import About


def about(**changes):
    part = {"dataset": "d", "split": "a", "data_dir": "", "images": 10, "hash": "1"}
    return dataclasses.replace(
        About(
            model="m",
            weights="w",
            network="abc",
            layers={"conv1": 3},
            size=32,
            pool=4,
            k=2,
            per_class=1,
            patches=1,
            deduplicate=True,
            classes=["x", "y"],
            parts=[part],
        ),
        **changes,
    )


def state(seed=0, classes=2):
    rng = np.random.default_rng(seed)
    empty = maxima.start(3, pool=4, k=2, classes=classes, per_class=1)
    known = maxima.update(
        jax.tree.map(jnp.asarray, empty),
        jnp.asarray(rng.normal(size=(10, 1, 3)), jnp.float32),
        jnp.asarray(rng.integers(0, 9, (10, 1, 3)), jnp.int32),
        jnp.arange(10) % 2,
        jnp.arange(10),
    )
    return jax.device_get(known)


def empty(of):
    counts = {"pool": of.pool, "k": of.k, "per_class": of.per_class}
    units = sum(of.layers.values())
    return jax.device_get(maxima.start(units, classes=len(of.classes), **counts))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype


def other_part(split="b"):
    return dataclasses.replace(about(), parts=[about().parts[0] | {"split": split}])


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 2])
def test_a_scan_is_read_as_it_was_written(classes, tmp_path):
    known = state(classes=classes)
    given = about(classes=["x", "y"][:classes])
    scan_file.save(tmp_path / "scan.npz", known, given)
    found, of = scan_file.load(tmp_path / "scan.npz")
    assert_same(found, known)
    assert of == given
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npz"]


def test_a_scan_from_before_the_new_names_is_read(tmp_path):
    path = tmp_path / "scan.npz"
    scan_file.save(path, state(), about())
    with np.load(path) as file:
        arrays = dict(file)
    old = str(arrays["about"]).replace('"deduplicate"', '"suppress"')
    assert "suppress" in old
    np.savez(path, **arrays | {"about": np.array(old)})
    assert scan_file.load(path)[1] == about()


def test_what_is_no_scan_is_refused(tmp_path):
    path = tmp_path / "scan.npz"
    with pytest.raises(FileNotFoundError):
        scan_file.load(path)
    scan_file.save(path, state(), about())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"scan\.npz is damaged"):
        scan_file.load(path)
    np.savez(path, a=1)
    with pytest.raises(ValueError, match=r"scan\.npz is damaged, or no scan"):
        scan_file.load(path)


def test_a_scan_whose_arrays_are_others_is_damaged(tmp_path):
    path = tmp_path / "scan.npz"
    scan_file.save(path, state(), about())
    with np.load(path) as file:
        arrays = dict(file)
    for name in sorted(arrays.keys() - {"about"}):
        for other in (arrays[name][None], arrays[name].astype("c8"), np.array("x")):
            np.savez(path, **arrays | {name: other})
            with pytest.raises(ValueError, match=r"scan\.npz is damaged: an array has"):
                scan_file.load(path)
    for text in ("[]", "{}", '{"layers": 3}', 50_000 * "["):
        np.savez(path, **arrays | {"about": np.array(text)})
        with pytest.raises(ValueError, match=r"scan\.npz is damaged"):
            scan_file.load(path)


def saved(tmp_path, *scans):
    paths = [tmp_path / f"{i}.npz" for i in range(len(scans))]
    for i, (path, of) in enumerate(zip(paths, scans, strict=True)):
        scan_file.save(path, state(i), of)
    return paths


@pytest.mark.slow
def test_parts_are_numbered_after_one_another(tmp_path):
    paths = saved(tmp_path, about(), other_part("b"), other_part("c"))
    merged, of = scan_file.merge(paths)
    b, c = (maxima.shifted(state(i), 10 * i) for i in (1, 2))
    assert_same(merged, maxima.merge(maxima.merge(state(0), b), c))
    assert [part["split"] for part in of.parts] == ["a", "b", "c"]
    scan_file.save(tmp_path / "ab.npz", *scan_file.merge(paths[:2]))
    again, _ = scan_file.merge([tmp_path / "ab.npz", paths[2]])
    assert_same(again, merged)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network", "def"),
        ("size", 64),
        ("layers", {"conv1": 3, "conv2": 4}),
        ("classes", ["x", "z"]),
        ("k", 3),
        ("patches", 2),
    ],
)
def test_scans_that_do_not_fit_are_refused_with_both_sides_named(name, value, tmp_path):
    other = dataclasses.replace(other_part(), **{name: value})
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path, of in zip(paths, (about(), other), strict=True):
        scan_file.save(path, empty(of), of)
    with pytest.raises(ValueError, match=f"{name} is") as told:
        scan_file.merge(paths)
    for side in (*map(str, paths), *(str(getattr(x, name)) for x in (about(), other))):
        assert side.replace("'", '"') in str(told.value)


def test_the_same_images_do_not_count_twice(tmp_path):
    with pytest.raises(ValueError, match="scanned d a, as one before it did"):
        scan_file.merge(saved(tmp_path, about(), about()))


def test_a_scan_is_not_resumed_with_other_files(tmp_path):
    path = tmp_path / "scan.json"
    scan_file.refuse_changed(path, about())
    scan_file.refuse_changed(path, about())
    with pytest.raises(ValueError, match='network was "abc", is "new"'):
        scan_file.refuse_changed(path, about(network="new"))
    with pytest.raises(ValueError, match="as_stored was false, is true"):
        scan_file.refuse_changed(path, about(as_stored=True))
    # One that began before the setting was there.
    older = json.loads(path.read_text())
    del older["as_stored"]
    path.write_text(json.dumps(older))
    scan_file.refuse_changed(path, about())
    with pytest.raises(ValueError, match="as_stored was false, is true"):
        scan_file.refuse_changed(path, about(as_stored=True))


def test_images_as_stored_and_as_shown_do_not_merge(tmp_path):
    stored = dataclasses.replace(other_part(), as_stored=True)
    with pytest.raises(ValueError, match="as_stored is false in the first, true"):
        scan_file.merge(saved(tmp_path, about(), stored))


def network_hash(size=32, **how):
    return scan_file.network_hash(*models.load("alexnet_small", **how), size)


@pytest.mark.slow
def test_the_network_s_hash_tells_parameters_preprocessing_and_size():
    hashes = [
        network_hash(),
        network_hash(size=40),
        network_hash(weights="random"),
        network_hash(weights="random", seed=1),
        network_hash(pooling="average"),
    ]
    forward, params = models.load("alexnet_small")

    def brighter(params, images):
        return forward(params, images + 1)

    hashes.append(scan_file.network_hash(brighter, params, 32))
    assert len(set(hashes)) == len(hashes)


@pytest.mark.slow
def test_the_network_s_hash_is_the_same_in_another_process():
    program = (
        "from nstvis import models; from nstvis.units import scan_file;"
        "print(scan_file.network_hash(*models.load('alexnet_small'), 32))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == network_hash()


def test_the_images_hash_tells_bytes_labels_ids_and_number():
    class Images(list):
        classes = ("x", "y")

    images = Images(Example(f"{i}", i % 2, bytes([i])) for i in range(20))
    hashes = {source_hash(images), source_hash(Images(images[:19]))}
    for changed in ({"id": "z"}, {"label": 0}, {"encoded": b"z"}):
        other = Images(images)
        other[19] = dataclasses.replace(other[19], **changed)
        hashes.add(source_hash(other))
    assert len(hashes) == 5
