"""Weights: every source and format, the layouts, and what is refused."""

import hashlib
import http.server
import itertools
import json
import math
import os
import threading
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nstvis import stored, weights

SHAPES = {
    "conv1.kernel": (5, 4, 3, 2),
    "conv1.bias": (2,),
    "fc6.kernel": (8, 7),
    "fc6.bias": (7,),
}
PREFIXES = {"conv1": "features.0", "fc6": "classifier.1"}


def load(source, **options):
    return weights.load(
        str(source), "toynet", SHAPES, torchvision_names=PREFIXES, **options
    )


def draw(seed=0):
    random = np.random.default_rng(seed)
    return {k: random.standard_normal(v).astype("f4") for k, v in SHAPES.items()}


def in_torch_layout(params, prefixes):
    """Spelled out, unlike in the module, which handles both kinds in one line."""
    conv, fc = prefixes["conv1"], prefixes["fc6"]
    return {
        f"{conv}.weight": params["conv1.kernel"].transpose(3, 2, 0, 1).copy(),
        f"{conv}.bias": params["conv1.bias"],
        f"{fc}.weight": params["fc6.kernel"].T.copy(),
        f"{fc}.bias": params["fc6.bias"],
    }


def save_torch(path, tensors):
    torch = pytest.importorskip("torch", reason="PyTorch writes the file")
    torch.save({name: torch.from_numpy(t) for name, t in tensors.items()}, path)


def save_orbax(path, tensors):
    from orbax.checkpoint import v1 as ocp

    tree = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        tree.setdefault(layer, {})[kind] = tensor
    ocp.save(path, tree)


SAVERS = {
    "x.pth": save_torch,
    "x.pt": save_torch,
    "x.safetensors": lambda path, tensors: save_file(tensors, path),
    "x.npz": lambda path, tensors: np.savez(path, **tensors),
    "compressed.npz": lambda path, tensors: np.savez_compressed(path, **tensors),
    "orbax": save_orbax,
}
EVERY_FORMAT = pytest.mark.parametrize("name", SAVERS)


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], array)


# Files.


@EVERY_FORMAT
def test_loads_jax_layout(tmp_path, name):
    params = draw()
    SAVERS[name](tmp_path / name, params)
    assert_equal(load(tmp_path / name), params)


@EVERY_FORMAT
@pytest.mark.parametrize(
    "prefixes", [PREFIXES, {"conv1": "conv1", "fc6": "fc6"}], ids=["torchvision", "own"]
)
def test_loads_torch_layout(tmp_path, name, prefixes):
    params = draw()
    SAVERS[name](tmp_path / name, in_torch_layout(params, prefixes))
    assert_equal(load(tmp_path / name), params)


@EVERY_FORMAT
def test_returns_only_what_is_wanted(tmp_path, name):
    params = draw()
    SAVERS[name](tmp_path / name, params)
    wanted = {"conv1.bias", "conv1.kernel"}
    expected = {key: params[key] for key in SHAPES if key in wanted}
    assert_equal(load(tmp_path / name, wanted=wanted), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["x.safetensors", "orbax"])
def test_converts_to_float32(tmp_path, name, dtype):
    params = {key: array.astype(dtype) for key, array in draw().items()}
    SAVERS[name](tmp_path / name, params)
    expected = {key: array.astype(np.float32) for key, array in params.items()}
    assert_equal(load(tmp_path / name), expected)


def test_a_relative_path_and_a_model_without_torchvision_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = draw()
    save_orbax(tmp_path / "orbax", params)
    found = weights.load("orbax", "toynet", SHAPES, torchvision_names={})
    assert_equal(found, params)


@EVERY_FORMAT
def test_reports_all_misfits_at_once(tmp_path, name):
    params = draw()
    del params["conv1.bias"]
    params |= {"extra.bias": np.ones(3, "f4"), "fc6.kernel": np.ones((7, 8), "f4")}
    SAVERS[name](tmp_path / name, params)
    with pytest.raises(ValueError, match="toynet") as error:
        load(tmp_path / name, wanted=["conv1.kernel"])
    message = str(error.value)
    assert str(tmp_path / name) in message
    assert "missing: conv1.bias" in message
    assert "unknown: extra.bias" in message
    assert "fc6.kernel is (7, 8) and should be (8, 7)" in message


