"""Networks: every activation is PyTorch's, and receptive fields are the papers'."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstvis import models

ALEXNET = [
    *("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"),
    *("fc6", "fc7", "fc8"),
]
ZFNET = [*ALEXNET[:2], "norm1", *ALEXNET[2:4], "norm2", *ALEXNET[4:]]
VGG16 = [
    *("conv1_1", "conv1_2", "pool1"),
    *("conv2_1", "conv2_2", "pool2"),
    *("conv3_1", "conv3_2", "conv3_3", "pool3"),
    *("conv4_1", "conv4_2", "conv4_3", "pool4"),
    *("conv5_1", "conv5_2", "conv5_3", "pool5"),
    *("fc6", "fc7", "fc8"),
]
VGG19 = [
    *("conv1_1", "conv1_2", "pool1"),
    *("conv2_1", "conv2_2", "pool2"),
    *("conv3_1", "conv3_2", "conv3_3", "conv3_4", "pool3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv4_4", "pool4"),
    *("conv5_1", "conv5_2", "conv5_3", "conv5_4", "pool5"),
    *("fc6", "fc7", "fc8"),
]
VGG_SMALL = [
    *("conv1_1", "conv1_2", "pool1", "conv2_1", "conv2_2", "pool2"),
    *("conv3_1", "conv3_2", "pool3", "conv4_1", "conv4_2", "pool4", "fc5"),
]
RESNET18 = [
    *("conv1", "pool1", "layer1_1", "layer1_2", "layer2_1", "layer2_2"),
    *("layer3_1", "layer3_2", "layer4_1", "layer4_2", "fc"),
]
NAMES = {
    "alexnet": ALEXNET,
    "alexnet_small": ALEXNET,
    "resnet18": RESNET18,
    "vgg16": VGG16,
    "vgg19": VGG19,
    "vgg_small": VGG_SMALL,
    "zfnet": ZFNET,
}

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def torch():
    reason = "the oracle is PyTorch: pip install -r requirements-peers.txt"
    return pytest.importorskip("torch", reason=reason)


# The same networks, written for PyTorch: those that torchvision has, in its layout.


def torchvision_alexnet(nn, pool):
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), pool(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), pool(3, 2)),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
        nn.Linear(4096, 1000),
    )
    return torchvision_network(nn, features, nn.AdaptiveAvgPool2d(6), classifier)


def torchvision_vgg(nn, pool, names):
    features, inputs = [], 3
    for name in names[: names.index("fc6")]:
        if name.startswith("pool"):
            features.append(pool(2, 2))
            continue
        width = min(512, 32 * 2 ** int(name[4]))
        features += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        inputs = width
    classifier = nn.Sequential(
        *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
        nn.Linear(4096, 1000),
    )
    features = nn.Sequential(*features)
    return torchvision_network(nn, features, nn.AdaptiveAvgPool2d(7), classifier)


def torchvision_network(nn, features, average, classifier):
    parts = {
        "features": features,
        "avgpool": average,
        "flatten": nn.Flatten(),
        "classifier": classifier,
    }
    return nn.Sequential(collections.OrderedDict(parts))


def alexnet_small(nn, pool):
    parts = {
        "conv1": nn.Conv2d(3, 64, 7, stride=2, padding=3),
        "relu1": nn.ReLU(),
        "pool1": pool(3, 2),
        "conv2": nn.Conv2d(64, 192, 5, padding=2),
        "relu2": nn.ReLU(),
        "pool2": pool(3, 2),
    }
    return nn.Sequential(collections.OrderedDict(parts | rest(nn, pool, 192, 3, 768)))


def zfnet(nn, pool):
    parts = {
        "conv1": nn.Conv2d(3, 96, 7, stride=2, padding=1),
        "relu1": nn.ReLU(),
        "pool1": pool(3, 2, padding=1),
        "norm1": nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
        "conv2": nn.Conv2d(96, 256, 5, stride=2),
        "relu2": nn.ReLU(),
        "pool2": pool(3, 2, padding=1),
        "norm2": nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
    }
    rest_of_it = rest(nn, pool, 256, 6, 4096, channels=(384, 384, 256), classes=1000)
    return nn.Sequential(collections.OrderedDict(parts | rest_of_it))


def rest(nn, pool, inputs, grid, width, channels=(384, 256, 256), classes=200):
    third, fourth, fifth = channels
    return {
        "conv3": nn.Conv2d(inputs, third, 3, padding=1),
        "relu3": nn.ReLU(),
        "conv4": nn.Conv2d(third, fourth, 3, padding=1),
        "relu4": nn.ReLU(),
        "conv5": nn.Conv2d(fourth, fifth, 3, padding=1),
        "relu5": nn.ReLU(),
        "pool5": pool(3, 2),
        "avgpool": nn.AdaptiveAvgPool2d(grid),
        "flatten": nn.Flatten(),
        "fc6": nn.Linear(fifth * grid**2, width),
        "relu6": nn.ReLU(),
        "fc7": nn.Linear(width, width),
        "relu7": nn.ReLU(),
        "fc8": nn.Linear(width, classes),
    }


def vgg_small(nn, pool):
    parts, inputs = {}, 3
    for name in VGG_SMALL[:-1]:
        if name.startswith("pool"):
            parts[name] = pool(2, 2)
            continue
        width = 16 * 2 ** int(name[4])
        parts[name] = nn.Conv2d(inputs, width, 3, padding=1)
        parts[f"{name}_relu"] = nn.ReLU()
        inputs = width
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    parts["fc5"] = nn.Linear(256, 200)
    return nn.Sequential(collections.OrderedDict(parts))


# That of resnet18 is in test_fork.py.
TWINS = {
    "alexnet": torchvision_alexnet,
    "alexnet_small": alexnet_small,
    "vgg16": lambda nn, pool: torchvision_vgg(nn, pool, VGG16),
    "vgg19": lambda nn, pool: torchvision_vgg(nn, pool, VGG19),
    "vgg_small": vgg_small,
    "zfnet": zfnet,
}


def make_twin(torch, name, pool, path, deep=True):
    """Builds a random PyTorch network and saves its weights; zeros if not that deep."""
    with torch.device("meta"):
        twin = TWINS[name](torch.nn, pool)
    twin = twin.to_empty(device="cpu").eval()
    # As many as are soon drawn; a prime number, so that no two filters are the same.
    random = np.random.default_rng(0).standard_normal(999_983, np.float32)
    for i, (key, parameter) in enumerate(twin.named_parameters()):
        if key.startswith("classifier") and not deep:
            parameter.data = torch.zeros(parameter.shape)
            continue
        values = np.resize(np.roll(random, 7919 * i), parameter.shape)
        # He et al. 2015, so that activations keep their size through the layers.
        spread = (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.5
        parameter.data = torch.from_numpy(values * np.float32(spread))
    torch.save(twin.state_dict(), path)
    return twin


def twin_activations(torch, twin, images):
    """Returns what `forward` does, in order, layer by layer."""
    nn, activations = torch.nn, []
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    x = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for module in twin.modules():
            if list(module.children()):
                continue
            x = module(x)
            if not isinstance(module, (nn.Dropout, nn.AdaptiveAvgPool2d, nn.Flatten)):
                activations.append(x.numpy())
    return [x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in activations]


def activations_of(forward, params, images):
    """Runs a network, compiled; JAX would return the dict sorted by name."""
    names = []

    def run(params, images):
        activations = forward(params, images)
        names.extend(activations)
        return list(activations.values())

    arrays = jax.jit(run)(params, images)
    return dict(zip(names, arrays, strict=True))


def picture(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(0, 255, (1, height, width, 3)).astype(np.float32)


def check_against_twin(name, twin, torch, forward, params, images):
    found = activations_of(forward, params, images)
    expected = twin_activations(torch, twin, images)[: len(found)]
    assert list(found) == models.layers(name)[: len(found)]
    for (layer, mine), reference in zip(found.items(), expected, strict=True):
        assert mine.shape == reference.shape, layer
        worst = np.abs(mine - reference).max() / np.abs(reference).max()
        assert worst < 1e-4, layer


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes, last",
    [
        pytest.param("alexnet", [(224, 224), (131, 97)], None, marks=slow),
        ("alexnet_small", [(64, 64), (93, 75)], None),
        pytest.param("zfnet", [(224, 224), (131, 97)], None, marks=slow),
        pytest.param("vgg16", [(65, 91)], None, marks=[slow, pytest.mark.exhaustive]),
        pytest.param("vgg19", [(38, 33)], "conv5_1", marks=slow),
        ("vgg_small", [(64, 64), (33, 50)], None),
    ],
)
def test_every_activation_is_pytorchs(torch, tmp_path, name, sizes, last):
    path = tmp_path / "weights.pth"
    twin = make_twin(torch, name, torch.nn.MaxPool2d, path, last is None)
    forward, params = models.load(name, str(path), last=last)
    path.unlink()  # half a gigabyte
    for size in sizes:
        check_against_twin(name, twin, torch, forward, params, picture(*size))


def test_average_pooling_is_pytorchs(torch, tmp_path):
    path = tmp_path / "weights.pth"
    twin = make_twin(torch, "alexnet_small", torch.nn.AvgPool2d, path)
    forward, params = models.load("alexnet_small", str(path), pooling="average")
    check_against_twin("alexnet_small", twin, torch, forward, params, picture(64, 64))


def test_networks_and_their_layers_have_the_papers_names():
    assert models.names() == sorted(NAMES)
    for name, expected in NAMES.items():
        found = models.layers(name)
        assert [layer for layer in found if not layer.endswith("_pre")] == expected
        assert found[-1] == expected[-1]  # the logits, which have no ReLU
        with_relu = [x for x in expected[:-1] if x.startswith(("conv", "fc", "layer"))]
        before = [layer for layer in found if layer.endswith("_pre")]
        assert before == [f"{layer}_pre" for layer in with_relu]
        assert all(found.index(x) + 1 == found.index(x[:-4]) for x in before)


def test_last_leaves_out_what_is_deeper_and_changes_nothing_before():
    whole, all_params = models.load("alexnet_small", "random")
    forward, params = models.load("alexnet_small", "random", last="pool2")
    assert sorted(params) == ["conv1", "conv2"]
    expected = activations_of(whole, all_params, picture(64, 64))
    found = activations_of(forward, params, picture(64, 64))
    assert list(found) == list(expected)[: list(expected).index("pool2") + 1]
    for name, activation in found.items():
        np.testing.assert_array_equal(activation, expected[name])


OWN_NETWORK = """
import jax
from flax import nnx

