"""Data sets: ids, labels, slices, pickling, preparation, and what is refused."""

import hashlib
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

from nstvis import crops, data, weights
from nstvis.data import tiny_imagenet


def jpeg(color):
    """A picture that no other colour has the bytes of."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (color % 256, color // 256, 0)).save(file, "JPEG")
    return file.getvalue() + color.to_bytes(4)


def run(code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def assert_ids_lead_back(source):
    examples = [source[index] for index in range(len(source))]
    assert [source.index(example.id) for example in examples] == list(
        range(len(source))
    )
    assert pickle.loads(pickle.dumps(source))[0] == examples[0]
    known = [source.id_of(index) for index in range(len(source))]
    assert known == [example.id for example in examples]


def test_ids_are_read_only_where_there_is_no_index():
    class Plain:
        def __getitem__(self, index):
            return data.Example(f"read/{index}", -1, b"")

    class Indexed(Plain):
        def id_of(self, index):
            return f"known/{index}"

    assert [data.id_of(source, 3) for source in (Plain(), Indexed())] == [
        "read/3",
        "known/3",
    ]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_unknown_data_set_names_those_that_there_are():
    with pytest.raises(ValueError, match=r"did you mean 'folder'.*tiny_imagenet"):
        data.load("foldr:x", "train")


# tfds.


class Toy(tfds.core.GeneratorBasedBuilder):
    """Thirty grey pictures, or what `example` makes of them."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name) for name in ("plain", "bare")
    ]

    def _info(self):
        features = {"picture": tfds.features.Image(shape=(None, None, 3))}
        if self.builder_config.name == "plain":
            features["kind"] = tfds.features.ClassLabel(names=["even", "odd"])
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._examples(range(20)), "test": self._examples(range(9))}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, numbers):
        for number in numbers:
            example = {"picture": self.picture(number)}
            if self.builder_config.name == "plain":
                example["kind"] = number % 2
            yield number, example

    def picture(self, number):
        return jpeg(number)


class ToyOfArrays(Toy):
    """One that TFDS must encode, for which it takes TensorFlow."""

    def picture(self, number):
        return np.zeros((8, 8, 3), np.uint8)


class ToyOfTwo(tfds.core.GeneratorBasedBuilder):
    """Two pictures in an example."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        pair = {"left": tfds.features.Image(), "right": tfds.features.Image()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(pair)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"left": jpeg(0), "right": jpeg(1)}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A data folder in which the toy is prepared."""
    folder = str(tmp_path_factory.mktemp("toys"))
    data.load("tfds:toy", "train", folder)
    data.load("tfds:toy/bare", "train", folder)
    return folder


def test_tfds_gives_the_bytes_that_were_put_in(toys):
    source = data.load("tfds:toy", "train", toys)
    assert source.classes == ("even", "odd")
    assert [example.id for example in source] == [f"train/{i:06d}" for i in range(20)]
    assert {(e.label, e.encoded) for e in source} == {
        (number % 2, jpeg(number)) for number in range(20)
    }
    assert_ids_lead_back(source)


def test_tfds_without_labels(toys):
    source = data.load("tfds:toy/bare", "train", toys)
    assert source.classes == ()
    assert {example.label for example in source} == {-1}


@pytest.fixture(scope="module")
def whole(toys):
    """All examples by id."""
    return {e.id: e for s in ("train", "test") for e in data.load("tfds:toy", s, toys)}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 8))
def test_a_slice_changes_no_id(toys, whole, start, stop, test_start):
    split = f"test[{test_start}:]+train[{start}:{stop}]"
    source = data.load("tfds:toy", split, toys)
    assert [example.id for example in source] == [
        f"{name}/{position:06d}"
        for name, positions in (
            ("test", range(test_start, 9)),
            ("train", range(start, stop)),
        )
        for position in positions
    ]
    assert all(whole[example.id] == example for example in source)
    assert_ids_lead_back(source)