def test_tells_a_wrong_shape_in_the_layout_of_the_file(tmp_path):
    tensors = in_torch_layout(draw(), PREFIXES)
    tensors["features.0.weight"] = np.ones((2, 3, 5, 5), "f4")
    np.savez(tmp_path / "x.npz", **tensors)
    complaint = r"features.0.weight is \(2, 3, 5, 5\) and should be \(2, 3, 5, 4\)"
    with pytest.raises(ValueError, match=complaint):
        load(tmp_path / "x.npz")


def test_abridges_long_lists(tmp_path):
    extra = {f"extra{i}.bias": np.ones(1, "f4") for i in range(25)}
    SAVERS["x.npz"](tmp_path / "x.npz", draw() | extra)
    with pytest.raises(ValueError, match="extra9.bias and 15 more") as error:
        load(tmp_path / "x.npz")
    assert "extra10" not in str(error.value)


def test_refuses_a_parameter_under_two_names(tmp_path):
    params = draw()
    params["features.0.bias"] = params["conv1.bias"]
    np.savez(tmp_path / "x.npz", **params)
    with pytest.raises(ValueError, match="given twice: conv1.bias"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_refuses_values_that_are_not_finite(tmp_path, value):
    params = {key: array.astype(np.float64) for key, array in draw().items()}
    params["fc6.bias"][3] = value
    np.savez(tmp_path / "x.npz", **params)
    with pytest.raises(ValueError, match=r"x\.npz.*toynet: not finite: fc6\.bias$"):
        load(tmp_path / "x.npz")
    load(tmp_path / "x.npz", wanted=["conv1.kernel"])


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, "V2", "U3"])
def test_refuses_values_that_are_not_floating_point(tmp_path, dtype):
    np.savez(tmp_path / "x.npz", **{**draw(), "fc6.bias": np.zeros(7, dtype)})
    with pytest.raises(ValueError, match=r"x\.npz.*not floating point: fc6\.bias$"):
        load(tmp_path / "x.npz")


@EVERY_FORMAT
def test_a_damaged_file_is_one_clear_line(tmp_path, name):
    path = tmp_path / name
    SAVERS[name](path, draw())
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_an_npz_runs_no_pickle(tmp_path):
    np.savez(tmp_path / "x.npz", **{**draw(), "fc6.bias": np.full(7, {}, object)})
    with pytest.raises(ValueError, match=r"x\.npz"):
        load(tmp_path / "x.npz")


