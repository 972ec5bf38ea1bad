"""Presets: the first steps of the programs and papers that they are named after.

Each is written again here in float64, from its source's formulas, for random weights in
a file like neural-style-pt's. The network is VGG-19, an eighth as wide, as float64 takes
its time.
"""

import jax
import numpy as np
import pytest
from PIL import Image

from nstvis import models
from nstvis.synthesis.style import StyleTransfer
from nstvis.synthesis.style_settings import PRESETS, Settings, check

BLOCKS = ((8, 2), (16, 2), (32, 4), (64, 4), (64, 4))
NETWORK = f"""
from nstvis.layers import Chain, conv, pool
from nstvis.models import vgg16, vgg19

CAFFE_FILE = vgg19.CAFFE_FILE
TORCHVISION_NAMES = vgg16.torchvision_names({BLOCKS})

def build(*, pooling, last, rngs):
    layers, inputs = {{}}, 3
    for block, (width, depth) in enumerate({BLOCKS}, 1):
        for i in range(depth):
            layers[f"conv{{block}}_{{i + 1}}"] = conv(inputs, width, 3, rngs=rngs)
            inputs = width
        layers[f"pool{{block}}"] = pool(pooling, 2, 2)
    return Chain(layers, last)
"""
STYLE_LAYERS = [f"conv{block}_1" for block in range(1, 6)]
MEAN_BGR = (103.939, 116.779, 123.68)


@pytest.fixture(scope="module")
def torch():
    reason = "the oracle is PyTorch: pip install -r requirements-peers.txt"
    return pytest.importorskip("torch", reason=reason)


@pytest.fixture(scope="module")
def weights(torch, tmp_path_factory):
    """A file like that of Caffe's VGG-19, with random convolutions."""
    random, state, inputs, index = np.random.default_rng(0), {}, 3, 0
    for width, depth in BLOCKS:
        for _ in range(depth):
            spread = np.float32((2 / (9 * inputs)) ** 0.5)
            kernel = spread * random.standard_normal((width, inputs, 3, 3), np.float32)
            bias = 0.5 * random.standard_normal(width, np.float32)
            state[f"features.{index}.weight"] = torch.from_numpy(kernel)
            state[f"features.{index}.bias"] = torch.from_numpy(bias)
            inputs, index = width, index + 2
        index += 1
    path = tmp_path_factory.mktemp("models") / "vgg19-d01eb7cb.pth"
    torch.save(state, path)
    return path


def picture(seed):
    """Smooth shapes rather than noise, 48 x 32."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((48, 32), Image.Resampling.BICUBIC)


CONTENT, STYLE = picture(1), picture(2)


def ours(weights, preset, steps, **options):
    """Returns the canvas at the start, and the metrics of each step."""
    network = weights.with_name("thin.py")
    network.write_text(NETWORK)
    assert PRESETS[preset]["model"] == "vgg19"
    layers = models.layers(str(network))
    assert layers == models.layers("vgg19")[: len(layers)]
    small = {"model": str(network), "weights": str(weights), "size": 48, "steps": steps}
    settings = Settings(**PRESETS[preset] | small | options)
    moments = StyleTransfer(CONTENT, [STYLE], settings).run()
    start = np.array(next(moments).state.canvas[0], np.float64)
    return start, [jax.device_get(moment.metrics) for moment in moments]


class Port:
    """Programs in float64, with pictures as BGR planes."""

    def __init__(self, torch, weights, *, white, pool):
        self.torch, self.white, self.pool = torch, white, pool
        state = torch.load(weights)
        self.layers = [
            (state[name].double(), state[name.replace("weight", "bias")].double())
            for name in state
            if name.startswith("features") and name.endswith("weight")
        ]
        self.content, self.style = (
            self.activations(self.preprocess(np.asarray(x, np.float64)))
            for x in (CONTENT, STYLE)
        )

    def preprocess(self, image):
        """From RGB 0..255, `[height, width, 3]`."""
        mean = self.torch.tensor(MEAN_BGR, dtype=self.torch.float64)
        x = self.torch.from_numpy(np.array(image))[..., [2, 1, 0]] / 255 * self.white
        return (x - mean).permute(2, 0, 1)[None].contiguous()

    def activations(self, x):
        """Every convolution up to conv5_1, after its ReLU."""
        functional, layers, found = self.torch.nn.functional, iter(self.layers), {}
        for block, (_, depth) in enumerate(BLOCKS, 1):
            for i in range(depth if block < 5 else 1):
                x = functional.conv2d(x, *next(layers), padding=1).relu()
                found[f"conv{block}_{i + 1}"] = x
            x = self.pool(x, 2)
        return found

    def steps(self, losses, start, count, rate):
        """The losses before each of Adam's steps; the first of them is the sum."""
        x = self.preprocess(start).requires_grad_()
        optimizer, rows = self.torch.optim.Adam([x], lr=rate), []
        for _ in range(count):
            optimizer.zero_grad()
            row = losses(self, x, self.activations(x))
            row[0].backward()
            optimizer.step()
            rows.append([term.item() for term in row])
        return np.array(rows)


