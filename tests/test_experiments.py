"""Every experiment runs through the launcher and leaves what it says."""

import functools
import json
import math
import os
import pathlib

import launcher
import numpy as np
import pytest
import small
import tifffile
from PIL import Image

from experiments import style
from nstvis import assets, images, models
from nstvis.runs import config as configs
from nstvis.runs import registry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drawn")]

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["--config.size=64", "--config.steps=2", "--config.scales=1"]
# What makes each file of experiments/ run for two steps, and what it then leaves.
ARGUMENTS = {
    "style": [*SMALL, "--config.frame_every=1", "--config.seed=7"],
    "reconstruct": [
        "--config.size=48",
        "--config.steps=2",
        "--config.layers=conv1_1,conv2_1",
    ],
}
FILES = {
    "style": ["G.png", "index.html", "film.png", "loss.png", "metrics.jsonl"],
    "reconstruct": ["reconstruct.png", "reconstruct.csv", "loss.png"],
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs an experiment for two steps, once; returns its workdir."""

    @functools.cache
    def launch(name):
        assert name in ARGUMENTS, f"add {name!r} to ARGUMENTS and FILES in this file"
        workdir = tmp_path_factory.mktemp(name) / "run"
        arguments = [f"--workdir={workdir}", *ARGUMENTS[name]]
        done = launcher.launch(f"--experiment={name}", *arguments)
        launcher.assert_left(done, workdir, FILES[name])
        return workdir

    return launch


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, "uint8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A portrait, once more with transparency, two quite different styles; a network."""
    folder = tmp_path_factory.mktemp("pictures")
    small.write(folder)
    noise(64, 48).save(folder / "content.png")
    noise(64, 48, 4).save(folder / "transparent.png")
    noise(64, 64, seed=1).save(folder / "rough.png")
    noise(4, 4, seed=2).resize((64, 64)).save(folder / "smooth.jpg")
    return folder


def paint(folder, workdir, content, *styles, **changes):
    """Runs the experiment `style` here, in no process of its own."""
    files = {
        "content": str(folder / content),
        "style": ", ".join(str(folder / style) for style in styles),
    }
    network = {"model": str(folder / "tiny.py"), "weights": "random"}
    quick = {"size": 64, "steps": 2, "scales": 1}
    workdir.mkdir()
    fields = files | network | small.PAINTED | quick | changes
    style.run(style.Config(**fields), workdir)
    return workdir


@pytest.fixture(scope="module")
def one_style(folder):
    """The workdir of a run with one of the two styles, written as JPEG."""
    return paint(folder, folder / "one", "content.png", "rough.png", output="G.jpg")


# Their own files' tests, or those of the documents, run them through the launcher.
ELSEWHERE = {
    "evaluate",
    "explain_unit",
    "features",
    "preflight",
    "correspondence",
    "evolution",
    "invariance",
    "occlusion",
    "sanity",
}
ELSEWHERE |= {"compare", "scores", "sweep", "train", "units"}


@pytest.mark.parametrize(
    "name", sorted({*registry.names(ROOT / "experiments")} - ELSEWHERE)
)
def test_every_experiment_runs_for_two_steps(name, launch):
    workdir = launch(name)
    if "metrics.jsonl" in FILES[name]:
        assert [row["step"] for row in rows(workdir)] == [1, 2]
        assert (workdir / "checkpoints/2").is_dir()


def test_style_writes_frames_and_the_config_into_the_picture(launch):
    workdir = launch("style")
    frames = sorted(path.name for path in (workdir / "frames").iterdir())
    assert frames == ["000000.png", "000001.png", "000002.png"]
    with Image.open(assets.FOLDER / "demo_content.jpg") as content:
        expected = images.fitted_size(content.size, 64)
    result = images.read(workdir / "G.png")
    assert result.size == expected
    assert images.read(workdir / "film.png").width > 3 * expected[0]
    config = json.loads((workdir / "run.json").read_text())["config"]
    assert config["seed"] == 7
    settings = images.read_settings(workdir / "G.png")
    assert settings == config | {"step": 2}
    # The steps are JSON integers, and every number can be plotted.
    for row in rows(workdir):
        assert isinstance(row["step"], int)
        assert all(math.isfinite(number) for number in row.values())


def test_the_defaults_need_no_files_but_the_bundled_ones(launch):
    workdir = launch("style")
    config = json.loads((workdir / "run.json").read_text())["config"]
    defaults = [config[name] for name in ("weights", "content", "style")]
    assert defaults == ["bundled", "demo", "demo"]
    first, last = rows(workdir)
    assert last["J"] < first["J"]


def test_what_was_compiled_is_kept(launch):
    launch("style")
    cache = pathlib.Path(os.environ["XDG_CACHE_HOME"])
    assert list((cache / "nstvis/xla").iterdir())


def test_style_writes_jpeg(one_style):
    with Image.open(one_style / "G.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.size == (48, 64)
    assert images.read_settings(one_style / "G.jpg")["output"] == "G.jpg"
    assert not (one_style / "G.png").exists()


def test_style_writes_16_bits_and_a_blend_of_one_style_is_that_style(
    folder, one_style, tmp_path
):
    styles, blend = ("rough.png", "smooth.jpg"), {"style_blend": "1,0"}
    workdir = tmp_path / "run"
    paint(folder, workdir, "content.png", *styles, **blend, output="G.tif")
    picture = tifffile.imread(workdir / "G.tif")
    assert picture.dtype == np.uint16
    assert picture.shape == (64, 48, 3)
    assert len(np.unique(picture)) > 256
    assert rows(workdir)[0]["J_style"] == pytest.approx(
        rows(one_style)[0]["J_style"], rel=1e-5
    )


def test_style_blends_two_styles_and_keeps_transparency(folder, one_style, tmp_path):
    styles, blend = ("rough.png", "smooth.jpg"), {"style_blend": "1,3"}
    workdir = paint(folder, tmp_path / "run", "transparent.png", *styles, **blend)
    result = images.read(workdir / "G.png")
    content = images.read(folder / "transparent.png")
    assert result.mode == "RGBA"
    assert result.getchannel("A").tobytes() == content.getchannel("A").tobytes()
    blended, alone = rows(workdir)[0], rows(one_style)[0]
    assert blended["J_style"] != pytest.approx(alone["J_style"], rel=1e-2)


@pytest.mark.parametrize("output", ["../x.png", "a/b.png", "film.png", "G.gif", ""])
def test_a_result_needs_a_name_of_its_own(output):
    with pytest.raises(ValueError, match=r"output=|\.png"):
        configs.check(style.Config(output=output))


def test_a_loss_that_is_never_finite_leaves_a_picture_and_its_metrics(tmp_path):
    model, _ = small.write(tmp_path)
    _, params = models.load(model, "random")
    arrays = {
        f"{layer}.{kind}": 1e30 * np.asarray(array)
        for layer, kinds in params.items()
        for kind, array in kinds.items()
    }
    huge, run = tmp_path / "huge.npz", tmp_path / "run"
    np.savez(huge, **arrays)
    done = launcher.launch(
        "--experiment=style",
        f"--workdir={run}",
        *small.flags(small.PAINTED | {"model": model, "weights": huge}),
        "--config.size=64",
        "--config.steps=40",
        "--config.scales=1",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the loss is not finite")
    assert images.read(run / "G.png").size == (64, 48)
    steps = rows(run)
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    assert min(row["damping"] for row in steps) < 2.0**-20  # the one that ended it
    assert all(row["J"] is None for row in steps)
