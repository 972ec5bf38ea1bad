"""The reader of PyTorch files, against PyTorch itself and against hostile files."""

import dataclasses
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstvis import torch_files, weight_files

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
FLOATS = ["float64", "float32", "float16", "bfloat16"]
DTYPES = [*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool"]
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def import_torch():
    return pytest.importorskip("torch", reason="PyTorch is the oracle")


def read_torch(path):
    with weight_files.opened(path) as file:
        found = {n: np.empty(t.shape, t.dtype) for n, t in file.tensors.items()}
        for name, array in found.items():
            file.read(name, array)
    return found


def save(path, content, zipped):
    torch = import_torch()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def assert_same(tensors, expected):
    torch = import_torch()
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        tensor = tensor.detach().contiguous()
        assert tensors[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert tensors[name].shape == tuple(tensor.shape)
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert tensors[name].tobytes() == raw


@FORMATS
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_reads_what_torch_wrote(tmp_path_factory, zipped, data):
    torch = import_torch()
    state = {}
    for i in range(data.draw(st.integers(1, 4))):
        shape = data.draw(SHAPES)
        dtype = getattr(torch, data.draw(st.sampled_from(DTYPES)))
        tensor = (torch.randn(shape) * 50).to(dtype)
        state[f"layer{i}"] = tensor.permute(
            data.draw(st.permutations(range(len(shape))))
        )
    path = tmp_path_factory.mktemp("torch") / "weights.pth"
    save(path, state, zipped)
    assert_same(read_torch(path), state)


@FORMATS
def test_reads_views_of_a_shared_storage(tmp_path, zipped):
    torch = import_torch()
    base = torch.arange(60.0)
    state = {
        "whole": base,
        "offset": base[7:19],
        "strided": base.reshape(6, 10)[1::2, 2:9:3],
        "scalar": base[42],
        "parameter": torch.nn.Parameter(base[:6].reshape(2, 3).t()),
    }
    save(tmp_path / "x.pth", state, zipped)
    tensors = read_torch(tmp_path / "x.pth")
    assert_same(tensors, state)
    tensors["whole"][:] = 0
    assert tensors["scalar"] == 42


@FORMATS
def test_reads_a_modules_state_dict(tmp_path, zipped):
    torch = import_torch()
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.BatchNorm2d(4))
    state = module.state_dict()
    save(tmp_path / "x.pth", state, zipped)
    del state["1.num_batches_tracked"]
    assert_same(read_torch(tmp_path / "x.pth"), state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_unwraps_checkpoints_and_module_prefixes(tmp_path, wrapper):
    torch = import_torch()
    state = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    save(tmp_path / "x.pth", {wrapper: wrapped, "epoch": 3, "note": "hi"}, True)
    assert_same(read_torch(tmp_path / "x.pth"), state)


def test_keeps_a_module_prefix_that_not_all_names_have(tmp_path):
    torch = import_torch()
    state = {"module.a": torch.ones(2), "b": torch.zeros(3)}
    save(tmp_path / "x.pth", state, True)
    assert list(read_torch(tmp_path / "x.pth")) == ["module.a", "b"]


@FORMATS
def test_refuses_a_whole_module(tmp_path, zipped):
    torch = import_torch()
    save(tmp_path / "x.pth", torch.nn.Linear(2, 2), zipped)
    with pytest.raises(ValueError, match=r"x\.pth.*Linear.*state_dict\(\)"):
        read_torch(tmp_path / "x.pth")


@FORMATS
def test_refuses_a_file_cut_anywhere(tmp_path, zipped):
    torch = import_torch()
    path = tmp_path / "x.pth"
    save(path, {"a": torch.arange(50.0), "b": torch.arange(9)}, zipped)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.pth"):
            read_torch(path)


def test_says_that_a_zip_archive_is_cut_short(tmp_path):
    write_zip(tmp_path / "x.pth", b"")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        read_torch(tmp_path / "x.pth")


# From here on files are made by hand, so that no PyTorch is needed.


@dataclasses.dataclass
class Global:
    """Stands for a reference to a global, whether it exists or not."""

    name: str


@dataclasses.dataclass
class Call:
    """Stands for a call of a global, and a state that is then set on the result."""

    function: str
    args: tuple = ()
    state: object = None


@dataclasses.dataclass
class Persistent:
    """Stands for an object outside the pickle."""

    pid: tuple | str


def encode(value):
    """Returns the opcodes that leave a value on the unpickler's stack."""
    match value:
        case Global(name):
            module, _, name = name.rpartition(".")
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Call(function, args, state):
            call = encode(Global(function)) + encode(args) + pickle.REDUCE
            return call + (encode(state) + pickle.BUILD if state else b"")
        case Persistent(pid):
            return encode(pid) + pickle.BINPERSID
        case dict():
            items = b"".join(encode(key) + encode(value[key]) for key in value)
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case tuple():
            return pickle.MARK + b"".join(map(encode, value)) + pickle.TUPLE
        case list():
            items = b"".join(map(encode, value))
            return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
    return pickle.dumps(value, 2)[2:-1]


def dumps(value):
    return b"\x80\x02" + encode(value) + pickle.STOP


def storage(key="0", length=6, kind="torch.FloatStorage"):
    return Persistent(("storage", Global(kind), key, "cpu", length))


NONE = Call("collections.OrderedDict")


def tensor(size=(2, 3), stride=(3, 1), offset=0, of=None, hooks=NONE, more=()):
    rebuild = "torch._utils._rebuild_tensor_v2"
    return Call(rebuild, (of or storage(), offset, size, stride, False, hooks, *more))


DATA = struct.pack("<6f", *range(6))


def write_zip(path, pickled, data=DATA, **members):
    members = {"data.pkl": pickled, "data/0": data, **members}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"any/prefix/{name}", content)


def write_legacy(path, pickled):
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    data = struct.pack("<q", 6) + DATA
    path.write_bytes(b"".join([*head, pickled, pickle.dumps(["0"], 2), data]))


WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


def test_reads_a_hand_made_zip(tmp_path):
    write_zip(tmp_path / "x.pth", dumps({"a": tensor()}))
    np.testing.assert_array_equal(
        read_torch(tmp_path / "x.pth")["a"], np.arange(6, dtype="f4").reshape(2, 3)
    )


def test_reads_big_endian(tmp_path):
    data = np.arange(6, dtype=">f4").tobytes()
    write_zip(tmp_path / "x.pth", dumps({"a": tensor()}), data, byteorder="big")
    found = read_torch(tmp_path / "x.pth")["a"]
    assert found.dtype == np.dtype("f4")
    np.testing.assert_array_equal(found.ravel(), np.arange(6))


@pytest.fixture
def trap(tmp_path):
    """A file that a hostile pickle would create; it must not, in any test."""
    path = tmp_path / "trap"
    yield path
    assert not path.exists()


def hostile(trap):
    """Pickles that would create the file `trap`, by the global that does it."""
    touch = (f"touch {trap}",)
    code = (f"open({str(trap)!r}, 'w').close()",)
    run = Call("subprocess.run", (["touch", str(trap)],))
    return {
        "os.system": Call("os.system", touch),
        "posix.system": Call("posix.system", touch),
        "builtins.eval": Call("builtins.eval", code),
        "builtins.exec": Call(
            "collections.OrderedDict", (Call("builtins.exec", code),)
        ),
        "torch.load": Call("torch.load", (str(trap),)),
        "torch._utils.os.system": Call("torch._utils.os.system", touch),
        "subprocess.run": Call("collections.OrderedDict", state={"_metadata": run}),
    }


def test_the_hostile_pickles_work_where_nothing_is_refused(tmp_path):
    for name in ("os.system", "builtins.eval", "subprocess.run"):
        pickle.loads(dumps(hostile(tmp_path / name)[name]))
        assert (tmp_path / name).exists()


@WRITERS
@pytest.mark.parametrize("name", hostile(""))
def test_refuses_and_runs_nothing(tmp_path, trap, write, name):
    write(tmp_path / "x.pth", dumps({"a": tensor(), "b": hostile(trap)[name]}))
    with pytest.raises(ValueError, match=rf"x\.pth.*{name}.*refused") as error:
        read_torch(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["collections.OrderedDict", "torch.FloatStorage"])
def test_a_pickle_alters_no_global(tmp_path, name):
    build = encode(Global(name)) + encode({"x": 1}) + pickle.BUILD
    write_zip(tmp_path / "x.pth", dumps({"a": tensor()})[:2] + build + pickle.STOP)
    with pytest.raises(ValueError, match="what is no dict"):
        read_torch(tmp_path / "x.pth")


def test_build_on_a_dict_sets_nothing(tmp_path):
    state = Call("collections.OrderedDict", ([("a", tensor())],), {"items": 1})
    write_zip(tmp_path / "x.pth", dumps(state))
    assert list(read_torch(tmp_path / "x.pth")) == ["a"]


@WRITERS
@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (tensor(size=(3, 3)), "outside its storage"),
        (tensor(stride=(4, 1)), "outside its storage"),
        (tensor(offset=1), "outside its storage"),
        (tensor(size=(), stride=(), offset=6), "outside its storage"),
        (tensor(size=(5,), stride=(2**62,)), "outside its storage"),
        (tensor(size=(2, 2**63), stride=(0, 2)), "malformed"),
        (tensor(size=(2**20, 2), stride=(0, 1)), "overlap"),
        (tensor(size=(2**20,), stride=(0,)), "overlap"),
        (tensor(size=(2, 2), stride=(2, 2)), "overlap"),
        (tensor(size=(4, 2), stride=(1, 2)), "overlap"),
        (tensor(size=(1,) * 99, stride=(1,) * 99), "malformed"),
        (tensor(hooks=Call("collections.OrderedDict", ([(1, 2)],))), "hooks"),
        (tensor(more=({"neg": True},)), "conjugated or negated"),
        (tensor(more=({"conj": True},)), "conjugated or negated"),
        (tensor(offset=-1), "malformed"),
        (tensor(stride=(-3, 1)), "malformed"),
        (tensor(size=(-1, 3)), "malformed"),
        (tensor(size=(2, 3, 1)), "malformed"),
        (tensor(of="no storage"), "malformed"),
        (tensor(of=storage(length=7), size=(7,), stride=(1,)), "not whole|damaged"),
        (tensor(of=storage(length=5), size=(5,), stride=(1,)), "not whole|damaged"),
        (tensor(of=storage(key="1")), "not whole|damaged"),
        (tensor(of=storage(length=-1)), "unknown form"),
        (tensor(of=storage(kind="torch.ObjectStorage")), "ObjectStorage, refused"),
        (tensor(of=Persistent(("storage", "O", "0", "cpu", 6))), "unknown form"),
        (tensor(of=Persistent("module")), "unknown form"),
    ],
)
def test_refuses_a_tensor_outside_its_storage(tmp_path, write, bad, complaint):
    write(tmp_path / "x.pth", dumps({"a": bad}))
    with pytest.raises(ValueError, match=rf"x\.pth.*{complaint}"):
        read_torch(tmp_path / "x.pth")