def test_other_slices(toys):
    def positions(split):
        source = data.load("tfds:toy", split, toys)
        return [int(example.id.removeprefix("train/")) for example in source]

    assert positions("train[80%:]") == [16, 17, 18, 19]
    assert positions("train[-2:]") == [18, 19]
    assert len(data.load("tfds:toy", "all", toys)) == 29


def test_indices_are_those_of_a_list(toys):
    source = data.load("tfds:toy", "train[5:]", toys)
    assert source[-1].id == "train/000019"
    assert source[np.int64(0)].id == "train/000005"
    for index in (15, -16):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize("id", ["train/000004", "train/20", "test/000005", "", "5"])
def test_an_unknown_id_is_refused(toys, id):
    source = data.load("tfds:toy", "train[5:]", toys)
    with pytest.raises(ValueError, match=r"no example .* 'train/000005' is one"):
        source.index(id)


@pytest.mark.slow
def test_another_process_reads_it_too(toys, tmp_path):
    sources = [
        data.load("tfds:toy", "train[3:]", toys),
        data.load(f"folder:{images(tmp_path / 'photos', 'a/b.jpg')}", "train"),
    ]
    pickled = pickle.dumps(sources)
    assert len(pickled) < 10_000
    (tmp_path / "sources").write_bytes(pickled)
    result = run(
        "import pickle, pathlib, sys\n"
        "sources = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print([(source[0].id, len(source[0].encoded)) for source in sources])",
        tmp_path / "sources",
    )
    expected = [(source[0].id, len(source[0].encoded)) for source in sources]
    assert result.stdout == f"{expected}\n", result.stderr


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("tfds:toi", "train", r"^no TensorFlow data set 'toi': did you mean 'toy'"),
        ("tfds:", "train", r"^no TensorFlow data set ''"),
        ("tfds:toy/plane", "train", r"no toy configuration 'plane'.*mean 'plain'"),
        ("tfds:toy:7.0.0", "train", r"toy.*only: 1\.0\.0"),
        ("tfds:toy", "trian", r"no split 'trian' of toy: .*\['train', 'test'\]"),
        ("tfds:toy", "train[", r"no split 'train\[' of toy"),
        ("tfds:toy", "train[50:]", r"no split 'train\[50:\]' of toy.*20 examples"),
        ("tfds:toy", "train[:0]", r"no examples in 'train\[:0\]' of toy"),
        ("tfds:toy_of_two", "train", r"one image per example, not left, right"),
        (
            "tfds:toy_of_arrays",
            "train",
            r"toy_of_arrays here .*tensorflow.*folder:PATH",
        ),
    ],
)
def test_tfds_refuses_in_one_line(toys, monkeypatch, dataset, split, message):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match=message) as error:
        data.load(dataset, split, toys)
    assert "\n" not in str(error.value)


def test_a_set_prepared_as_tfrecord_is_refused(toys, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(toys, folder)
    info = folder / "toy" / "plain" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"copy/toy.*not ArrayRecords.*data_dir"):
        data.load("tfds:toy", "train", str(folder))


# tiny_imagenet.

TRAIN = {"n02": 4, "n01": 2, "n03": 3}
# In the table, not all in the archive.
VALIDATION = {"val_0.JPEG": "n03", "val_1.JPEG": "n02", "val_2.JPEG": "n01"}
ABSENT = "val_1.JPEG"
ROOT_NAME = "tiny-imagenet-200/"


