"""Pictures rebuilt from layers: the objective by brute force, and through the launcher."""

import csv
import json
import logging
import signal

import jax
import jax.numpy as jnp
import launcher
import numpy as np
import pytest
from PIL import Image

from experiments import reconstruct as experiment
from nstvis import images, models
from nstvis.runs import workdir as workdirs
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Interrupted
from nstvis.synthesis import reconstruct

NETWORK = """
from flax import nnx
from nstvis.layers import Chain, conv, pool

def build(*, pooling, last, rngs, classes=3):
    layers = {
        "conv1": conv(3, 8, 3, rngs=rngs),
        "pool1": pool(pooling, 2, 2),
        "conv2": conv(8, 6, 3, rngs=rngs),
        "logits": lambda x: x.mean((1, 2))[:, :3],
    }
    return Chain(layers, last)
"""
NAMES = ["content_conv1", "content_conv2", "style_conv1", "style_conv1-conv2"]


# Most runs here run the same program.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network of two convolutions, a content, and a style of another shape."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "two.py").write_text(NETWORK)
    random = np.random.default_rng(0)
    for name, shape in {"content": (6, 8), "style": (9, 7)}.items():
        small = Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8))
        small.resize((4 * shape[1], 4 * shape[0])).save(folder / f"{name}.png")
    return folder


def config(folder, **changes):
    known = {"weights": "random", "size": 16, "steps": 4, "jitter": 2}
    known |= {name: str(folder / f"{name}.png") for name in ("content", "style")}
    return experiment.Config(model=str(folder / "two.py"), **(known | changes))


def arguments(folder):
    chosen = vars(config(folder)).items()
    return [f"--config.{name}={value}" for name, value in chosen if value != ""]


def noise(seed):
    shape = (1, 12, 16, 3)
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


@pytest.mark.slow
def test_each_picture_has_its_own_layers_and_no_others(folder):
    """All losses at once, against equations 1 and 4 in NumPy for each picture alone."""
    forward, params = models.load(str(folder / "two.py"), "random")
    layers, gamma = ["conv1", "conv2"], 0.01
    content, style, canvas = map(noise, range(3))
    settings = reconstruct.Settings(gamma=gamma, jitter=0)
    make_targets = jax.jit(reconstruct.make_targets(forward, layers, settings))
    together = jax.jit(reconstruct.make_objectives(forward, layers, settings))
    data = make_targets(params, content, style)
    losses, _ = together(
        jnp.stack([canvas] * 4), data, jax.random.split(jax.random.key(0), 4)
    )
    p, s, f = (
        {k: np.asarray(x, float) for k, x in jax.jit(forward)(params, image).items()}
        for image in (content, style, canvas)
    )

    def of_content(k):
        return ((f[k] - p[k]) ** 2).sum() / (p[k] ** 2).sum()

    def of_style(k):
        g, a = (
            np.einsum("bijc,bijd->cd", x[k], x[k]) / x[k][..., 0].size for x in (f, s)
        )
        return ((g - a) ** 2).sum() / (a**2).sum()

    steps = [(np.diff(canvas.astype(float), axis=axis) ** 2).sum() for axis in (1, 2)]
    expected = [
        of_content("conv1"),
        of_content("conv2"),
        of_style("conv1"),
        (of_style("conv1") + of_style("conv2")) / 2,
    ]
    smooth = gamma * sum(steps) / canvas.size
    np.testing.assert_allclose(losses, np.array(expected) + smooth, rtol=1e-4)


@pytest.mark.slow
def test_pictures_of_the_style_alone_are_rolled(folder):
    forward, params = models.load(str(folder / "two.py"), "random")
    content, style, canvas = (jnp.asarray(noise(i)) for i in range(3))
    layers, settings = ["conv1", "conv2"], reconstruct.Settings(gamma=0.0, jitter=2)
    make_targets = jax.jit(reconstruct.make_targets(forward, layers, settings))
    data = make_targets(params, content, style)
    together = jax.jit(reconstruct.make_objectives(forward, layers, settings))
    keys = jax.random.split(jax.random.key(0), (8, 4))
    losses = np.array([together(jnp.stack([canvas] * 4), data, k)[0] for k in keys])
    assert (np.ptp(losses, axis=0) > 0).tolist() == [False, False, True, True]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The workdir of a run of the launcher that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("reconstruct") / "whole"
    done = launcher.launch(
        "--experiment=reconstruct", *arguments(folder), f"--workdir={workdir}"
    )
    assert done.returncode == 0, done.stderr
    for name in ("reconstruct.png", "reconstruct.csv", "loss.png", "metrics.jsonl"):
        assert str(workdir / name) in done.stderr
    return workdir