def neural_style_pt(port, x, found):
    """Its ContentLoss, StyleLoss and TVLoss, at its default weights."""
    mse = port.torch.nn.functional.mse_loss

    def gram(y):
        flat = y.view(y.shape[1], -1)
        return port.torch.mm(flat, flat.t()).div(y.nelement())

    content = 5e0 * mse(found["conv4_2"], port.content["conv4_2"])
    style = sum(
        1e2 * mse(gram(found[name]), gram(port.style[name])) for name in STYLE_LAYERS
    )
    down, right = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
    variation = 1e-3 * (down.abs().sum() + right.abs().sum())
    return content + style + variation, content, style, variation


def squared_grams(port, found):
    """Sum of w_l / (4 N^2 M^2) sum (G - A)^2, of the paper's and the course's layers."""
    total = 0
    for name in STYLE_LAYERS:
        f, s = (y[name][0].flatten(1) for y in (found, port.style))
        n, m = f.shape
        total += 0.2 / (4 * n**2 * m**2) * ((f @ f.T - s @ s.T) ** 2).sum()
    return total


def gatys2015(port, x, found):
    """Equations 1, 5 and 7, with alpha / beta = 1e-3."""
    content = 0.5 * ((found["conv4_2"] - port.content["conv4_2"]) ** 2).sum()
    style = 1e3 * squared_grams(port, found)
    return content + style, content, style


def ng(port, x, found):
    """The costs of the course's exercise."""
    c, g = port.content["conv4_2"], found["conv4_2"]
    content = 10 * ((c - g) ** 2).sum() / (4 * c.numel())
    style = 40 * squared_grams(port, found)
    return content + style, content, style


@pytest.mark.exhaustive
@pytest.mark.slow
def test_neural_style_takes_the_steps_of_neural_style_pt(torch, weights, tmp_path):
    pool = torch.nn.functional.max_pool2d
    port = Port(torch, weights, white=256, pool=pool)
    picture(3).save(tmp_path / "start.png")
    for begin in ("mean", str(tmp_path / "start.png")):  # -init random, -init_image
        start, metrics = ours(weights, "neural_style", 10, start=begin)
        found = np.array(
            [
                (m["J"], 5 * m["J_content"], 100 * m["J_style"], 1e-3 * m["TV"])
                for m in metrics
            ]
        )
        expected = port.steps(neural_style_pt, start, 10, rate=1.0)
        if begin == "mean":
            x = port.preprocess(start)  # randn(3, height, width).mul(0.001) there
            assert abs(x.mean()) < 1e-4 and 0.9e-3 < x.std() < 1.1e-3
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
            # Where the picture is still even, the last bit decides which of a window's
            # pixels is its maximum: PyTorch's own float32 is as far from float64 in the
            # small terms, content by 2e-3 and variation by 8e-3.
            found, expected = found[:, ::2], expected[:, ::2]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_ng_takes_the_steps_of_the_course(torch, weights):
    start, metrics = ours(weights, "ng", 10)
    port = Port(torch, weights, white=255, pool=torch.nn.functional.avg_pool2d)
    found = [(m["J"], 10 * m["J_content"], 40 * m["J_style"]) for m in metrics]
    expected = port.steps(ng, start, 10, rate=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_gatys2015_minimises_the_papers_loss(torch, weights):
    start, (metrics, *_) = ours(weights, "gatys2015", 1)
    port = Port(torch, weights, white=255, pool=torch.nn.functional.avg_pool2d)
    found = metrics["J"], metrics["J_content"], 1e3 * metrics["J_style"]
    [expected] = port.steps(gatys2015, start, 1, rate=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# Their weights.


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_refuse_weights_for_which_their_losses_are_not_weighted(preset):
    for weights in ("torchvision", "mine.pth"):
        settings = Settings(**PRESETS[preset] | {"weights": weights})
        with pytest.raises(
            ValueError, match=f"units={preset} count on Caffe's VGG"
        ) as e:
            check(settings, 1)
        assert "weights=caffe" in str(e.value) and "preprocessing=caffe" in str(e.value)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weights": "models/vgg19-d01eb7cb.pth"},
        {"weights": "mine.pth", "preprocessing": "caffe"},
        {"weights": "random"},
        {"weights": "torchvision", "units": "balanced"},
    ],
)
def test_presets_take_caffes_weights_and_random_ones(preset, change):
    check(Settings(**PRESETS[preset] | change), 1)


def test_without_clipping_only_what_is_written_is_clipped():
    settings = Settings(
        model="alexnet_small",
        weights="random",
        content_layers="conv1",
        style_layers="conv1",
        learning_rate=300.0,
        start="content",
        size=64,
        scales=1,
        steps=2,
        clip=False,
    )
    transfer = StyleTransfer(CONTENT, [STYLE], settings)
    *_, last = transfer.run()
    canvas = np.array(last.state.canvas)
    assert canvas.min() < 0 and canvas.max() > 255
    written = transfer.array(last.state._replace(best=last.state.canvas))
    assert written.min() >= 0 and written.max() <= 255