def assert_refused(path, complaint):
    """Checks that a file is refused in one short line, and in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=complaint) as error:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert path.name in message
    assert message.isprintable()
    assert len(message.replace(str(path), "")) < 1000


def test_reads_arrays_in_fortrans_order(tmp_path):
    params = draw()
    np.savez(tmp_path / "x.npz", **{k: np.asfortranarray(params[k]) for k in params})
    assert_equal(load(tmp_path / "x.npz"), params)


def write_npz(path, header, size, compression=zipfile.ZIP_DEFLATED):
    """Writes weights of which the bias of fc6 has a header of its own, and zeros."""
    np.savez(path, **{key: array for key, array in draw().items() if key != "fc6.bias"})
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("fc6.bias.npy", header + bytes(size))


def npy(descr="'<f4'", shape="(7,)", version=1):
    header = (
        f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    )
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header


@pytest.mark.parametrize(
    ("header", "size", "complaint"),
    [
        (npy(), 2**25, "not as long as its shape"),
        (npy(), 27, "not as long as its shape"),
        (npy(shape="(2**40,)"), 28, "cannot read"),
        (npy(shape="(1099511627776,)"), 28, "not as long as its shape"),
        (npy(shape="(-1,)"), 28, "malformed"),
        (npy(shape="(True,)"), 28, "malformed"),
        (npy(shape="(1,)*99"), 28, "cannot read"),
        (npy(version=2), 28, "no array of np.savez"),
        (npy(version=2)[:8] + b"\xff\xff\xff\xff", 2**25, "no array of np.savez"),
        (npy(descr="'|O'"), 56, "arrays of objects"),
        (npy(descr="[('a', '|O')]"), 56, "arrays of objects"),
        (npy(descr="'V99999999'"), 28, "not as long as its shape"),
        (npy(descr="(" * 3000), 28, "cannot read"),
        (b"", 0, "cannot read"),
    ],
)
def test_refuses_hostile_arrays(tmp_path, header, size, complaint):
    write_npz(tmp_path / "x.npz", header, size)
    assert_refused(tmp_path / "x.npz", complaint)


def test_refuses_other_compressions_and_many_members(tmp_path, monkeypatch):
    write_npz(tmp_path / "x.npz", npy(), 28, zipfile.ZIP_LZMA)
    assert_refused(tmp_path / "x.npz", "compressed")
    monkeypatch.setattr(stored, "MOST_TENSORS", 3)
    write_npz(tmp_path / "x.npz", npy(), 28)
    assert_refused(tmp_path / "x.npz", "over 3 members")


def write_safetensors(path, header, size=0):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))


def entry(dtype="F32", shape=(7,), offsets=(0, 28)):
    return {"fc6.bias": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (entry(), "toynet: missing: conv1.kernel, conv1.bias, fc6.kernel$"),
        (entry(shape=[2**40], offsets=[0, 2**42]), "cut short"),
        (entry(shape=[2**70], offsets=[0, 2**72]), "malformed"),
        (entry(shape=[7.0]), "malformed"),
        (entry(shape=[True] * 7), "malformed"),
        (entry(shape=[-7, -1]), "malformed"),
        (entry(shape=[0] * 10**4), "malformed"),
        (entry(shape="7"), "malformed"),
        (entry(shape=[8]), "not as long as its shape"),
        (entry(offsets=[28, 0]), "not as long as its shape"),
        (entry(offsets=[1, 29]), "cut short"),
        (entry(offsets=[0]), "cannot read"),
        (entry(dtype="F33"), "unknown form"),
        (entry(dtype=["F32"]), "unknown form"),
        ({"fc6.bias": [7]}, "unknown form"),
        ({"__metadata__": []}, "malformed"),
        ({f"\033]{i}" * 99: entry()["fc6.bias"] for i in range(30)}, "and 20 more$"),
        (b"[" * 100_000, "cannot read"),
        (b"[]", "cannot read"),
        (b"\xff{", "cannot read"),
        (b" " * (2**22 + 1), "too long"),
    ],
)
def test_refuses_hostile_headers(tmp_path, header, complaint):
    write_safetensors(tmp_path / "x.safetensors", header, 28)
    assert_refused(tmp_path / "x.safetensors", complaint)


def test_refuses_a_misfit_before_it_reads_it(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", entry("F64", [2**37], [0, 2**40]))
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(2**40 + 2**10)
    assert_refused(tmp_path / "x.safetensors", "should be")


@pytest.mark.parametrize(
    "classes", ['"ab"', "[1]", "{}", "[", "[" * 50_000, '["a", []]']
)
def test_refuses_classes_that_are_no_list_of_names(tmp_path, classes):
    save_file(draw(), tmp_path / "x.safetensors", {"classes": classes})
    with pytest.raises(ValueError, match=r"x\.safetensors: ") as error:
        weights.classes(str(tmp_path / "x.safetensors"), "toynet")
    assert "\n" not in str(error.value)


def rewritten(path, key, shape, chunk):
    """Gives a tensor of an Orbax directory another shape and other chunks."""
    ts = pytest.importorskip("tensorstore", reason="Orbax brings it")

    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    metadata = {"shape": shape, "chunk_grid": grid, "codecs": codecs}
    metadata["data_type"] = "float32"
    store = {"driver": "ocdbt", "base": f"file://{path}/state/", "path": f"{key}/"}
    spec = {"driver": "zarr3", "kvstore": store, "metadata": metadata}
    ts.open(spec, create=True, delete_existing=True).result()


@pytest.mark.parametrize(
    ("shape", "chunk", "complaint"),
    [
        ([2**40], [2**40], r"fc6.bias is \(1099511627776,\) and should be \(7,\)"),
        ([7], [2**40], "fc6.bias is stored in chunks larger than itself"),
    ],
)
def test_refuses_an_orbax_directory_of_huge_arrays(tmp_path, shape, chunk, complaint):
    save_orbax(tmp_path / "orbax", draw())
    rewritten(tmp_path / "orbax", "fc6.bias", shape, chunk)
    assert_refused(tmp_path / "orbax", complaint)


def test_refuses_hostile_metadata_of_orbax(tmp_path):
    save_orbax(tmp_path / "orbax", draw())
    metadata = tmp_path / "orbax/state/_METADATA"
    for text in ("[" * 100_000, "[]", "{}", '{"tree_metadata": {"a": 1}}', "\xff"):
        metadata.write_text(text)
        assert_refused(tmp_path / "orbax", "cannot read|missing")
    metadata.write_text(" " * (2**22 + 1))
    assert_refused(tmp_path / "orbax", "_METADATA is too long")
    metadata.unlink()
    with pytest.raises((ValueError, OSError)) as error:
        load(tmp_path / "orbax")
    assert "\n" not in str(error.value)
    os.mkfifo(metadata)
    assert_refused(tmp_path / "orbax", "_METADATA is no regular file")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.npz"])
def test_refuses_a_pipe_without_waiting_for_it(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert_refused(tmp_path / name, "no regular file")


def test_a_missing_file_names_what_is_near_and_what_is_accepted(tmp_path):
    (tmp_path / "alexnet.npz").touch()
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*/alexnet\.npz'") as e:
        load(tmp_path / "alxnet.npz")
    for accepted in ("random", "bundled", "torchvision", ".safetensors", "Orbax"):
        assert accepted in str(e.value)
    with pytest.raises(FileNotFoundError, match="did you mean 'random'"):
        load("randm")
    with pytest.raises(FileNotFoundError, match="no weights"):
        load(tmp_path / "no" / "such" / "folder.npz")


def test_an_unknown_suffix_names_what_is_accepted(tmp_path):
    (tmp_path / "x.h5").touch()
    with pytest.raises(ValueError, match=r"x\.h5.*\.safetensors, \.npz"):
        load(tmp_path / "x.h5")


# random.


def test_random_is_he_normal():
    shapes = {
        "conv.kernel": (5, 5, 64, 96),
        "fc.kernel": (800, 500),
        "fc.bias": (500,),
    }
    found = weights.load("random", "toynet", shapes, torchvision_names={})
    for name, fan_in in (("conv.kernel", 5 * 5 * 64), ("fc.kernel", 800)):
        assert found[name].shape == shapes[name]
        assert found[name].dtype == np.float32
        assert found[name].std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert abs(found[name].mean()) < 0.02 * math.sqrt(2 / fan_in)
    assert not found["fc.bias"].any()


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(list(SHAPES))), st.integers(0, 2**63))
def test_random_depends_on_seed_and_name_alone(wanted, seed):
    whole = load("random", seed=seed)
    part = load("random", seed=seed, wanted=wanted)
    assert_equal(part, {name: whole[name] for name in SHAPES if name in wanted})


def test_random_differs_between_seeds_and_names():
    shapes = {f"layer{i}.kernel": (3, 3) for i in range(3)}
    kernels = [
        kernel.tobytes()
        for seed in range(3)
        for kernel in weights.load(
            "random", "toynet", shapes, torchvision_names={}, seed=seed
        ).values()
    ]
    assert all(a != b for a, b in itertools.combinations(kernels, 2))


# bundled.


def test_loads_bundled_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BUNDLED", tmp_path)
    params = draw()
    save_file(params, tmp_path / "toynet.safetensors")
    assert_equal(load("bundled"), params)


def test_names_the_models_with_bundled_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BUNDLED", tmp_path)
    with pytest.raises(ValueError, match="bundled for toynet, only for: none"):
        load("bundled")
    for name in ("b", "a"):
        save_file(draw(), tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="only for: a, b; use random or a path"):
        load("bundled")


# torchvision.


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that stands for torchvision's site; the cache is in `tmp_path` too."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(weights, "TORCHVISION_URL", f"{folder.as_uri()}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def publish(site, params):
    """Puts a genuine file on the site, and returns its name."""
    save_torch(site / "new.pth", in_torch_layout(params, PREFIXES))
    digest = hashlib.sha256((site / "new.pth").read_bytes()).hexdigest()
    return (site / "new.pth").rename(site / f"toy-net-{digest[:8]}.pth").name


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "nstvis").iterdir())


def test_downloads_once(tmp_path, site):
    params = draw()
    file = publish(site, params)
    assert_equal(load("torchvision", torchvision_file=file), params)
    assert cached(tmp_path) == [file]
    (site / file).unlink()
    assert_equal(load("torchvision", torchvision_file=file), params)


def test_shows_progress(site, capsys):
    file = publish(site, draw())
    load("torchvision", torchvision_file=file)
    err = capsys.readouterr().err
    assert file in err
    assert "100%" in err


def test_the_cache_is_in_the_home_folder_by_default(tmp_path, site, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = publish(site, draw())
    load("torchvision", torchvision_file=file)
    assert (tmp_path / "home" / ".cache" / "nstvis" / file).exists()


def test_refuses_a_download_that_is_not_genuine(tmp_path, site):
    file = publish(site, draw())
    (site / file).write_bytes((site / file).read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{file}.*sha256.*by hand to .*{file}"):
        load("torchvision", torchvision_file=file)
    assert cached(tmp_path) == []


def test_replaces_a_damaged_file_in_the_cache(tmp_path, site, caplog):
    params = draw()
    file = publish(site, params)
    load("torchvision", torchvision_file=file)
    (tmp_path / "cache" / "nstvis" / file).write_bytes(b"damaged")
    assert_equal(load("torchvision", torchvision_file=file), params)
    assert "downloading it again" in caplog.text
    assert cached(tmp_path) == [file]


def test_a_failed_download_says_what_to_do(tmp_path, site):
    target = tmp_path / "cache" / "nstvis" / "toy-01234567.pth"
    with pytest.raises(ConnectionError, match="cannot download file://") as error:
        load("torchvision", torchvision_file=target.name)
    assert str(target) in str(error.value)
    assert "\n" not in str(error.value)
    assert cached(tmp_path) == []


@pytest.fixture
def server(site, monkeypatch):
    """The same site, by HTTP."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(site))

        def log_message(self, format, *args):
            """Keeps quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(weights, "TORCHVISION_URL", url)
        monkeypatch.setattr(weights, "CAFFE_URL", url)
        monkeypatch.setenv("no_proxy", "*")
        yield server
        server.shutdown()


@pytest.mark.usefixtures("server")
def test_downloads_by_http(site):
    params = draw()
    file = publish(site, params)
    assert_equal(load("torchvision", torchvision_file=file), params)


@pytest.mark.usefixtures("server")
def test_downloads_caffes_weights_and_keeps_them(site, server):
    params = draw()
    file = publish(site, params)
    assert_equal(load("caffe", caffe_file=file), params)
    server.shutdown()
    assert_equal(load("caffe", caffe_file=file), params)


def test_there_are_no_weights_of_caffes_for_every_network():
    with pytest.raises(ValueError, match="no weights of Caffe's are known for toynet"):
        load("caffe", torchvision_file="toy-0.pth")


def test_loads_what_caffes_file_names_otherwise(tmp_path):
    params = draw()
    np.savez(tmp_path / "x.npz", **in_torch_layout(params, PREFIXES | {"fc6": "fc.0"}))
    assert_equal(load(tmp_path / "x.npz", caffe_names={"fc6": "fc.0"}), params)


@pytest.mark.usefixtures("server")
def test_a_file_that_is_not_published_says_what_to_do(tmp_path):
    with pytest.raises(ConnectionError, match=r"toy-0\.pth.*404.*by hand"):
        load("torchvision", torchvision_file="toy-0.pth")
    assert cached(tmp_path) == []


def test_a_refused_connection_says_what_to_do(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:.*by hand"):
        load("torchvision", torchvision_file="toy-0.pth")


def test_torchvision_does_not_publish_every_model():
    with pytest.raises(ValueError, match="publishes no weights for toynet"):
        load("torchvision")


def test_the_card_of_the_bundled_weights_is_theirs():
    for path in weights.BUNDLED.glob("*.safetensors"):
        card = path.with_suffix(".md").read_text()
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
        assert path.stat().st_size < 12e6
