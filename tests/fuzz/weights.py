"""Weights: .pth of both formats, .safetensors, .npz, Orbax directories."""

import functools
import io
import json
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from nstvis import weights
from tests.fuzz import mutations

SHAPES = {"conv.kernel": (3, 3, 2, 4), "conv.bias": (4,), "fc.kernel": (6, 5)}
_OPCODES = b")]}(tuasRQb\x85\x86\x87\x88\x89Nq\0h\0K\1X\1\0\0\0a\x80\x02\x8a\1\1G."
_GLOBALS = ["torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage", "os\nsystem"]
_GLOBALS += ["collections\nOrderedDict", "torch._utils\n_rebuild_parameter"]


def _params():
    random = np.random.default_rng(0)
    return {k: random.standard_normal(v).astype("f4") for k, v in SHAPES.items()}


def _state_dict():
    """Returns the pickle of the parameters as PyTorch tensors, without PyTorch."""

    def dumps(value):
        return pickle.dumps(value, 2)[2:-1]

    raw = b"\x80\x02}("
    for key, (name, shape) in enumerate(SHAPES.items()):
        size = shape[::-1] if len(shape) < 3 else (*shape[:1:-1], *shape[:2])
        strides = tuple(int(np.prod(size[i + 1 :])) for i in range(len(size)))
        raw += dumps(name.replace("kernel", "weight"))
        raw += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        raw += dumps("storage") + b"ctorch\nFloatStorage\n" + dumps(str(key))
        raw += dumps("cpu") + dumps(int(np.prod(shape))) + b"tQK\0"
        raw += dumps(size) + dumps(strides)
        raw += b"\x89ccollections\nOrderedDict\n)RtR"
    return raw + b"u."


@functools.cache
def _whole():
    """Returns the parameters in all formats that are one file, by suffix."""
    params, npz, packed, torch = _params(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(npz, **params)
    np.savez_compressed(packed, **params)
    with zipfile.ZipFile(torch, "w") as archive:
        archive.writestr("x/data.pkl", _state_dict())
        archive.writestr("x/byteorder", "little")
        for key, array in enumerate(params.values()):
            archive.writestr(f"x/data/{key}", array.tobytes())
    legacy = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
    legacy += [_state_dict(), pickle.dumps([str(i) for i in range(len(SHAPES))], 2)]
    for array in params.values():
        legacy += [array.size.to_bytes(8, "little"), array.tobytes()]
    classes = {"classes": json.dumps(["a", "b"])}
    return {
        "zip.pth": torch.getvalue(),
        "legacy.pth": b"".join(legacy),
        "x.safetensors": safetensors.numpy.save(params, classes),
        "x.npz": npz.getvalue(),
        "packed.npz": packed.getvalue(),
    }


@functools.cache
def _orbax():
    from orbax.checkpoint import v1 as ocp

    folder = Path(tempfile.mkdtemp()) / "orbax"
    tree = {}
    for name, array in _params().items():
        layer, kind = name.split(".")
        tree.setdefault(layer, {})[kind] = array
    ocp.save(folder, tree)
    return folder


def case(random, folder):
    if random.random() < 0.03:
        path = folder / "orbax"
        shutil.copytree(_orbax(), path)
        _damage(random, path)
        return lambda: _load(path)
    name = random.choice(list(_whole()))
    path = folder / name
    path.write_bytes(_damaged(random, name, _whole()[name]))
    return lambda: _load(path)


def _damaged(random, name, raw):
    if random.random() < 0.25:
        return mutations.of_bytes(random, raw)
    if name == "x.safetensors":
        length = int.from_bytes(raw[:8], "little")
        header = mutations.of_json_bytes(random, raw[8 : 8 + length])
        return len(header).to_bytes(8, "little") + header + raw[8 + length :]
    if name == "legacy.pth":
        pickled = _state_dict()
        return raw.replace(pickled, _hostile(random, pickled))
    if name == "zip.pth" and random.random() < 0.7:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["x/data.pkl"] = _hostile(random, members["x/data.pkl"])
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return file.getvalue()
    return mutations.of_zip(random, raw)


def _hostile(random, pickled):
    """Returns a pickle with opcodes that were not there."""
    at = random.randrange(len(pickled))
    more = b"".join(
        f"c{random.choice(_GLOBALS)}\n".encode()
        if random.random() < 0.1
        else bytes([random.choice(_OPCODES)])
        for _ in range(random.choice([1, 2, 10, 100]))
    )
    more *= random.choice([1, 1, 1, 200])
    spliced = pickled[:at] + more + pickled[at + random.choice([0, 0, 1, 5]) :]
    return random.choice([spliced, mutations.of_bytes(random, pickled)])


def _damage(random, path):
    """Damages one or two files of an Orbax directory."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in random.sample(files, random.randint(1, 2)):
        raw = file.read_bytes()
        if random.random() < 0.1:
            file.unlink()
        elif raw[:1] == b"{":
            file.write_bytes(mutations.of_json_bytes(random, raw))
        else:
            file.write_bytes(mutations.of_bytes(random, raw))


def _load(path):
    weights.classes(str(path), "net")
    weights.load(str(path), "net", SHAPES, torchvision_names={})