def archive(folder, train=TRAIN, **replaced):
    """Writes an archive, and returns its path, and its images with their labels."""
    words = "n01\tgoldfish, Carassius auratus\nn02\treel\nn03\tcliff, drop\nn04\tcat\n"
    members = {
        "wnids.txt": "\n".join(train),
        "words.txt": words,
        "val/val_annotations.txt": "".join(
            f"{file}\t{wnid}\t0\t32\t44\t62\n" for file, wnid in VALIDATION.items()
        ),
    }
    wnids = list(train)
    images = {"train": [], "validation": []}
    for label, (wnid, count) in enumerate(train.items()):
        members[f"train/{wnid}/{wnid}_boxes.txt"] = "n_0.JPEG 0 1 2 3\n"
        for number in range(count):
            encoded = jpeg(100 * label + number)
            members[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = encoded
            images["train"].append((label, encoded))
    for number, (file, wnid) in enumerate(VALIDATION.items()):
        if file != ABSENT:
            members[f"val/images/{file}"] = jpeg(9000 + number)
            images["validation"].append((wnids.index(wnid), jpeg(9000 + number)))
    members["test/images/test_0.JPEG"] = jpeg(1)
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / tiny_imagenet.ARCHIVE, "w") as file:
        for name, content in (members | replaced).items():
            file.writestr(ROOT_NAME + name, content)
    return folder / tiny_imagenet.ARCHIVE, images


def examples(folder, split):
    source = data.load("tiny_imagenet", split, str(folder))
    assert_ids_lead_back(source)
    return sorted((example.label, example.encoded) for example in source)


def prepared(tmp_path):
    return sorted(
        path.name for path in tmp_path.glob("cache/nstvis/tfds/*/tiny_imagenet/*")
    )


def test_tiny_imagenet_is_what_is_in_the_archive(tmp_path):
    path, images = archive(tmp_path / "data")
    path.parent.chmod(0o500)
    for split in ("train", "validation"):
        assert examples(path.parent, split) == sorted(images[split])
    source = data.load("tiny_imagenet", "validation[:1]", str(path.parent))
    assert source.classes == ("reel", "goldfish, Carassius auratus", "cliff, drop")
    assert source[0].id == "validation/000000"
    path.parent.chmod(0o700)


def test_archives_are_kept_apart(tmp_path):
    first, images = archive(tmp_path / "a")
    second, others = archive(tmp_path / "b", {"n03": 7, "n01": 1, "n02": 1})
    assert examples(first.parent, "train") == sorted(images["train"])
    assert examples(second.parent, "train") == sorted(others["train"])
    assert examples(first.parent, "train") == sorted(images["train"])


def test_it_is_prepared_once(tmp_path, monkeypatch):
    path, images = archive(tmp_path / "data")
    examples(path.parent, "train")
    monkeypatch.setattr(tiny_imagenet, "_train", None)
    assert examples(path.parent, "train") == sorted(images["train"])


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_it_shows_progress_on_a_terminal_and_nothing_else(terminal, tmp_path):
    path, _ = archive(tmp_path / "data")
    code = f"""import sys
from absl import logging
logging.set_verbosity(logging.INFO)
sys.stderr.isatty = lambda: {terminal}
from nstvis import crops, data, weights
data.load("tiny_imagenet", "train", sys.argv[1])
logging.info("as before")"""
    result = run(code, path.parent)
    assert result.returncode == 0, result.stderr
    assert ("examples/s]" in result.stderr) == terminal
    assert [line for line in result.stderr.splitlines() if "INFO" in line] == [
        "INFO:absl:as before"
    ]
    assert not result.stdout