def rows(workdir):
    with (workdir / "reconstruct.csv").open() as file:
        return list(csv.DictReader(file))


def losses(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_picture_is_there_with_its_loss_and_its_psnr(whole, folder):
    assert [row["picture"] for row in rows(whole)] == NAMES
    told = losses(whole)
    assert [row["step"] for row in told] == [1, 2, 3, 4]
    content = images.to_array(images.resize(images.read(folder / "content.png"), 16))
    for row in rows(whole):
        name = row["picture"]
        picture = images.to_array(images.read(whole / f"{name}.png"))
        assert picture.shape == (12, 16, 3)
        assert float(row["loss"]) == pytest.approx(min(x[name] for x in told), rel=1e-5)
        if name.startswith("style"):
            assert row["psnr"] == ""
        else:
            psnr = 10 * np.log10(255**2 / ((picture - content) ** 2).mean())
            assert float(row["psnr"]) == pytest.approx(psnr, abs=0.006)
    page = images.read(whole / "reconstruct.png")
    assert 3 * 16 < page.width < 6 * 16 and 2 * 12 < page.height


@pytest.mark.slow
def test_interrupted_it_ends_as_if_it_had_not_been(
    folder, whole, tmp_path, monkeypatch, caplog
):
    write, once = Metrics.write, []

    def stop(self, row):
        if row["step"] == 2 and not once:
            once.append(signal.raise_signal(signal.SIGTERM))
        return write(self, row)

    monkeypatch.setattr(Metrics, "write", stop)
    with pytest.raises(Interrupted) as stop:
        experiment.run(config(folder), tmp_path)
    assert stop.value.signum == signal.SIGTERM
    assert not (tmp_path / "reconstruct.csv").exists()
    assert (tmp_path / "reconstruct.png").exists()
    with caplog.at_level(logging.INFO):
        results = experiment.run(config(folder), tmp_path)
    assert "resuming after step 2 of 4" in caplog.text
    assert all((tmp_path / name).exists() for name in results)
    assert losses(tmp_path) == losses(whole)
    for file in [*(f"{name}.png" for name in NAMES), "reconstruct.csv"]:
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_finished_it_says_so(folder, whole):
    results = workdirs.claim(whole, "reconstruct", config(folder))
    assert results[0] == whole / "reconstruct.png"


@pytest.mark.slow
def test_the_first_layer_gives_the_content_back(folder):
    originals = [images.read(folder / f"{x}.png") for x in ("content", "style")]
    settings = config(folder, steps=150, gamma=0.0)
    reconstruction = reconstruct.Reconstruction(*originals, settings)
    start = reconstruction.start()
    first = [np.asarray(x) for x in reconstruction.pictures(start)]
    *_, (state, losses) = reconstruction.run(start, range(150))
    assert float(losses["content_conv1"]) < 0.01
    content = np.asarray(reconstruction.originals[0], float)
    last = [np.asarray(x) for x in reconstruction.pictures(state)]
    before, after = (((x[0] - content) ** 2).mean() for x in (first, last))
    assert after < before / 20


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers": "conv1,cnv2"}, "did you mean 'conv2'"),
        ({"steps": 0}, "steps should be at least 1"),
        ({"pooling": "median"}, "choose from average, max"),
        ({"content": "nowhere.png"}, "nowhere.png"),
        ({"layers": "conv1,conv1"}, "conv1 is given twice"),
        ({"gamma": -1.0}, "gamma should be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate should be above 0"),
    ],
)
def test_mistakes_get_one_line(folder, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        experiment.run(config(folder, **changes), tmp_path)


def test_layers_are_the_convolutions_in_order_unless_named(folder):
    assert reconstruct.find_layers(config(folder)) == ["conv1", "conv2"]
    named = config(folder, layers="conv2_pre, conv1")
    assert reconstruct.find_layers(named) == ["conv1", "conv2_pre"]
