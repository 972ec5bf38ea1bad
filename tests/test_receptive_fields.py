"""Receptive fields, against what changes when a pixel does.

Each pixel in turn is made brighter, darker, and no number at all, and XLA computes the
network. What comes out differently depends on the pixel; nothing else was found to, and
if that is all that the fields say, both are right. The images are dark otherwise and the
weights positive, so that no change is cancelled, rounded away or stopped by a ReLU.
(NaN goes through most operations, but XLA:CPU loses it in maxima.)
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from nstvis import layers, models
from nstvis.models import alexnet, alexnet_small, vgg16, vgg19, zfnet
from nstvis.units.receptive_fields import receptive_fields

NETWORKS = {
    "alexnet": alexnet,
    "alexnet_small": alexnet_small,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "zfnet": zfnet,
}
# Not square, and strided windows leave pixels over.
HEIGHT, WIDTH = 21, 24


def changed(forward, params, images, dark):
    """Layer to [images, height, width, channels]: what is not as for a dark image."""

    @jax.jit
    def compare(params, images):
        return {
            name: (x[1:] != x[:1]).reshape(
                len(x) - 1, *(x.shape[1:-1] or (1, 1)), x.shape[-1]
            )
            for name, x in forward(params, images).items()
        }

    found = []
    for first in range(0, len(images), 63):
        batch = np.broadcast_to(dark, (64, *dark.shape)).astype(np.float32)
        some = images[first : first + 63]
        batch[1 : len(some) + 1] = some
        found.append(compare(params, batch))
    every = {name: np.concatenate([x[name] for x in found]) for name in found[0]}
    return {name: x[: len(images)] for name, x in every.items()}


def pixel_by_pixel(forward, height, width, changes=(1, -1, np.nan)):
    """Layer to [map height, map width, channels, height, width]."""
    dark, found = np.zeros((height, width, 3), np.float32), []
    for change in changes:
        images = np.zeros((height, width, *dark.shape), np.float32)
        for row, column in np.ndindex(height, width):
            images[row, column, row, column] = change
        found.append(images.reshape(-1, *dark.shape))
    seen = {}
    for name, x in changed(forward, {}, np.concatenate(found), dark).items():
        any_change = x.reshape(len(changes), height, width, *x.shape[1:]).any(0)
        seen[name] = np.moveaxis(any_change, (0, 1), (-2, -1))
    return seen


def supports(fields, shape):
    """What `pixel_by_pixel` finds, by the fields."""
    found = [np.outer(*fields.support(c, i, j)) for i, j, c in np.ndindex(*shape)]
    return np.array(found).reshape(*shape, *found[0].shape)


def boxes(fields, shape):
    rows, columns, channels = np.indices(shape)
    return fields.boxes(channels, np.stack([rows, columns], -1))


def hulls(seen):
    """Rectangles around what is seen, [..., 4]; those around nothing are 0."""
    ends = []
    for axis in (-1, -2):
        line = seen.any(axis)
        first = line.argmax(-1)
        last = line.shape[-1] - line[..., ::-1].argmax(-1)
        ends.append((first, np.where(line.any(-1), last, 0)))
    (top, bottom), (left, right) = ends
    return np.stack([top, left, bottom, right], -1)


def check_within(seen, box):
    hull, some = hulls(seen), seen.any((-1, -2))
    assert (box[..., :2] <= hull[..., :2])[some].all()
    assert (box[..., 2:] >= hull[..., 2:])[some].all()


def check_exact(forward, height=HEIGHT, width=WIDTH, tight=True, **options):
    """All that can be said of all units of a small network without parameters."""
    fields = receptive_fields(forward, {}, height, width)
    truth = pixel_by_pixel(forward, height, width, **options)
    for name, seen in truth.items():
        shape = seen.shape[:3]
        assert fields[name].columns == shape[1]
        np.testing.assert_array_equal(supports(fields[name], shape), seen, err_msg=name)
        box = boxes(fields[name], shape)
        check_within(seen, box)
        if tight:  # each unit's box is its hull somewhere, far from the borders
            assert (box == hulls(seen)).all(-1).any((0, 1)).all(), name
    return fields


def conv(
    x,
    outputs,
    size,
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    layout="NHWC",
    base=1,
):
    height, width = np.broadcast_to(size, 2)
    inputs = x.shape[layout.index("C")] // groups
    kernel = np.ones((height, width, inputs, outputs), np.float32)
    return lax.conv_general_dilated(
        x,
        kernel,
        np.broadcast_to(stride, 2),
        np.broadcast_to(padding, (2, 2)),
        lhs_dilation=(base, base),
        rhs_dilation=np.broadcast_to(dilation, 2),
        dimension_numbers=(layout, "HWIO", layout),
        feature_group_count=groups,
    )


def pool(x, kind, size, *, stride=1, padding=0, dilation=1):
    start, combine = {
        "max": (-jnp.inf, lax.max),
        "min": (jnp.inf, lax.min),
        "sum": (0.0, lax.add),
        "own": (0.0, lambda a, b: a + b + a * b),
    }[kind]
    space = (1, *np.broadcast_to(dilation, 2), 1)
    return lax.reduce_window(
        x,
        start,
        combine,
        (1, *np.broadcast_to(size, 2), 1),
        (1, *np.broadcast_to(stride, 2), 1),
        [(0, 0), *np.broadcast_to(padding, (2, 2)).tolist(), (0, 0)],
        window_dilation=space,
    )


def strided(_, x):
    a = conv(x, 2, 5, stride=3)
    b = conv(a, 2, 3, padding=1)
    return {"leftovers": a, "unseen": b, "far": conv(b, 1, (2, 3), stride=(2, 1))}


def padded(_, x):
    a = conv(x, 2, (2, 4), padding=[(2, 0), (0, 1)])
    b = pool(a, "max", 3, stride=2, padding=[(0, 2), (1, 0)])
    c = jnp.pad(b, ((0, 0), (3, 0), (1, 2), (0, 0)))
    d = lax.pad(c, 0.0, [(0, 0, 0), (-1, 1, 0), (0, -2, 0), (0, 0, 0)])
    e = conv(d[:, 1:-1:2, 1::2], 2, 2)
    return {"conv": a, "pool": b, "pad": conv(c, 1, 3), "crop": conv(d, 1, 2), "e": e}


def residual(_, x):
    a = x[..., :2] + conv(jax.nn.relu(conv(x, 2, 3, padding=1)), 2, 3, padding=1)
    b = conv(jax.nn.silu(a), 4, 3, stride=2, padding=1)
    return {
        "same": a,
        "strided": b + conv(a, 4, 1, stride=2),
        "one-sided": a[:, 2:] + 1,
    }


def dilated(_, x):
    a = conv(x, 2, 3, dilation=2)
    b = conv(a, 2, (2, 3), dilation=(3, 1), padding=2, stride=2)
    return {"a": a, "b": b, "pool": pool(a, "max", 2, dilation=(4, 3), padding=1)}


def poolings(_, x):
    found = {
        kind: pool(x, kind, (3, 2), stride=2, padding=1)
        for kind in ("max", "min", "sum", "own")
    }
    average = nnx.avg_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
    return found | {"average": average, "ours": layers.max_pool(average, 3, 2, 1)}


def inception(_, x):
    branches = [
        conv(x, 1, 1),
        conv(x, 2, (3, 5), padding=[(1, 1), (2, 2)]),
        pool(x, "max", 3, padding=1)[..., :1],
    ]
    a = jnp.concatenate([*branches, branches[1] + branches[0]], -1)
    b = conv(a, 6, 2, stride=2, groups=3)
    return {
        "concat": a,
        "part": a[..., 1:5:3],
        "groups": b,
        "depthwise": conv(a, 12, 2, groups=6),
        "norm": layers.local_response_norm(a),
        "deeper": conv(b, 2, 2),
        "padded": jnp.pad(b, ((0, 0),) * 3 + ((1, 0),))[..., 1:],
        "residual": b + conv(x, 1, 2, stride=2),
    }


def nchw(_, x):
    a = conv(x.transpose(0, 3, 1, 2), 4, (3, 2), stride=2, layout="NCHW")
    b = conv(a, 4, 2, groups=2, layout="NCHW", padding=1)
    normalised = (b - b.mean(1, keepdims=True)) / (1 + b.var(1, keepdims=True))
    found = {"a": a, "b": b, "norm": normalised}
    return {name: x.transpose(0, 2, 3, 1) for name, x in found.items()}


def channels(_, x):
    """What is done to channels alone moves no pixel."""
    x = x[..., ::-1][..., np.array([1, 2, 0])]
    a = jnp.einsum("bhwc,cd->bhwd", x, jnp.ones((3, 4)))
    b, c = jnp.split(conv(a, 4, 3), 2, -1)
    d = jax.nn.softmax(b) * c.max(-1, keepdims=True) + c.sum(-1)[..., None]
    e = jax.vmap(lambda y: pool(y[None], "sum", 2)[0])(d)
    f = e.reshape(len(e), 1, *e.shape[1:3], 1, 2).sum((1, 5))
    return {"a": a, "b": b, "d": d, "e": e[:, ::2], "f": f}


def ways_to_write_it(_, x):
    @jax.custom_jvp
    def custom(x):
        return jnp.where(x > 0, x, 0.1 * x)

    custom.defjvps(lambda t, y, x: t)
    a = jax.checkpoint(lambda x: jax.jit(lambda x: conv(x, 2, 3))(x))(x)
    b = custom(jnp.clip(lax.stop_gradient(a), -1, 1).astype(jnp.bfloat16))
    c = layers.conv(2, 2, 3, stride=2, rngs=nnx.Rngs(0))(b.astype(jnp.float32))
    return {"a": a, "b": b, "c": jax.nn.gelu(jax.nn.elu(c) ** 2)}


TOYS = [
    strided,
    padded,
    residual,
    dilated,
    poolings,
    inception,
    nchw,
    channels,
    ways_to_write_it,
]


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.__name__)
def test_a_unit_depends_on_its_support(toy):
    check_exact(toy, tight=toy is not padded)


def whole(_, x):
    a = conv(x, 2, 4, stride=3)  # leaves the last two rows out
    gate = jax.nn.sigmoid(a.mean((1, 2), keepdims=True))
    flat = a.reshape(len(a), -1) @ jnp.ones((84, 5))
    return {
        "mean": a.max((1, 2)),
        "gated": a * gate,
        "dense": flat,
        "after": jax.nn.relu(flat) @ jnp.ones((5, 2)),
        "scalar": jnp.ones((1, 2, 2, 2)) * a.mean((1, 2, 3))[:, None, None, None],
        "cells": layers.GridLinear(2, 2, 3, rngs=nnx.Rngs(0))(a),
    }


def test_a_unit_that_sees_all_has_the_whole_image_as_its_field():
    fields = check_exact(whole, tight=False)
    rows, columns = fields["mean"].support(0, 0, 0)
    assert rows.sum() == HEIGHT - 2 and columns.sum() == WIDTH - 2
    for name, field in fields.items():
        assert field.stride == 0, name
        assert field.size(1) == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(
            field.boxes(np.array([0, 1]), np.zeros((2, 2), int)),
            [[0, 0, HEIGHT, WIDTH]] * 2,
        )


def filtered(x):
    """Filters that depend on the image."""
    kernel = jnp.ones((2, 2, 3, 2)) * x.mean()
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=dimensions
    )


def rows_in_groups(x):
    return lax.conv_general_dilated(
        x,
        jnp.ones((1, 2, 3, 3)),
        (1, 1),
        "VALID",
        dimension_numbers=("HNWC", "HWIO", "HNWC"),
        batch_group_count=3,
    )


def shuffled(x):
    a = jnp.concatenate([x, conv(x, 3, 3, padding=1)], -1)
    return a.reshape(*a.shape[:3], 2, 3).swapaxes(-1, -2).reshape(a.shape)


def alternating(x):
    cells = x.reshape(len(x), 3, 7, 12, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(len(x), 3, 12, 42)


BOUNDED = {
    "cumulative": lambda x: jnp.cumsum(x, 1),
    "sorted": lambda x: jnp.sort(conv(x, 2, 3), 1),
    "flipped": lambda x: conv(x, 2, (3, 2))[:, ::-1],
    "flipped channels": lambda x: shuffled(x)[..., ::-1],
    "chosen channels": lambda x: shuffled(x)[..., jnp.array([4, 0])],
    "split": lambda x: jnp.split(shuffled(x), 3, -1)[1],
    "split in space": lambda x: jnp.split(conv(x, 1, 3, padding=1), 3, 2)[1],
    "chosen rows": lambda x: conv(x, 1, 3)[:, jnp.array([3, 9, 2])],
    "repeated": lambda x: conv(jnp.repeat(x, 2, 1), 2, 3),
    "upsampled": lambda x: conv(x, 2, 3, base=2, padding=1),
    "spread": lambda x: lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]),
    "resized": lambda x: jax.image.resize(x, (len(x), 9, 30, 3), "linear"),
    "reflected": lambda x: conv(
        jnp.pad(x, ((0, 0), (2, 2), (1, 1), (0, 0)), mode="reflect"), 2, 3
    ),
    "rolled": lambda x: jnp.roll(x, 3, 2),
    "joined": lambda x: jnp.concatenate([x[:, :, :9], x[:, :, 12:]], 2),
    "taken rows": lambda x: jax.vmap(
        lambda y, i: lax.dynamic_slice_in_dim(conv(y[None], 1, 3)[0], i, 5)
    )(x, jnp.full(len(x), 3)),
    "spread pooling": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 1, 1), "SAME", base_dilation=(1, 2, 1, 1)
    ),
    "one row everywhere": lambda x: jnp.broadcast_to(x[:, 3:4], x.shape),
    "one row": lambda x: x[:, 3:4] + x,
    "rows": lambda x: x.mean(2, keepdims=True) * x,
    "cells": alternating,
    "shuffled": shuffled,
    "rows as a batch": rows_in_groups,
    "rows as channels": lambda x: conv(x, 6, 2, groups=3, layout="NCHW"),
    "filters": filtered,
    "padded": lambda x: jnp.pad(
        x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=x.mean()
    ),
    "looped": lambda x: lax.fori_loop(0, 2, lambda _, y: conv(y, 3, 3, padding=1), x),
    "mixed": lambda x: conv(jnp.einsum("bhwc,hk->bkwc", x, jnp.ones((21, 5))), 2, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
def test_no_operation_sees_more_than_is_said(name):
    def forward(_, x):
        return {"layer": BOUNDED[name](x)}

    field = receptive_fields(forward, {}, HEIGHT, WIDTH)["layer"]
    seen = pixel_by_pixel(forward, HEIGHT, WIDTH)["layer"]
    assert (supports(field, seen.shape[:3]) >= seen).all()
    box = boxes(field, seen.shape[:3])
    check_within(seen, box)
    assert (field.stride == 0) == (box == [0, 0, HEIGHT, WIDTH]).all()


# Size, stride and dilation along one axis.
WINDOW = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    image=st.tuples(*[st.integers(7, 16)] * 2),
    kinds=st.lists(st.sampled_from(["conv", "max", "sum"]), min_size=1, max_size=4),
    data=st.data(),
)
def test_any_chain_has_the_textbooks_fields(image, kinds, data):
    windows, left = [], np.array(image)
    size, jump, start = np.array([[1, 1], [1, 1], [0, 0]])
    for kind in kinds:
        own, stride, dilation = np.transpose(data.draw(st.tuples(WINDOW, WINDOW), kind))
        reach = dilation * (own - 1)
        most = st.integers(0, int(reach.max()) + 1)
        padding = np.array(data.draw(st.tuples(*[st.tuples(most, most)] * 2)))
        left = (left + padding.sum(1) - reach - 1) // stride + 1
        assume((left > 0).all())
        start = start - padding[:, 0] * jump
        size, jump = size + reach * jump, jump * stride
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        windows.append((kind, own, options))

    def forward(_, x):
        x = x[..., :1]
        for kind, own, options in windows:
            new = functools.partial(conv, outputs=1) if kind == "conv" else pool
            named = {} if kind == "conv" else {"kind": kind}
            # The maximum of padding alone is -inf, against which no light shows.
            x = jax.nn.relu(new(x, size=own, **named, **options))
        return {"layer": x}

    field = check_exact(forward, *image, tight=False, changes=[1])["layer"]
    first = start + jump * np.moveaxis(np.indices(left), 0, -1)
    np.testing.assert_array_equal(
        boxes(field, (*left, 1))[:, :, 0], np.concatenate([first, first + size], -1)
    )
    assert field.size(0) == tuple(size) and field.stride == max(jump)


def test_support_is_where_the_jacobian_is_not_zero():
    def forward(x):
        a = jax.nn.relu(conv(x, 3, 4, stride=3, padding=1))
        b = a + conv(a, 3, 3, padding=1)
        return {"layer": nnx.avg_pool(b, (2, 3), (2, 2), [(1, 0), (0, 1)])}

    jacobian = jax.jit(jax.jacrev(forward))(jnp.ones((1, 10, 12, 3)))["layer"][
        0, ..., 0, :, :, :
    ]
    seen = np.asarray(jacobian.sum(-1) > 0)
    fields = receptive_fields(lambda _, x: forward(x), {}, 10, 12)["layer"]
    np.testing.assert_array_equal(supports(fields, seen.shape[:3]), seen)


def abstract(name, **options):
    """A network of shapes: nothing is computed."""
    options = {"pooling": "max", "last": None} | options
    return models.functional(
        nnx.eval_shape(lambda: NETWORKS[name].build(rngs=nnx.Rngs(0), **options))
    )


# size@stride, Zeiler & Fergus (2013) and torchvision's layout.
PUBLISHED = {
    "alexnet": """conv1 11@4 pool1 19@8 conv2 51@8 pool2 67@16 conv3 99@16 conv4 131@16
        conv5 163@16 pool5 195@32""",
    "alexnet_small": """conv1 7@2 pool1 11@4 conv2 27@4 pool2 35@8 conv3 51@8 conv4 67@8
        conv5 83@8 pool5 99@16""",
    "zfnet": """conv1 7@2 pool1 11@4 norm1 11@4 conv2 27@8 pool2 43@16 norm2 43@16
        conv3 75@16 conv4 107@16 conv5 139@16 pool5 171@32""",
}


def by_recursion(blocks):
    """VGG's, from 3 x 3 convolutions and 2 x 2 pooling."""
    size = stride = 1
    for block, (_, depth) in enumerate(blocks, 1):
        for i in range(depth):
            size += 2 * stride
            yield f"conv{block}_{i + 1}", (size, stride)
        size, stride = size + stride, 2 * stride
        yield f"pool{block}", (size, stride)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_and_strides_are_the_papers(name, pooling):
    if name in PUBLISHED:
        words = PUBLISHED[name].split()
        pairs = zip(words[::2], words[1::2], strict=True)
        expected = {name: tuple(map(int, word.split("@"))) for name, word in pairs}
    else:
        module = vgg16 if name == "vgg16" else vgg19
        expected = dict(by_recursion(module.WIDTHS_AND_DEPTHS))
    side = 64 if name == "alexnet_small" else 224
    expected |= {layer: (side, 0) for layer in ("fc6", "fc7", "fc8")}
    fields = receptive_fields(*abstract(name, pooling=pooling), side, side)
    assert list(fields) == models.layers(name)
    for layer, field in fields.items():
        size, stride = expected[layer.removesuffix("_pre")]
        assert field.size(0) == (size, size), layer
        assert field.stride == stride, layer