def test_refuses_a_storage_of_two_types(tmp_path):
    other = tensor(of=storage(kind="torch.IntStorage"))
    write_zip(tmp_path / "x.pth", dumps({"a": tensor(), "b": other}))
    with pytest.raises(ValueError, match="two descriptions"):
        read_torch(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1], "a list, not a dict"),
        ({}, "no tensors"),
        ({"a.num_batches_tracked": tensor()}, "no tensors"),
        ({"a": tensor(), "epoch": 3}, "no tensors: epoch"),
        ({"model": {}}, "no tensors"),
        ({"a": tensor(), 1: tensor()}, "names that are no strings"),
        ({"model": {("a",): tensor()}}, "names that are no strings"),
        ({"x" * 999 + "\n": 1}, "no tensors: x{60}\\.\\.\\.$"),
        ({"a\n\033[2J\ud800": 1}, r"no tensors: a\\n\\x1b\[2J\\ud800$"),
    ],
)
def test_refuses_what_is_no_state_dict(tmp_path, content, complaint):
    write_zip(tmp_path / "x.pth", dumps(content))
    with pytest.raises(ValueError, match=rf"x\.pth.*{complaint}"):
        read_torch(tmp_path / "x.pth")


# Pickles of a few bytes that would take gigabytes or for ever, if they were believed.
DOUBLING = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200))
ABUSES = {
    "nested and hashed": b"}" + DOUBLING + b"K\0s",
    "nested and shown": DOUBLING + b"Q",
    "nested as a size": b"ctorch._utils\n_rebuild_tensor_v2\n(N" + DOUBLING + b"tR",
    "nested deeply": b")" + b"\x85" * 15_000,
    "long": b"}" * 30_000,
    "a long string": b"X\xff\xff\xff\xffa",
    "a long number": b"\x8b\xff\xff\xff\x7fa",
    "of protocol 4": b"\x8c\xffa",
    "empty": b"",
    "a missing memo": b"h\0",
    "a missing mark": b"t",
    "half a pair": b"}(Nu",
    "an import": b"\x8c\x02os\x8c\x06system\x93",
    "an instance": b"(ios\nsystem\n",
    "an object": b"cos\nsystem\n)\x81",
}


