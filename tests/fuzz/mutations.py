"""Damage: to bytes, to JSON, to members of zip archives."""

import copy
import io
import json
import zipfile

ODD = [
    *(None, True, -1, 0, 1, 2, 2**31, 2**32 - 1, 2**63, 2**70, 1e308, -0.5, "", "\n"),
    *("x" * 3000, "\x1b[2J\u202e", "../../x", [], {}, [[]], {"a": {}}, [2**40], ["a"]),
]
_NUMBERS = [0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]


def of_bytes(random, raw, other=b""):
    """Returns bytes with one to four mistakes in them."""
    raw = bytearray(raw)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        at = random.randrange(len(raw) + 1)
        size = min(random.choice([1, 1, 2, 4, 4, 8, 64, 1000]), len(raw) - at)
        match random.randrange(8):
            case 0:
                raw[at : at + 1] = bytes(
                    b ^ 1 << random.randrange(8) for b in raw[at:][:1]
                )
            case 1:
                raw[at : at + size] = random.randbytes(size)
            case 2:
                order = random.choice(["little", "big"])
                raw[at : at + 4] = random.choice(_NUMBERS).to_bytes(4, order)
            case 3:
                del raw[at : at + size]
            case 4:
                raw[at:at] = raw[at : at + size] * random.choice([1, 2, 100])
            case 5:
                del raw[at:]
            case 6:
                begin = random.randrange(len(raw) + 1)
                raw[at : at + size] = (other or raw)[begin : begin + size]
            case 7:
                raw[at : at + size] = bytes([random.choice([0, 255])]) * size
    return bytes(raw)


def of_json(random, tree):
    """Returns JSON in which one to three values are others, or gone."""
    tree = {"": copy.deepcopy(tree)}
    for _ in range(random.randint(1, 3)):
        place, key = tree, ""
        while (
            isinstance(place[key], dict | list) and place[key] and random.random() < 0.8
        ):
            place = place[key]
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = random.choice(keys)
        kind = random.random()
        if kind < 0.15 and key != "":
            del place[key]
        elif kind < 0.2:
            place[key] = json.loads("[" * 900 + "]" * 900)
        else:
            place[key] = copy.deepcopy(random.choice(ODD))
        if not tree[""]:
            break
    return tree[""]


def of_json_bytes(random, raw):
    """Returns damaged JSON: of other values, with mistakes, or too deep to parse."""
    kind = random.random()
    if kind < 0.03:
        return b"[" * 100_000
    try:
        tree = json.loads(raw) if kind < 0.7 else None
    except ValueError:
        tree = None
    return json.dumps(of_json(random, tree)).encode() if tree else of_bytes(random, raw)


def of_zip(random, raw):
    """Returns an archive whose checksums are right, and whose members are not."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in random.sample(list(members), min(len(members), random.randint(1, 2))):
        kind = random.random()
        if kind < 0.85:
            members[name] = of_bytes(random, members[name])
        elif kind < 0.9:
            members[name] = bytes(random.choice([0, 10, 10**7]))
        elif kind < 0.95:
            members[random.choice([name, "x\n/../" * 9])] = members.pop(name)
        else:
            del members[name]
    compression = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
