"""What a fork needs of networks: norm layers, residual sums, and plain functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launcher import launch
from PIL import Image

from nstvis import attribution, devices, models
from nstvis.synthesis import features
from nstvis.synthesis.style import stylize
from nstvis.synthesis.style_settings import Settings
from nstvis.units import maxima
from nstvis.units.atlas import Atlas
from nstvis.units.receptive_fields import receptive_fields

BLOCKS = [f"layer{i}_{j}" for i in (1, 2, 3, 4) for j in (1, 2)]
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.fixture(scope="module")
def torch():
    reason = "the oracle is PyTorch: pip install -r requirements-peers.txt"
    return pytest.importorskip("torch", reason=reason)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


# ResNet-18, written for PyTorch with torchvision's names.


def relu_of(torch, rule):
    """A ReLU whose way back is a rule's."""

    class ReLU(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x > 0)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, back):
            (passed,) = ctx.saved_tensors
            back = back if rule == "gradient" else back.clamp(min=0)
            return back if rule == "deconvnet" else back * passed

    return ReLU.apply


def torch_resnet18(torch):
    nn = torch.nn

    def conv(inputs, outputs, size, stride):
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = conv(inputs, outputs, 3, stride)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = conv(outputs, outputs, 3, 1)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.downsample = None
            if stride > 1:
                shortcut = conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
                self.downsample = nn.Sequential(*shortcut)

        def forward(self, x, relu):
            y = relu(self.bn1(self.conv1(x)))
            return self.bn2(self.conv2(y)) + (self.downsample or nn.Identity())(x)

    class ResNet18(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
            widths = {1: (64, 64), 2: (64, 128), 3: (128, 256), 4: (256, 512)}
            for i, (inputs, width) in widths.items():
                first = Block(inputs, width, 1 if i == 1 else 2)
                setattr(self, f"layer{i}", nn.Sequential(first, Block(width, width, 1)))
            self.fc = nn.Linear(512, 1000)

        def forward(self, x, relu=torch.relu):
            found = {"conv1_pre": self.bn1(self.conv1(x))}
            found["conv1"] = relu(found["conv1_pre"])
            x = found["pool1"] = nn.functional.max_pool2d(found["conv1"], 3, 2, 1)
            for name in BLOCKS:
                i, j = int(name[5]), int(name[7])
                found[f"{name}_pre"] = getattr(self, f"layer{i}")[j - 1](x, relu)
                x = found[name] = relu(found[f"{name}_pre"])
            return found | {"fc": self.fc(x.mean((2, 3)))}

    return ResNet18().eval()


@pytest.fixture(scope="module")
def twin(torch, tmp_path_factory):
    """PyTorch's ResNet-18 with statistics of its own, and the same network here."""
    torch.manual_seed(0)
    network = torch_resnet18(torch)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, std=0.2)
    path = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return network, *models.load("resnet18", str(path))


def to_torch(torch, images):
    x = (images / 255 - MEAN) / STD
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()


@pytest.mark.slow
def test_resnet18_is_pytorchs(torch, twin):
    network, forward, params = twin
    images = noise(2, 64, 97, 3)  # maps of even heights, and of odd widths
    with torch.no_grad():
        expected = network(to_torch(torch, images))
    found = jax.jit(forward)(params, images)
    assert list(expected) == models.layers("resnet18")
    assert found.keys() == expected.keys()
    for name, mine in found.items():
        theirs = expected[name].numpy()
        theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
        atol = 1e-5 * np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol, err_msg=name)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_attributions_of_resnet18_are_pytorchs(torch, twin):
    network, forward, params = twin
    images, units = noise(2, 48, 48, 3), np.array([3, 77])
    where = {
        layer: np.array([place, place])
        for layer, place in {"layer2_1": (3, 4), "layer3_1_pre": (1, 0)}.items()
    }
    ruled = {rule: attribution.ruled(forward, rule) for rule in attribution.RULES}

    @jax.jit
    def attributions(params, images, where):
        return {
            (rule, layer): attribution.attribute(
                ruled[rule], params, layer, images, units, where[layer]
            )
            for rule in ruled
            for layer in where
        }

    for (rule, layer), found in attributions(params, images, where).items():
        places = where[layer]
        x = to_torch(torch, images)
        maps = network(x, relu_of(torch, rule))[layer]
        theirs = maps[[0, 1], units, places[:, 0], places[:, 1]]
        theirs.backward(theirs.detach())
        expected = x.grad.permute(0, 2, 3, 1).numpy() / (255 * STD)
        largest = np.abs(expected).max()
        assert largest > 0
        pixels, scores = found
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-4 * largest)
        np.testing.assert_allclose(scores, theirs.detach(), rtol=1e-4)


