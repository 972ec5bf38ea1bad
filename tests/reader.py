"""A reader's folder: small stand-ins for all that the documents name."""

import hashlib
import io
import re
import shutil
import zipfile

import documents
import h5py
import numpy as np
from PIL import Image

from nstvis import data, models, weights
from nstvis.data import tiny_imagenet
from nstvis.runs import cache
from nstvis.synthesis import flow

# Widths of AlexNets, and of those that stand for them.
NARROW = {"64": "4", "192": "6", "384": "8", "256": "20", "768": "8", "4096": "8"}
WNIDS = {"n01": "goldfish", "n02": "reel", "n03": "cliff"}


def write(folder):
    """Writes everything; whoever runs commands there keeps its `cache`."""
    write_pictures(folder)
    write_networks(folder)
    write_tiny_imagenet(folder / "FOLDER")
    write_imagenet(folder / "FOLDER")
    write_table(folder / "FOLDER")
    for name, content in documents.files().items():
        (folder / name).write_text(content)


def noise(seed, width=40, height=30):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed):
    file = io.BytesIO()
    noise(seed, 64, 64).save(file, "JPEG")
    return file.getvalue()


def write_pictures(folder):
    """A photograph, paintings, masks of both, frames and their flow."""
    for number, name in enumerate(("photo", "painting", "a", "b")):
        noise(number).save(folder / f"{name}.jpg")
    mask = np.zeros((30, 40, 3), np.uint8)
    mask[:, 20:] = 255
    for name in ("photo", "a", "b"):
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
    shutil.copytree(documents.ROOT / "docs/style", folder / "docs/style")
    for name in ("PHOTOS", "FRAMES", "FLOW", "CONTENTS", "STYLES"):
        (folder / name).mkdir()
    for number in range(16):
        noise(number).save(folder / f"PHOTOS/{number}.jpg")
    for number in range(8):  # as many as the block of Python makes, which runs later
        noise(number).save(folder / f"FRAMES/{number}.png")
        if number:
            still = np.zeros((30, 40, 2), np.float32)
            flow.write(folder / f"FLOW/{number}.flo", still)
    noise(0).save(folder / "CONTENTS/photo.jpg")
    noise(1).save(folder / "STYLES/painting.jpg")


def write_networks(folder):
    """AlexNets of few units; the weights of one lie where torchvision's would."""
    for name in ("alexnet", "alexnet_small"):
        text = (documents.ROOT / f"nstvis/models/{name}.py").read_text()
        narrow = re.sub(r"\b(\d+)\b(?=,)", lambda x: NARROW.get(x[0], x[0]), text)
        (folder / f"{name}.py").write_text(narrow)
    path = folder / "alexnet.py"
    (folder / "site").mkdir()
    made = folder / "site/made.safetensors"
    weights.save(made, models.load(str(path), "random")[1], ())
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    published = made.rename(made.with_name(f"alexnet-{digest[:8]}.safetensors")).name
    path.write_text(path.read_text().replace("alexnet-owt-7be5be79.pth", published))


def write_tiny_imagenet(folder):
    """An archive of 16 images to learn and 8 to validate."""
    wnids, names = [*WNIDS], [f"val_{i}.JPEG" for i in range(8)]
    table = (f"{name}\t{wnids[i % 3]}\t0\t0\t9\t9\n" for i, name in enumerate(names))
    members = {
        "wnids.txt": "\n".join(wnids),
        "words.txt": "".join(f"{wnid}\t{word}\n" for wnid, word in WNIDS.items()),
        "val/val_annotations.txt": "".join(table),
    }
    members |= {f"val/images/{name}": jpeg(i) for i, name in enumerate(names)}
    for number in range(16):
        wnid = wnids[number % 3]
        members[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg(100 + number)
    folder.mkdir()
    with zipfile.ZipFile(folder / tiny_imagenet.ARCHIVE, "w") as file:
        for name, content in members.items():
            file.writestr(f"tiny-imagenet-200/{name}", content)


def write_imagenet(folder):
    """What TFDS takes for imagenet2012: the archive's images under its name."""
    data.load("tiny_imagenet", "train", str(folder))
    (prepared,) = cache.cache_folder().glob("tfds/*/tiny_imagenet/1.0.0")
    target = folder / "imagenet2012/5.1.0"
    target.mkdir(parents=True)
    for path in prepared.iterdir():
        content = path.read_bytes()
        if path.suffix == ".json":
            content = content.replace(b"tiny_imagenet", b"imagenet2012")
            content = content.replace(b"1.0.0", b"5.1.0")
        name = path.name.replace("tiny_imagenet", "imagenet2012")
        (target / name).write_bytes(content)


def write_table(folder):
    """Images in an HDF5 file, and their classes in a CSV file."""
    lines = [f"{number},{('cat', 'dog')[number % 2]}\n" for number in range(16)]
    (folder / "labels.csv").write_text("".join(lines))
    with h5py.File(folder / "images.h5", "w") as file:
        for number in range(16):
            file[str(number)] = np.frombuffer(jpeg(number), np.uint8)