def thin(inputs, outputs, size, **options):
    return layers.conv(min(3, inputs), min(3, outputs), size, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, height, width",
    [
        ("alexnet", 224, 97),
        ("alexnet_small", 64, 53),
        ("vgg16", 224, 43),
        ("vgg19", 75, 224),
        ("zfnet", 224, 101),
    ],
)
def test_every_layer_of_the_networks_depends_on_its_support(
    name, height, width, monkeypatch
):
    """At corners, borders and the centre; with three channels, which move no pixel."""
    monkeypatch.setattr(vgg16 if name == "vgg19" else NETWORKS[name], "conv", thin)
    forward, params = abstract(name, last="pool5")
    fields = receptive_fields(forward, params, height, width)
    params = jax.tree.map(
        lambda x: jnp.full(x.shape, (x.ndim > 1) / math.prod(x.shape[:-1])), params
    )
    dark = np.broadcast_to(layers.IMAGENET_MEAN[0], (height, width, 3))
    images = np.repeat(dark[None], height + width, 0)
    for row in range(height):
        images[row, row] += 1
    for column in range(width):
        images[height + column, :, column] += 1
    for layer, x in changed(forward, params, images, dark).items():
        rows, columns = (
            {0, 1, n // 2, n - 2, n - 1} & {*range(n)} for n in x.shape[1:3]
        )
        for row, column in itertools.product(rows, columns):
            seen = np.concatenate(fields[layer].support(0, row, column))
            np.testing.assert_array_equal(seen, x[:, row, column, 0], err_msg=layer)


def test_boxes_come_for_many_units_at_once():
    def forward(_, x):
        a, b = conv(x, 2, 3, padding=1, stride=2), conv(x, 1, (5, 1), stride=2)
        return {"layer": jnp.concatenate([a[:, :9], b[:, :, :12]], -1)}

    fields = receptive_fields(forward, {}, HEIGHT, WIDTH)["layer"]
    found = fields.boxes(
        np.array([[0], [2]]), np.array([[[0, 0], [2, 3]], [[0, 0], [8, 11]]])
    )
    assert found.dtype == np.int32
    np.testing.assert_array_equal(
        found,
        [[[-1, -1, 2, 2], [3, 5, 6, 8]], [[0, 0, 5, 1], [16, 22, 21, 23]]],
    )
    assert fields.size(1) == (3, 3) and fields.size(2) == (5, 1) and fields.stride == 2


def test_rows_and_columns_may_move_by_different_strides():
    def forward(_, x):
        return {"layer": conv(x, 1, (3, 2), stride=(1, 4))}

    assert receptive_fields(forward, {}, 9, 9)["layer"].stride == 4


def test_the_field_of_a_sum_is_the_hull():
    def forward(_, x):
        late = conv(x, 1, 2)[:, 1:, 1:]
        return {"layer": conv(x, 1, 3, padding=1)[:, :-2, :-2] + late}

    field = receptive_fields(forward, {}, 9, 9)["layer"]
    position = np.array([2, 3])
    np.testing.assert_array_equal(field.boxes(np.array(0), position), [1, 2, 5, 6])


def test_branches_of_different_strides_are_refused():
    def forward(_, x):
        return {"sum": conv(x, 1, 1, stride=2)[:, :3, :3] + x[:, :3, :3, :1]}

    with pytest.raises(ValueError, match="fields move by 1 and 2 pixels"):
        receptive_fields(forward, {}, 8, 8)


def test_a_unit_that_sees_nothing_has_an_empty_field():
    def forward(params, x):
        place = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 1))
        both = jnp.concatenate([conv(x, 1, 3, padding=1), place], -1)
        return {
            "constant": params["bias"][None] * jnp.ones((1, 2)),
            "place": both,
            "joined": jnp.concatenate([both, both], 1),
        }

    fields = receptive_fields(forward, {"bias": jnp.ones(2)}, 8, 8)
    for field in fields.values():
        assert not np.outer(*field.support(1, 0, 0)).any()
        assert field.size(1) == (0, 0)
    assert fields["place"].size(0) == (3, 3) and fields["place"].stride == 1
    assert fields["constant"].stride == 0


def test_channels_that_are_padding_see_nothing():
    def forward(_, x):
        return {"layer": jnp.pad(x[..., :2], ((0, 0), (0, 0), (0, 0), (1, 1)))}

    seen = supports(receptive_fields(forward, {}, 5, 6)["layer"], (5, 6, 4))
    assert seen[:, :, 1:3].any((-1, -2)).all() and not seen[:, :, ::3].any()