def one_channel(name, param):
    """Cuts a parameter of ResNet-18 to one channel, and lets all light through."""
    if name[-1] == "kernel":
        inputs = 3 if name == ("conv1", "layers", 0, "kernel") else 1
        return jnp.abs(param[..., :inputs, :1])
    return param[:1]


@pytest.mark.slow
def test_receptive_fields_of_resnet18():
    forward, params = models.load(
        "resnet18", "random", pooling="average", last="layer4_2"
    )
    fields = receptive_fields(forward, params, 64, 64)
    sizes = {name: (*fields[name].size(0), fields[name].stride) for name in BLOCKS}
    rows = [(27, 4), (43, 4), (67, 8), (99, 8), (147, 16), (211, 16), (307, 32)]
    expected = {n: (s, s, t) for n, (s, t) in zip(BLOCKS, [*rows, (435, 32)])}
    assert sizes == expected
    params = jax.tree.map_with_path(
        lambda path, x: one_channel(tuple(key.key for key in path), x), params
    )
    image = jnp.full((1, 64, 64, 3), 200.0)
    for layer, place in {"layer2_1": (1, 6), "layer3_2": (0, 3)}.items():

        def activation(image, layer=layer, place=place):
            return forward(params, image)[layer][0, *place, 0]

        seen = np.abs(jax.jit(jax.grad(activation))(image)[0]).sum(-1) > 0
        np.testing.assert_array_equal(
            seen, np.logical_and.outer(*fields[layer].support(0, *place))
        )


# A file of norm layers.

NORMED = """
from flax import nnx

class Normed(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.List([
            nnx.Conv(3, 4, (3, 3), padding="VALID", use_bias=False, rngs=rngs),
            nnx.BatchNorm(4, use_running_average=True, rngs=rngs),
        ])
        self.group = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.layer = nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs)

    def __call__(self, images):
        x = images / 255
        for layer in self.stem:
            x = layer(x)
        x = self.group(x)
        return {"group": x, "layer": self.layer(x.mean((1, 2)))}

def build(*, pooling, last, rngs):
    return Normed(rngs)
"""


@pytest.fixture(scope="module")
def normed(torch, tmp_path_factory):
    """A path of a network, and PyTorch's of the same names."""
    path = tmp_path_factory.mktemp("normed") / "normed.py"
    path.write_text(NORMED)
    torch.manual_seed(0)
    nn = torch.nn
    twin = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
            "group": nn.GroupNorm(2, 4),
            "layer": nn.LayerNorm(4),
        }
    ).eval()
    for key, tensor in twin.state_dict().items():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.5 if "var" in key else -1, 2)
    return str(path), twin


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_norm_layers_are_pytorchs(torch, normed, tmp_path, suffix):
    name, twin = normed
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(twin.state_dict(), path)
    else:
        np.savez(path, **{k: v.numpy() for k, v in twin.state_dict().items()})
    images = noise(2, 9, 8, 3)
    forward, params = models.load(name, str(path))
    found = forward(params, images)
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255)
        group = twin["group"](twin["stem"](x))
        layer = twin["layer"](group.mean((2, 3)))
    expected = {"group": np.moveaxis(group.numpy(), 1, -1), "layer": layer.numpy()}
    for key, theirs in expected.items():
        np.testing.assert_allclose(found[key], theirs, rtol=1e-4, atol=1e-4)


def test_norm_layers_that_do_not_fit_are_told_as_strictly(normed, tmp_path):
    name, twin = normed
    tensors = {k: v.numpy() for k, v in twin.state_dict().items()}
    del tensors["stem.1.running_var"]
    tensors |= {
        "stem.1.mean": tensors["stem.1.running_mean"],
        "group.weight": np.ones((4, 1), "f4"),
        "layer.running_mean": np.zeros(4, "f4"),
    }
    np.savez(tmp_path / "x.npz", **tensors)
    with pytest.raises(ValueError, match="does not fit normed") as error:
        models.load(name, str(tmp_path / "x.npz"))
    for complaint in (
        "missing: stem.1.var",
        "unknown: layer.running_mean",
        "given twice: stem.1.mean",
        "group.weight is (4, 1) and should be (4,)",
    ):
        assert complaint in str(error.value)


def test_random_norm_layers_are_the_identity(normed):
    _, params = models.load(normed[0], "random")
    expected = {"scale": 1, "var": 1, "bias": 0, "mean": 0}
    for layer in (params["stem"][1], params["group"], params["layer"]):
        for kind, array in layer.items():
            np.testing.assert_array_equal(array, np.full(4, expected[kind]))


# Networks that are plain functions.