class Residual(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.fc3 = nnx.Linear(4, 10, rngs=rngs)

    def __call__(self, images):
        one = jax.nn.relu(self.conv1(images / 255))
        total = one + self.conv2(one)
        return {"conv1": one, "sum2": total, "fc3": self.fc3(total.mean((1, 2)))}

def build(*, pooling, last, rngs):
    return Residual(rngs)
"""


def test_a_network_of_ones_own_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "residual.py"
    path.write_text(OWN_NETWORK)
    assert models.layers(str(path)) == ["conv1", "sum2", "fc3"]
    forward, params = models.load(str(path), "random")
    tensors = {f"{k}.{kind}": a for k, p in params.items() for kind, a in p.items()}
    np.savez(tmp_path / "weights.npz", **tensors)
    forward, params = models.load(str(path), str(tmp_path / "weights.npz"))
    found = forward(params, picture(8, 9))
    assert found["fc3"].shape == (1, 10)
    kernel, bias = params["conv2"]["kernel"], params["conv2"]["bias"]
    # The kernel by hand at one pixel, away from the border.
    patch = found["conv1"][0, 3:6, 4:7]
    second = jnp.einsum("hwi,hwio->o", patch, kernel) + bias
    expected = found["conv1"][0, 4, 5] + second
    np.testing.assert_allclose(found["sum2"][0, 4, 5], expected, rtol=1e-4, atol=1e-5)


NORMED_NETWORK = """
from flax import nnx

class Normed(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Sequential(
            nnx.Conv(3, 4, (3, 3), rngs=rngs),
            nnx.BatchNorm(4, use_running_average=True, rngs=rngs),
        )

    def __call__(self, images):
        return {"stem": self.stem(images / 255)}

def build(*, pooling, last, rngs):
    return Normed(rngs)
"""


def test_a_network_of_lists_and_norms_is_loaded_too(tmp_path):
    path = tmp_path / "normed.py"
    path.write_text(NORMED_NETWORK)
    forward, params = models.load(str(path), "random")
    assert float(jnp.abs(forward(params, picture(8, 9))["stem"]).max()) > 0


def test_layers_are_traced_once_but_those_of_a_file_whenever_asked(
    tmp_path, monkeypatch
):
    models.layers("alexnet_small").clear()  # which is the caller's
    path, plain = tmp_path / "mine.py", "def init(seed): return {}\n"
    for name in ("first", "second"):
        forward = f"def forward(params, images): return {{{name!r}: images}}\n"
        path.write_text(plain + forward)
        assert models.layers(str(path)) == [name]
    monkeypatch.delattr(models, "_shapes")
    assert models.layers("alexnet_small")[:2] == ["conv1_pre", "conv1"]


def test_a_wrong_name_names_the_nearest():
    for call in (models.layers, models.load):
        with pytest.raises(ValueError, match="did you mean 'alexnet_small'"):
            call("alexnet_smal")
    with pytest.raises(ValueError, match="did you mean 'conv2'"):
        models.load("alexnet_small", "random", last="cnv2")
    with pytest.raises(FileNotFoundError, match="nowhere.py"):
        models.load("nowhere.py")


# Size and stride of the receptive fields, and an image that holds two neighbours.
FIELDS = {
    "alexnet_small": (
        131,
        {"conv1": (7, 2), "conv2": (27, 4), "conv3": (51, 8), "conv4": (67, 8)}
        | {"conv5": (83, 8)},
    ),
    "alexnet": (
        227,
        {"conv1": (11, 4), "pool1": (19, 8), "conv2": (51, 8), "pool2": (67, 16)}
        | {"conv3": (99, 16), "conv4": (131, 16), "conv5": (163, 16)},
    ),
    "zfnet": (
        195,
        {"conv1": (7, 2), "conv2": (27, 8), "conv3": (75, 16), "conv4": (107, 16)}
        | {"conv5": (139, 16)},
    ),
    "vgg_small": (
        90,
        {"conv1_1": (3, 1), "conv1_2": (5, 1), "pool1": (6, 2), "conv2_2": (14, 2)}
        | {"pool2": (16, 4), "conv3_2": (32, 4), "pool3": (36, 8), "conv4_2": (68, 8)},
    ),
}


def field_of(gradient):
    """Returns the rows, from first to last, that a gradient reaches; it is square."""
    reached = np.abs(gradient[0]).sum(-1) > 0
    rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
    np.testing.assert_array_equal(rows, columns)
    assert reached.sum() == len(rows) ** 2  # without holes
    return rows[0], rows[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_receptive_fields_are_the_papers(name):
    side, fields = FIELDS[name]
    last = list(fields)[-1]
    forward, params = models.load(name, "random", pooling="average", last=last)
    # Light through positive weights: no ReLU closes and no two paths cancel. Channels
    # do not matter: one will do, but for the three of the image.
    first = next(iter(fields))
    params = {
        layer: {
            "kernel": jnp.abs(own["kernel"][:, :, : 3 if layer == first else 1, :1]),
            "bias": own["bias"][:1],
        }
        for layer, own in params.items()
    }
    image = jnp.full((1, side, side, 3), 255.0)

    def activations(image):
        found = forward(params, image)
        return {k: found[k if "pool" in k else f"{k}_pre"] for k in fields}

    @jax.jit
    def gradients(layer_units):
        _, pull = jax.vjp(activations, image)
        return pull(layer_units)[0]

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(activations, image))
    for layer, (size, stride) in fields.items():
        middle = zeros[layer].shape[1] // 2
        first, second = (
            field_of(gradients(zeros | {layer: zeros[layer].at[0, i, i, 0].set(1.0)}))
            for i in (middle, middle + 1)
        )
        assert first[1] - first[0] + 1 == size, layer
        assert (second[0] - first[0], second[1] - first[1]) == (stride, stride), layer