@pytest.mark.slow
def test_a_killed_preparation_is_begun_again(tmp_path):
    path, images = archive(tmp_path / "data")
    code = """import os, signal, sys
from nstvis import crops, data, weights
from nstvis.data import tiny_imagenet
def die(files):
    yield from list(train(files))[:2]
    os.kill(os.getpid(), signal.SIGKILL)
train, tiny_imagenet._train = tiny_imagenet._train, die
data.load("tiny_imagenet", "train", sys.argv[1])"""
    assert run(code, path.parent).returncode == -signal.SIGKILL
    assert [name.partition(".")[0] for name in prepared(tmp_path)] == ["incomplete"]
    assert examples(path.parent, "train") == sorted(images["train"])


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    path, images = archive(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(tiny_imagenet, "_validation", lambda files: [("nowhere", "n01")])
        with pytest.raises(ValueError, match="nowhere"):
            examples(path.parent, "train")
    assert prepared(tmp_path) == []
    assert examples(path.parent, "train") == sorted(images["train"])


def test_two_processes_may_prepare_it_at_once(tmp_path, monkeypatch):
    path, images = archive(tmp_path / "data")
    validation = tiny_imagenet._validation

    def overtaken(files):
        monkeypatch.setattr(tiny_imagenet, "_validation", validation)
        examples(path.parent, "train")
        yield from validation(files)

    monkeypatch.setattr(tiny_imagenet, "_validation", overtaken)
    assert examples(path.parent, "train") == sorted(images["train"])
    assert prepared(tmp_path) == ["1.0.0"]


def test_a_damaged_archive_is_named(tmp_path):
    path, _ = archive(tmp_path / "data")
    whole = path.read_bytes()
    middle = whole.index(jpeg(101)) + 300
    for damaged in (
        whole[:-100],
        whole[: len(whole) // 2],
        b"",
        whole[:middle] + b"?" + whole[middle + 1 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path} is damaged .* replace it") as e:
            data.load("tiny_imagenet", "train", str(path.parent))
        assert "\n" not in str(e.value)
        assert prepared(tmp_path) == []


def test_another_archive_is_refused(tmp_path):
    path, _ = archive(tmp_path / "data", **{"wnids.txt": "n01\nn02"})
    with pytest.raises(ValueError, match=r"not Tiny ImageNet \('n03'\)"):
        data.load("tiny_imagenet", "train", str(path.parent))


def test_no_archive_where_it_should_be(tmp_path):
    expected = tmp_path / tiny_imagenet.ARCHIVE
    with pytest.raises(FileNotFoundError, match=rf"{expected}: no such file"):
        data.load("tiny_imagenet", "train", str(tmp_path))
    with pytest.raises(ValueError, match="takes no argument"):
        data.load("tiny_imagenet:64", "train", str(tmp_path))


def publish(monkeypatch, path):
    """Lets a file stand for the official one."""
    monkeypatch.setattr(tiny_imagenet, "URL", path.as_uri())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(tiny_imagenet, "SHA256", digest)


def test_the_archive_is_downloaded_once(tmp_path, monkeypatch):
    path, images = archive(tmp_path / "site")
    publish(monkeypatch, path)
    assert examples("", "train") == sorted(images["train"])
    path.unlink()
    assert examples("", "train") == sorted(images["train"])
    shutil.rmtree(tmp_path / "cache" / "nstvis" / "tfds")
    assert examples("", "train") == sorted(images["train"])


def test_a_download_must_be_the_official_archive(tmp_path, monkeypatch):
    path, _ = archive(tmp_path / "site")
    publish(monkeypatch, path)
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(ValueError, match=r"tiny-imagenet-200\.zip arrived damaged"):
        data.load("tiny_imagenet", "train")
    path.unlink()
    with pytest.raises(ConnectionError, match=r"cannot download .*tiny-imagenet"):
        data.load("tiny_imagenet", "train")


def test_tfds_knows_our_builders(tmp_path, monkeypatch):
    path, images = archive(tmp_path / "site")
    publish(monkeypatch, path)
    source = data.load("tfds:tiny_imagenet", "train", str(tmp_path / "tfds"))
    assert sorted((e.label, e.encoded) for e in source) == sorted(images["train"])
    assert (tmp_path / "tfds" / "tiny_imagenet" / "1.0.0").is_dir()
    with pytest.raises(ValueError, match="no primitives configuration 'x'"):
        data.load("tfds:primitives/x", "train", str(tmp_path))


# folder.


def images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    return folder


def ids(source):
    return [example.id for example in source]


def test_folder_of_classes(tmp_path):
    names = ("b/x.jpg", "a/deep/er/2.JPEG", "a/1.webp", "c d/ü.tiff", "loose.png")
    source = data.load(f"folder:{images(tmp_path, *names)}", "train")
    assert source.classes == ("a", "b", "c d")
    assert [(example.id, example.label) for example in source] == [
        ("a/1.webp", 0),
        ("a/deep/er/2.JPEG", 0),
        ("b/x.jpg", 1),
        ("c d/ü.tiff", 2),
        ("loose.png", -1),
    ]
    assert all(source[i].encoded == jpeg(names.index(source[i].id)) for i in range(5))
    assert_ids_lead_back(source)


def test_flat_folder(tmp_path):
    source = data.load(f"folder:{images(tmp_path, 'b.gif', 'a.tif')}", "train")
    assert (ids(source), source.classes) == (["a.tif", "b.gif"], ())
    assert source[0].label == -1
    for id in ("a", "c.gif", ""):
        with pytest.raises(ValueError, match="no image"):
            source.index(id)


PART = st.text("aB1-. é", min_size=1, max_size=3).filter(lambda part: part.strip(". "))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.lists(PART, min_size=1, max_size=3).map("/".join), min_size=1))
def test_any_tree(tmp_path_factory, stems):
    folder = tmp_path_factory.mktemp("tree")
    names = {f"{stem}.jpg" for stem in stems}
    hidden = {n for n in names if n.startswith(".") or "/." in n}
    images(folder, *sorted(names), "kept.png")
    source = data.load(f"folder:{folder}", "train")
    assert ids(source) == sorted(names - hidden | {"kept.png"})
    for example in source:
        name, slash, _ = example.id.partition("/")
        assert (source.classes[example.label] == name) if slash else example.label == -1
    assert_ids_lead_back(source)


def test_splits_are_subfolders(tmp_path):
    images(tmp_path, "train/a/1.jpg", "validation/b/2.jpg")
    assert ids(data.load(f"folder:{tmp_path}", "train")) == ["a/1.jpg"]
    assert ids(data.load(f"folder:{tmp_path}", "validation")) == ["b/2.jpg"]
    with pytest.raises(ValueError, match=r"no split 'test' of .*no folder test$"):
        data.load(f"folder:{tmp_path}", "test")
    with pytest.raises(ValueError, match="no split 'all'"):
        data.load(f"folder:{tmp_path}", "all")


def test_a_folder_without_splits_is_all_of_it(tmp_path):
    images(tmp_path, "a/1.jpg", "b/2.jpg")
    for split in ("train", "all"):
        assert ids(data.load(f"folder:{tmp_path}", split)) == ["a/1.jpg", "b/2.jpg"]
    with pytest.raises(ValueError, match="no folder validation; split=all is all of"):
        data.load(f"folder:{tmp_path}", "validation")


def swapped_profile():
    """A profile in which red and blue are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return (
        profile.replace(b"rXYZ", b"____")
        .replace(b"bXYZ", b"rXYZ")
        .replace(b"____", b"bXYZ")
    )


def test_photographs_are_as_shown_or_as_torchvision_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    stored = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "a.png"
    stored.save(path, exif=exif, icc_profile=swapped_profile())
    with Image.open(path) as opened:  # torchvision's loader of folders
        theirs = np.asarray(opened.convert("RGB"))
    name = f"folder:{tmp_path}"
    plain = data.load(name, "train", as_stored=True)
    plain = pickle.loads(pickle.dumps(plain))
    assert (len(plain), plain.classes, plain.index("a.png")) == (1, (), 0)
    np.testing.assert_array_equal(plain[0].decode(), theirs)
    shown = np.asarray(data.load(name, "train")[0].decode())
    assert shown.shape == (8, 6, 3)
    difference = shown.astype(int) - np.rot90(theirs, -1)[..., ::-1]
    assert np.abs(difference).max() < 3
    box = np.asarray(crops.centered(plain[0], 6))
    np.testing.assert_array_equal(box, theirs[:, 1:7])


@pytest.mark.parametrize(
    ("source", "asked", "expected"),
    [
        ("bundled", "auto", False),
        ("random", "auto", False),
        ("torchvision", "auto", True),
        ("caffe", "auto", False),
        ("files/alexnet-owt-7be5be79.pth", "auto", True),
        ("vgg19-d01eb7cb.pth", "auto", False),
        ("mine.pth", "auto", False),
        ("torchvision", "as_shown", False),
        ("bundled", "as_stored", True),
    ],
)
def test_torchvision_s_weights_see_photographs_as_it_does(source, asked, expected):
    assert weights.as_stored(source, asked) == expected


def test_only_images_count(tmp_path):
    names = ("a/.x.jpg", ".git/x.jpg", "a/x.txt", "a/jpg", "a/x.jpg.tmp", "b/y.npy")
    images(tmp_path, *names)
    with pytest.raises(ValueError, match=r"no images in .* ends in \.jpg, \.jpeg"):
        data.load(f"folder:{tmp_path}", "train")
    images(tmp_path, "c/x.jpg")
    assert data.load(f"folder:{tmp_path}", "train").classes == ("c",)


def test_a_folder_that_is_not_there(tmp_path):
    images(tmp_path, "photos/a.jpg")
    with pytest.raises(FileNotFoundError, match=r"no folder .*mean .*/photos\?"):
        data.load(f"folder:{tmp_path}/photo", "train")
    with pytest.raises(FileNotFoundError, match="it is a file"):
        data.load(f"folder:{tmp_path}/photos/a.jpg", "train")
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.load(f"folder:{tmp_path}/no/such", "train")
    with pytest.raises(ValueError, match="folder:PATH"):
        data.load("folder", "train")
    assert len(data.load("folder:photos", "train", str(tmp_path))) == 1


def test_links_are_followed_but_not_in_circles(tmp_path):
    folder = images(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    images(tmp_path / "elsewhere", "3.jpg", "more/4.jpg")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "5.jpg").symlink_to(tmp_path / "elsewhere" / "3.jpg")
    for name in ("a/up", "b/up", "b/up2", "c/more/up"):
        (folder / name).symlink_to(folder)
    (folder / "b" / "a").symlink_to(folder / "a")
    (folder / "self").symlink_to(folder / "self")
    source = data.load(f"folder:{folder}", "train")
    assert ids(source) == ["a/1.jpg", "a/5.jpg", "b/2.jpg", "c/3.jpg", "c/more/4.jpg"]
    assert source[1].encoded == source[3].encoded


class Bucket(MemoryFileSystem):
    """Stands for Google's storage; counts the requests for lists of files."""

    protocol = "gs"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    listed = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("gs://", "memory://"))

    def find(self, path, *args, **options):
        type(self).listed += 1
        return super().find(path, *args, **options)