PLAIN = """
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

def init(seed, classes=5):
    random = np.random.default_rng(seed)
    kernels = [random.normal(0, 0.3, (3, 3, n, 8)) for n in (3, 8)]
    layers = [{"w": kernel, "b": np.zeros(8)} for kernel in kernels]
    return {"layers": layers, "head": random.normal(0, 1, (8, classes))}

def forward(params, images):
    x, found = images / 128 - 1, {}
    for i, layer in enumerate(params["layers"], 1):
        dims = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, layer["w"], (2, 2), "SAME", dimension_numbers=dims
        )
        found[f"conv{i}_pre"] = x + layer["b"][None, None, None]
        found[f"conv{i}"] = x = jax.nn.relu(found[f"conv{i}_pre"])
    return found | {"head": x.mean((1, 2)) @ params["head"]}
"""
PLAIN_LAYERS = ["conv1_pre", "conv1", "conv2_pre", "conv2", "head"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The paths of a plain function and of its weights."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.py").write_text(PLAIN)
    random = np.random.default_rng(7)
    tensors = {"head": random.normal(size=(8, 5)).astype(np.float32)}
    for i, inputs in enumerate((3, 8)):
        kernel = random.normal(0, 0.3, (3, 3, inputs, 8)).astype(np.float32)
        tensors |= {f"layers.{i}.w": kernel, f"layers.{i}.b": np.zeros(8, np.float32)}
    np.savez(folder / "weights.npz", **tensors)
    return str(folder / "plain.py"), str(folder / "weights.npz")


@pytest.mark.slow
def test_a_plain_function_is_a_network(plain):
    name, path = plain
    assert models.layers(name) == PLAIN_LAYERS
    forward, params = models.load(name, path, last="conv2")
    with np.load(path) as tensors:
        np.testing.assert_array_equal(params["head"], tensors["head"])
        np.testing.assert_array_equal(params["layers"][1]["w"], tensors["layers.1.w"])
    counts = {"conv1_pre": 8, "conv1": 8, "conv2_pre": 8, "conv2": 8, "head": 5}
    assert models.units(forward, params, 32) == counts
    found = forward(params, noise(1, 32, 32, 3))
    assert [found[name].shape for name in ("conv2", "head")] == [(1, 8, 8, 8), (1, 5)]
    fields = receptive_fields(forward, params, 32, 32)
    assert [fields[f"conv{i}"].size(0) for i in (1, 2)] == [(3, 3), (7, 7)]
    attributions = {}
    for rule in attribution.RULES:
        ruled = attribution.ruled(forward, rule)
        call = jax.jit(functools.partial(attribution.attribute, ruled, layer="conv2"))
        where = {"units": jnp.array([2]), "positions": jnp.array([[4, 4]])}
        attributions[rule], _ = call(params, images=noise(1, 32, 32, 3), **where)
        assert np.abs(attributions[rule]).max() > 0
    assert not np.allclose(attributions["guided"], attributions["gradient"])


def test_random_weights_of_a_plain_function_are_its_own(plain):
    name, _ = plain
    params = [models.load(name, "random", seed=seed)[1] for seed in (0, 0, 1)]
    first, again, other = (p["layers"][0]["w"] for p in params)
    assert first.dtype == jnp.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert models.load(name, "random", classes=3)[1]["head"].shape == (8, 3)


def test_what_a_plain_function_cannot_do_is_one_line(plain, tmp_path):
    name, path = plain
    with pytest.raises(
        ValueError, match=r"plain\.py is a plain function, which cannot"
    ):
        models.network(name, path)
    with pytest.raises(ValueError, match="did you mean 'conv2'"):
        models.load(name, path, last="cnv2")
    with np.load(path) as tensors:
        np.savez(tmp_path / "x.npz", **{**tensors, "layers.1.w": np.zeros(8, "f4")})
    complaint = r"layers\.1\.w is \(8,\) and should be \(3, 3, 8, 8\)"
    with pytest.raises(ValueError, match=complaint):
        models.load(name, str(tmp_path / "x.npz"))


