"""Folders of images: what is no file, not readable or not there hides nothing."""

import errno
import io
import os
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from nstvis import crops, data, images, pipeline
from nstvis.data import folder as folders
from nstvis.units import patches


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images each; an image's red is its place in the order."""
    for number, name in enumerate(["a/0", "a/1", "a/2", "b/3", "b/4", "b/5"]):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "set"


@pytest.fixture
def damaged(tmp_path):
    return pipeline.Damaged(tmp_path / "damaged.txt")


def load(folder):
    return data.load(f"folder:{folder}", "train")


def evaluated(source, damaged):
    """The indices that an evaluation sees, and the red of their images."""
    batches = list(pipeline.evaluation(source, 8, 3, damaged=damaged, workers=0))
    index, image = (
        np.concatenate([batch[name] for batch in batches])
        for name in ("index", "image")
    )
    return index.tolist(), image[:, 0, 0, 0].tolist()


def trained(source, damaged):
    """The red of the images of an epoch."""
    batches = pipeline.training(
        source,
        8,
        len(source),
        seed=0,
        augmentation=crops.Augmentation(crop=1, color=0),
        damaged=damaged,
        workers=0,
    )
    return sorted(next(iter(batches))["image"][:, 0, 0, 0].tolist())


# What counts as an image.


def test_only_regular_files_are_read(folder, monkeypatch):
    expected = load(folder).ids
    os.mkfifo(folder / "a/pipe.png")
    (folder / "a/link.png").symlink_to("pipe.png")
    (folder / "b/zero.jpg").symlink_to("/dev/zero")
    (folder / "b/folder.png").mkdir()
    monkeypatch.chdir(folder)  # as the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert load(folder).ids == expected


def test_a_picture_of_one_s_own_is_no_pipe_either(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: is no regular file"):
        images.read(tmp_path / "a.png")


def forbid(monkeypatch, path):
    """Makes a folder unreadable, for root as well."""
    scandir = os.scandir

    def refuse(asked):
        if os.fspath(asked).rstrip("/") == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(asked))
        return scandir(asked)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize("name", ["", "b"])
def test_an_unreadable_folder_is_an_error(folder, monkeypatch, name):
    forbid(monkeypatch, folder / name)
    where = str(folder / name)
    with pytest.raises(OSError, match=f"cannot read {where}: Permission denied"):
        load(folder)


def test_a_hidden_folder_need_not_be_readable(folder, monkeypatch):
    (folder / ".Trash").mkdir()
    forbid(monkeypatch, folder / ".Trash")
    assert len(load(folder)) == 6


def test_a_link_to_a_folder_that_is_gone_is_told(folder, caplog):
    (folder / "c").symlink_to("/nowhere/c")
    (folder / ".hidden.swp").symlink_to("/nowhere")
    assert len(load(folder)) == 6
    assert [f"{folder}/c leads nowhere" in line for line in caplog.messages] == [True]


# Images that cannot be read.


def test_what_is_not_there_is_skipped_and_listed(folder, damaged):
    (folder / "b/gone.png").symlink_to("/nowhere/gone.png")
    (folder / "b/circle.png").symlink_to("circle.png")
    source = load(folder)
    before = data.source_hash(source)
    assert source.ids[3:] == tuple(
        f"b/{name}.png" for name in ("3", "4", "5", "circle", "gone")
    )
    (folder / "a/1.png").unlink()
    (folder / "b/4.png").unlink()
    (folder / "b/4.png").mkdir()
    index, red = evaluated(source, damaged)
    assert index == [0, -1, 2, 3, -1, 5, -1, -1, -1]
    assert red == [0, 0, 2, 3, 0, 5, 0, 0, 0]
    listed = dict(line.split("\t") for line in damaged.path.read_text().splitlines())
    assert {id: reason.rpartition(": ")[2] for id, reason in listed.items()} == {
        "a/1.png": "No such file or directory",
        "b/4.png": "Is a directory",
        "b/circle.png": "Too many levels of symbolic links",
        "b/gone.png": "No such file or directory",
    }
    assert set(trained(source, damaged)) == {0, 2, 3, 5}
    assert len(damaged.ids()) == 4
    assert data.source_hash(source) != before  # it is another data set now


def test_an_image_that_goes_away_after_a_scan_is_named(folder):
    source = load(folder)
    pictures = patches.Images([source], 8)
    (folder / "b/4.png").unlink()
    assert pictures[3][0, 0, 0] == 3
    with pytest.raises(ValueError, match=r"^b/4\.png: cannot read .*No such file"):
        pictures[4]


def test_if_none_can_be_read_it_is_an_error(folder, damaged):
    source = load(folder)
    for id in source.ids:
        (folder / id).unlink()
    assert evaluated(source, damaged)[0] == [-1] * 6
    with pytest.raises(ValueError, match="^all 6 images are damaged"):
        trained(source, damaged)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("vanish", [shutil.rmtree, emptied])
@pytest.mark.parametrize("read", [evaluated, trained])
def test_a_disk_that_goes_away_lists_no_image(folder, damaged, vanish, read):
    source = load(folder)
    vanish(folder)
    with pytest.raises(OSError, match=str(folder)):
        read(source, damaged)
    assert damaged.ids() == []


def test_an_error_of_the_disk_lists_no_image(folder, damaged, monkeypatch):
    source = load(folder)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folders.epath.Path, "read_bytes", fail)
    with pytest.raises(OSError, match=r"/a/0\.png: cannot read: Input/output error"):
        evaluated(source, damaged)
    assert damaged.ids() == []


# Buckets.


class Bucket:
    """A path in a bucket whose image `a.png` is gone; all else fails."""

    def __init__(self, path):
        self.path = path

    def __truediv__(self, name):
        return Bucket(f"{self.path}/{name}")

    def __str__(self):
        return self.path

    def expanduser(self):
        return self

    def is_dir(self):
        if self.path == "gs://secret":
            raise RuntimeError("no credentials\nfound")
        return True

    def read_bytes(self):
        if self.path.endswith("a.png"):
            raise FileNotFoundError(self.path)
        raise RuntimeError("the network is down")


def test_a_bucket_s_errors_are_one_line(monkeypatch):
    monkeypatch.setattr(folders.epath, "Path", Bucket)
    source = folders.Files("gs://bucket", ("a.png", "b.png"), ())
    assert source[0].unreadable
    with pytest.raises(OSError, match=r"^gs://bucket/b\.png: cannot read: the network"):
        source[1]
    with pytest.raises(OSError, match="^cannot read gs://secret: no credentials found"):
        data.load("folder:gs://secret", "train")


@pytest.mark.parametrize("data_dir", ["", "/elsewhere"])
@pytest.mark.parametrize("path", ["foo://bar", "file:///tmp", "~x://y"])
def test_an_unknown_protocol_is_one_line(path, data_dir):
    message = f"^cannot read {path}: no such protocol.*gs://, s3://.*$"
    with pytest.raises(ValueError, match=message):
        data.load(f"folder:{path}", "train", data_dir)
