"""Layers faster than XLA's, and the chain that names activations.

Arrays are `[batch, height, width, channels]`. Gradients are written by hand where XLA's
are slow, and so are 3 x 3 convolutions on a CPU (`nstvis.winograd`).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from nstvis import winograd

IMAGENET_MEAN = 255 * np.array([[[[0.485, 0.456, 0.406]]]], np.float32)
# The mean colour of ImageNet; networks here subtract it, so it is their zero.
MEAN_COLOR = IMAGENET_MEAN[0, 0, 0]
IMAGENET_STD = 255 * np.array([[[[0.229, 0.224, 0.225]]]], np.float32)
CAFFE_MEAN = np.array([[[[123.68, 116.779, 103.939]]]], np.float32)

# What networks see of RGB images 0..255, by who trained them.
PREPROCESSING: dict[str, Callable[[Array], Array]] = {
    "torchvision": lambda images: (images - IMAGENET_MEAN) / IMAGENET_STD,
    # BGR, and no division.
    "caffe": lambda images: (images - CAFFE_MEAN)[..., ::-1],
}


class Chain(nnx.Module):
    """A ConvNet: layers by name, applied in order.

    Every parameterised layer but the network's last one, the logits, is followed by
    a ReLU. `conv1` names the activation after the ReLU, which is what the papers show
    and match; `conv1_pre` is the same layer's before it.

    Args:
        layers: Layer name to layer. A layer is a function of one array; those with
            parameters are Flax NNX modules, which may have branches inside.
        last: Leaves out all layers after this one; the whole network by default.

    Attributes:
        preprocessing: One of `PREPROCESSING`; `models.load` sets what the weights need.
    """

    def __init__(self, layers: dict[str, Callable[[Array], Array]], last: str | None):
        self.preprocessing = "torchvision"
        names = tuple(layers)
        self.logits = names[-1]
        end = names.index(last.removesuffix("_pre")) if last else len(names)
        self.names = names[: end + 1]
        for name in self.names:
            setattr(self, name, layers[name])

    def __call__(self, images: Array) -> dict[str, Array]:
        """Maps images `[batch, height, width, 3]`, RGB 0..255, to all activations."""
        x = PREPROCESSING[self.preprocessing](images)
        activations = {}
        for name in self.names:
            layer = getattr(self, name)
            x = layer(x)
            if isinstance(layer, nnx.Module) and name != self.logits:
                activations[f"{name}_pre"] = x
                x = jax.nn.relu(x)
            activations[name] = x
        return activations


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Builds a square convolution; by default padded so that it keeps the size."""
    pad = size // 2 if padding is None else padding
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=pad,
        use_bias=bias,
        conv_general_dilated=_square_conv,
        rngs=rngs,
    )


def pool(kind: str, size: int, stride: int, padding: int = 0) -> Callable:
    """Returns pooling over `size` x `size` windows: `max`, or `average` (Gatys et al.).

    Raises:
        ValueError: The kind is neither.
    """
    if kind == "max":
        return functools.partial(max_pool, size=size, stride=stride, padding=padding)
    if kind == "average":
        return functools.partial(
            average_pool, size=size, stride=stride, padding=padding
        )
    raise ValueError(f"pooling is 'max' or 'average', not {kind!r}")


class GridLinear(nnx.Linear):
    """A dense layer on a feature map, first averaged to `grid` x `grid` cells.

    The cells are those of PyTorch's `adaptive_avg_pool2d`, flattened channels first, so
    that published dense layers fit and images may have any size.
    """

    def __init__(self, channels: int, grid: int, outputs: int, *, rngs: nnx.Rngs):
        super().__init__(channels * grid * grid, outputs, rngs=rngs)
        self.grid = grid

    def __call__(self, inputs: Array) -> Array:
        if not inputs.size:
            raise ValueError("the images are too small: nothing is left after pooling")
        rows = jnp.asarray(_cell_averages(inputs.shape[1], self.grid))
        columns = jnp.asarray(_cell_averages(inputs.shape[2], self.grid))
        cells = jnp.einsum("bhwc,ih,jw->bcij", inputs, rows, columns)
        return super().__call__(cells.reshape(len(inputs), -1))


def _cell_averages(length: int, cells: int) -> np.ndarray:
    matrix = np.zeros((cells, length), np.float32)
    for i in range(cells):
        start, stop = i * length // cells, math.ceil((i + 1) * length / cells)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def local_response_norm(x: Array) -> Array:
    """Normalises across 5 neighbouring channels (Krizhevsky et al. 2012, section 3.3).

    With the constants of the reference implementation, in which alpha is divided by
    the window: x / (2 + 1e-4 / 5 * sum x^2)^0.75.
    """
    window = ((0, 0), (0, 0), (0, 0), (2, 2))
    squares = lax.reduce_window(x**2, 0.0, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), window)
    return x / (2 + 1e-4 / 5 * squares) ** 0.75