@pytest.fixture
def forget_buckets():
    """Makes etils open file systems anew, before and after a test."""
    known = epath.backend._FileSystemSpecBackend._get_filesystem
    known.cache_clear()
    yield
    known.cache_clear()


def test_a_bucket_is_listed_at_once(forget_buckets, monkeypatch):
    for protocol in ("gs", "gcs"):
        monkeypatch.setitem(_registry, protocol, Bucket)
    names = [f"class{i}/{j}.jpg" for i in range(30) for j in range(2)]
    bucket = fsspec.filesystem("gs")
    for number, name in enumerate(names):
        bucket.pipe_file(f"gs://bucket/set/train/{name}", jpeg(number))
    source = data.load("folder:gs://bucket/set", "train")
    assert ids(source) == sorted(names)
    assert Bucket.listed == 1
    assert source[source.index("class2/1.jpg")].encoded == jpeg(5)
    for path, data_dir in (("set", "gs://bucket"), ("gs://bucket/set", "/elsewhere")):
        assert ids(data.load(f"folder:{path}", "train", data_dir)) == sorted(names)


def test_a_bucket_that_takes_another_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(ValueError, match=r"cannot read az://x.*adlfs"):
        data.load("folder:az://x", "train")


def test_a_bucket_without_its_package_says_what_to_install(forget_buckets, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for protocol in ("gs", "gcs"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(ValueError, match=r"cannot read gs://x: .*pip install gcsfs"):
        data.load("folder:gs://x", "train")


def test_folder_of_the_shell_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(images(tmp_path, "photos/a.jpg")))
    assert len(data.load(f"folder:~{os.sep}photos", "train")) == 1