BROKEN = {
    "no network: it defines neither `build` nor `init` and `forward`": "x = 1",
    "a network returns a dict of activations by name, not tuple": """
def init(seed): return {}
def forward(params, images): return images, images
""",
    "the activation tokens is .*, neither ": """
def init(seed): return {}
def forward(params, images): return {"tokens": images[0]}
""",
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_a_file_that_is_no_network_is_one_line(tmp_path, complaint):
    (tmp_path / "net.py").write_text(BROKEN[complaint])
    with pytest.raises(ValueError, match=complaint) as error:
        models.layers(str(tmp_path / "net.py"))
    assert "\n" not in str(error.value)


def test_a_number_of_classes_that_a_network_does_not_take_is_refused(normed, tmp_path):
    name, _ = normed
    with pytest.raises(ValueError, match="has 4 logits, and cannot have 7"):
        models.load(name, "random", classes=7)
    models.load(name, "random", classes=4)
    (tmp_path / "plain.py").write_text(
        PLAIN.replace(", classes=5", "").replace("8, classes", "8, 5")
    )
    with pytest.raises(ValueError, match="has 5 logits, and cannot have 7"):
        models.load(str(tmp_path / "plain.py"), "random", classes=7)
    models.load(str(tmp_path / "plain.py"), "random", classes=5)


LINEN = """
import flax.linen as nn
import jax
import jax.numpy as jnp

TORCHVISION_NAMES = {"params": "", "batch_stats": ""}

class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (3, 3), padding="VALID", name="conv1")(images / 255)
        x = nn.BatchNorm(use_running_average=True, name="bn1")(x)
        return {"conv1": x, "fc2": nn.Dense(6, name="fc2")(x.mean((1, 2)))}

forward = Net().apply

def init(seed):
    return Net().init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3)))
"""


@pytest.mark.slow
def test_a_linen_network_takes_pytorchs_weights(torch, tmp_path):
    (tmp_path / "linen.py").write_text(LINEN)
    nn = torch.nn
    parts = {"conv1": nn.Conv2d(3, 4, 3), "bn1": nn.BatchNorm2d(4)}
    twin = nn.ModuleDict(parts | {"fc2": nn.Linear(4, 6)}).eval()
    twin["bn1"].running_mean.uniform_(-1, 1)
    twin["bn1"].running_var.uniform_(0.5, 2)
    torch.save(twin.state_dict(), tmp_path / "x.pth")
    forward, params = models.load(str(tmp_path / "linen.py"), str(tmp_path / "x.pth"))
    images = noise(1, 9, 8, 3)
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255)
        expected = twin["fc2"](twin["bn1"](twin["conv1"](x)).mean((2, 3)))
    with jax.numpy_rank_promotion("allow"):  # Linen's layers count on it
        found = forward(params, images)["fc2"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Everything else takes both.


@pytest.fixture(params=["resnet18", "plain"])
def network(request, plain):
    """Name, weights, a layer's stem and its number of units."""
    if request.param == "plain":
        return *plain, "conv2", 8
    return "resnet18", "random", "layer1_1", 64


@pytest.mark.slow
def test_the_highest_activations_are_found(network):
    name, path, layer, count = network
    forward, params = models.load(name, path, last=layer)
    images = noise(16, 8, 8, 3).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    scan = maxima.Scan(forward, {layer: (0, 0)}, 1, devices.mesh())
    state = scan.start(count, pool=3, k=1, classes=0, per_class=0)
    index = np.arange(16, dtype=np.int32)
    batch = {"image": images, "label": index * 0 - 1, "index": index}
    state = scan.step(state, params, devices.divided(batch, scan.mesh))
    best = scan.gathered(state).top
    maps = np.asarray(jax.jit(forward)(params, images.astype(np.float32))[layer])
    highest = np.sort(maps.max((1, 2)), 0)[::-1][:3]
    np.testing.assert_allclose(best.score[0], highest, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pictures_of_units_are_made(network):
    name, path, layer, _ = network
    forward, params = models.load(name, path, last=layer)
    settings = features.Settings(size=32, steps=2, jitter=2)
    search = features.Search(forward, params, layer, settings, 2)
    *_, state = search.run([0, 3])
    for made in search.found(state, [0, 3]):
        assert made.picture.shape == (32, 32, 3)
        assert np.isfinite(made.activation)


@pytest.mark.slow
def test_a_style_is_transferred(network):
    name, path, layer, _ = network
    pictures = [Image.fromarray(noise(64, 64, 3, seed=i).astype("u1")) for i in (0, 1)]
    settings = Settings(
        model=name,
        weights=path,
        content_layers=layer,
        style_layers=f"conv1,{layer}",
        style_loss="gram",
        size=64,
        scales=1,
        steps=2,
    )
    made = np.asarray(stylize(pictures[0], pictures[1:], settings))
    assert made.shape == (64, 64, 3)
    assert made.std() > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [pytest.param("resnet18", marks=pytest.mark.exhaustive), "plain"],
    indirect=True,
)
def test_units_and_their_atlas(network, drawn, tmp_path):
    name, path, layer, count = network
    workdir = tmp_path / "run"
    done = launch(
        "--experiment=units",
        f"--config.model={name}",
        f"--config.weights={path}",
        f"--config.layers={layer}",
        "--config.split=train[:16]",
        "--config.batch=8",
        "--config.k=2",
        "--config.attribution=guided",
        f"--workdir={workdir}",
    )
    assert done.returncode == 0, done.stderr
    atlas = Atlas(workdir)
    assert atlas.layers[layer] == count
    unit = atlas.unit(layer, 1)
    assert len(unit.top) == 2