def average_pool(x: Array, size: int, stride: int, padding: int = 0) -> Array:
    """Averages windows; zeros beyond the borders count."""
    if size == stride and not padding:
        return _average(x, size, x.shape[1:3])
    return nnx.avg_pool(
        x,
        window_shape=(size, size),
        strides=(stride, stride),
        padding=[(padding, padding)] * 2,  # pyright: ignore[reportArgumentType]
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _average(x: Array, size: int, sides: tuple[int, int]) -> Array:
    """Averages windows that do not overlap, as a sum that XLA fuses with other layers."""
    rows, columns = (n // size * size for n in sides)
    x = x[:, :rows, :columns]
    parts = [x[:, i::size, j::size] for i, j in np.ndindex(size, size)]
    return sum(parts[1:], parts[0]) / size**2


def _average_forward(x, size, sides):
    return _average(x, size, sides), None


def _average_backward(size, sides, _, gradient):
    batch, rows, columns, channels = gradient.shape
    cells = (gradient / size**2)[:, :, None, :, None]
    cells = jnp.broadcast_to(cells, (batch, rows, size, columns, size, channels))
    x = cells.reshape(batch, rows * size, columns * size, channels)
    return (_crop(x, 0, *sides),)


_average.defvjp(_average_forward, _average_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: Array, size: int, stride: int, padding: int = 0) -> Array:
    """Max-pools; the gradient goes to the first maximum of each window, row by row.

    XLA's own gradient (select-and-scatter) takes 4 to 30 times as long on a CPU.
    """
    edge = (padding, padding)
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    padded = ((0, 0), edge, edge, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padded)


def _max_pool_forward(x, size, stride, padding):
    y = max_pool(x, size, stride, padding)
    return y, (x, y)


def _max_pool_backward(size, stride, padding, residuals, gradient):
    x, y = residuals
    edge = (padding, padding)
    x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (stride * (n - 1) + 1 for n in y.shape[1:3])
    reach = -(-size // stride)
    # Windows that share a pixel do so at offsets a multiple of the stride apart: sum
    # those in a grid per remainder, and interleave the grids once at the end.
    zero = jnp.pad(jnp.zeros_like(gradient), _shift(0, 0, reach))
    grids = [[zero] * stride for _ in range(stride)]
    taken = jnp.zeros(y.shape, bool)
    for i, j in np.ndindex(size, size):
        switch = (x[:, i : i + rows : stride, j : j + columns : stride] == y) & ~taken
        taken |= switch
        (down, row), (right, column) = divmod(i, stride), divmod(j, stride)
        routed = jnp.pad(jnp.where(switch, gradient, 0), _shift(down, right, reach))
        grids[row][column] += routed
    pixels = _interleave(jnp.stack([jnp.stack(row, -2) for row in grids], -3))
    return (_crop(pixels, padding, x.shape[1] - padding, x.shape[2] - padding),)


def _shift(down: int, right: int, reach: int):
    return (0, 0), (down, reach - 1 - down), (right, reach - 1 - right), (0, 0)


def _interleave(cells: Array) -> Array:
    """Depth to space: `[b, h, w, s, t, c]` to `[b, h * s, w * t, c]`."""
    b, h, w, s, t, c = cells.shape
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * t, c)


def _crop(x: Array, start: int, bottom: int, right: int) -> Array:
    """Takes `[start:bottom, start:right]`, with zeros where `x` ends before."""
    missing = ((0, 0), (0, max(0, bottom - x.shape[1])))
    x = jnp.pad(x, (*missing, (0, max(0, right - x.shape[2])), (0, 0)))
    return x[:, start:bottom, start:right]


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _square_conv(x, kernel, strides, padding, *, dimension_numbers, **options):
    """`lax.conv_general_dilated` as NNX calls it, for square kernels and strides."""
    return convolve(x, kernel, strides[0], padding[0][0])


def convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Convolves images by the fastest algorithm for their shape.

    Args:
        x: `[batch, height, width, inputs]`.
        kernel: `[size, size, inputs, outputs]`.
        stride: Of both axes.
        padding: Zeros on all four sides, in pixels.
    """
    if m := winograd_tile(x, kernel, stride, padding):
        return winograd.convolve(x, kernel, m)
    return _conv(x, kernel, stride, padding)


def winograd_tile(x: Array, kernel: Array, stride: int, padding: int) -> int:
    """Chooses the algorithm of a convolution.

    In batches of two or more, it does not depend on how many images there are, so that
    an image's activations are the same in all of them. Where the "highest" precision is
    asked for (`jax.default_matmul_precision`), it is XLA's.

    Returns:
        The side of the tiles that Winograd's algorithm computes, 2 to 4; 0 for XLA's
        convolution.
    """
    height, width, _ = x.shape[1:]
    size, inputs, outputs = kernel.shape[1:]
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32:
        return 0
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if precision == "highest":
        return 0
    if not x.size or size not in (3, 5) or (stride, padding) != (1, size // 2):
        return 0
    # Few channels do not make up for the transforms, which maps that exceed the cache slow
    # down most.
    cached = 4 * height * width * max(inputs, outputs) <= 8e6
    if min(inputs, outputs) < (32 if cached else 128):
        return 0
    # Border tiles hang over, so large ones are a waste on maps of 5 x 5.
    tiles = {
        m: -(-height // m) * -(-width // m) for m in ((2, 3, 4) if size == 3 else (2,))
    }
    m = min(tiles, key=lambda m: tiles[m] * (m + size - 1) ** 2)
    if len(x) > 1:
        return m
    # Filters are up to four times the kernel, and have to be read for few tiles, too; and
    # what takes a millisecond is not worth a second of compilation.
    products = height * width * inputs * outputs * size**2
    return m if tiles[m] >= 9 and products > 5e7 else 0


def xla_convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Convolves as XLA does, with the arguments of `convolve`."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


_conv = jax.custom_vjp(xla_convolve, nondiff_argnums=(2, 3))


def _conv_forward(x, kernel, stride, padding):
    return _conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, gradient):
    x, kernel = residuals
    by_x = _image_gradient(gradient, kernel, stride, padding, x.shape[1:3])
    return by_x, _kernel_gradient(x, kernel, stride, padding, gradient)


def _image_gradient(gradient, kernel, stride, padding, size):
    """Computes the gradient by the image, and convolves no inserted zeros, as XLA does.

    A pixel at stride * q + r receives sum_j gradient[q - j] kernel[stride * j + r]:
    one convolution of stride 1 computes all remainders r as channels.
    """
    side, _, inputs, outputs = kernel.shape
    if stride == 1 and inputs <= 4 and jax.default_backend() == "cpu":
        return _few_inputs_gradient(gradient, kernel, padding, size)
    reach = -(-side // stride)
    edge = (0, reach * stride - side)
    taps = jnp.pad(kernel, (edge, edge, (0, 0), (0, 0)))
    taps = taps.reshape(reach, stride, reach, stride, inputs, outputs)
    taps = taps[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    taps = taps.reshape(reach, reach, outputs, -1)
    cells = xla_convolve(gradient, taps, 1, reach - 1)
    pixels = _interleave(cells.reshape(*cells.shape[:3], stride, stride, inputs))
    return _crop(pixels, padding, size[0] + padding, size[1] + padding)


def _few_inputs_gradient(gradient, kernel, padding, size):
    """Computes the gradient by the image as one matrix product, and adds its windows.

    XLA has no fast convolution with so few outputs: on a CPU it takes four times as long.
    """
    side, _, inputs, outputs = kernel.shape
    taps = kernel.transpose(3, 0, 1, 2).reshape(outputs, -1)
    windows = (gradient @ taps).reshape(*gradient.shape[:3], side, side, inputs)
    pixels = jnp.zeros(())
    for i, j in np.ndindex(side, side):
        edges = (0, 0), (i, side - 1 - i), (j, side - 1 - j), (0, 0)
        pixels += jnp.pad(windows[..., i, j, :], edges)
    return _crop(pixels, padding, size[0] + padding, size[1] + padding)


def _kernel_gradient(x, kernel, stride, padding, gradient):
    """Computes the gradient by the kernel: a product of the gradient with patches.

    XLA convolves x with the whole gradient as a kernel, which takes twice as long on a
    CPU. There is a product for each row of the kernel, or one if that takes no more
    than twice the memory of the gradient.
    """
    if jax.default_backend() != "cpu":
        transpose = jax.linear_transpose(
            lambda k: xla_convolve(x, k, stride, padding), kernel
        )
        return transpose(gradient)[0]
    side, _, inputs, outputs = kernel.shape
    rows, columns = gradient.shape[1:3]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    wide = jnp.concatenate(
        [x[:, :, j::stride][:, :, :columns] for j in range(side)], -1
    )
    patches = [wide[:, i::stride][:, :rows] for i in range(side)]
    if side * side * inputs <= 3 * outputs:
        patches = [jnp.concatenate(patches, -1)]
    flat = gradient.reshape(-1, outputs).T
    parts = [flat @ part.reshape(-1, part.shape[-1]) for part in patches]
    by_kernel = jnp.concatenate(parts, -1).reshape(outputs, side, side, inputs)
    return by_kernel.transpose(1, 2, 3, 0)


_conv.defvjp(_conv_forward, _conv_backward)