@WRITERS
@pytest.mark.parametrize("abuse", ABUSES)
def test_a_hostile_pickle_is_one_line_and_little_memory(
    tmp_path, monkeypatch, write, abuse
):
    monkeypatch.setattr(torch_files, "_MOST_OPCODES", 20_000)
    write(tmp_path / "x.pth", b"\x80\x02" + ABUSES[abuse] + b".")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x\.pth") as error:
            read_torch(tmp_path / "x.pth")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_refuses_compressed_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", dumps({"a": tensor()}))
        archive.writestr("a/data/0", DATA)
    with pytest.raises(ValueError, match=r"x\.pth.*compressed"):
        read_torch(tmp_path / "x.pth")


def test_sees_a_flipped_bit(tmp_path):
    write_zip(tmp_path / "x.pth", dumps({"a": tensor()}))
    raw = bytearray((tmp_path / "x.pth").read_bytes())
    raw[raw.index(DATA) + 5] ^= 1
    (tmp_path / "x.pth").write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.pth.*CRC"):
        read_torch(tmp_path / "x.pth")


def test_what_is_not_read_of_a_checkpoint_may_be_odd(tmp_path):
    odd = tensor(of=storage(key="optimizer", length=2**40))
    content = {"model": {"a": tensor()}, "optimizer": {0: odd}, "epoch": 3, 5: [None]}
    write_zip(tmp_path / "x.pth", dumps(content))
    assert list(read_torch(tmp_path / "x.pth")) == ["a"]


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=60))
def test_junk_is_one_clear_error(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("junk") / "x.pth"
    for write in (write_zip, write_legacy, lambda path, junk: path.write_bytes(junk)):
        write(path, junk)
        with pytest.raises(ValueError, match=r"x\.pth"):
            read_torch(path)


def test_refuses_other_zip_archives(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    os.rename(tmp_path / "x.npz", tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth.*no data\.pkl"):
        read_torch(tmp_path / "x.pth")


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "x.pth")
