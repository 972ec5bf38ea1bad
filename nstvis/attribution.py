"""Attribution: one unit's activation carried back to the pixels under a rule for ReLUs.

`gradient` is the true one: it passes where the ReLU's input was above 0. `deconvnet`
(Zeiler & Fergus 2013, arXiv:1311.2901) passes the gradient where it is itself above 0, whatever the
input was, and `guided` (Springenberg et al. 2015, arXiv:1412.6806) passes what both do.
All other operations go back by their own gradients: convolutions and dense layers by
their transpose, max pooling to the first maximum of each window (the deconvnet's
switches), residual sums to both branches, batch norm as the scaling that it is after
training, and local response normalisation by its derivative, on which the papers are
silent.

    network = attribution.ruled(forward, "deconvnet")
    attribution.attribute(network, params, "conv5", images, units, positions)
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.extend.core import Literal as Constant

from nstvis.models import Forward, Params
from nstvis.runs.registry import unknown

RULES = ("gradient", "guided", "deconvnet")


def ruled(forward: Forward, rule: str) -> Forward:
    """Returns the same network with ReLUs that go back by a rule.

    A ReLU is what JAX sees as one: `jax.nn.relu(x)`, `jnp.maximum(x, 0)` or
    `jnp.clip(x, 0)`, also in functions that are called.

    Args:
        forward: The network.
        rule: One of `RULES`.

    Returns:
        A network of the same activations. So that the plain gradient never goes by
        another name, calling it raises ValueError if `forward` has no ReLU, or any
        other nonlinearity, to which no rule applies.

    Raises:
        ValueError: No such rule.
    """
    if rule not in RULES:
        raise ValueError(unknown("rule", rule, RULES))
    if rule == "gradient":
        return forward

    def network(params: Params, images: Array) -> dict[str, Array]:
        names: list[str] = []
        relu_inputs: list[Array] = []

        def trace(images: Array) -> list[Array]:
            activations = forward(params, images)
            names[:] = activations  # here, as JAX returns dicts sorted by key
            return list(activations.values())

        def relu(x: Array) -> Array:
            relu_inputs.append(x)
            return _relu(x, rule == "guided")

        program = jax.make_jaxpr(trace)(images)
        constants = [_Value(x) for x in program.consts]
        inputs = [_Value(images, of_images=True)]
        activations = _evaluate(program.jaxpr, constants, inputs, relu)
        if not relu_inputs:
            raise ValueError(f"the network has no ReLU, which {rule} is a rule for")
        return dict(zip(names, [x.array for x in activations], strict=True))

    return network


def attribute(
    forward: Forward,
    params: Params,
    layer: str,
    images: Array,
    units: Array,
    positions: Array,
    seed: Literal["activation", "one"] = "activation",
) -> tuple[Array, Array]:
    """Carries one unit's activation for each image back to its pixels.

    Args:
        forward: A network from `ruled`.
        params: Its parameters.
        layer: The unit's layer.
        images: float32 `[n, height, width, 3]`, RGB 0..255.
        units: int `[n]`, a channel of the layer for each image.
        positions: int `[n, 2]`, row and column in the layer's map; ignored if it has
            none.
        seed: What is carried back: the activation, as the deconvnet does, or 1.

    Returns:
        The attributions `[n, height, width, 3]`, around 0, and the activations `[n]`.
    """

    def activation(images: Array) -> Array:
        x = forward(params, images)[layer]
        index = jnp.arange(len(x))
        if x.ndim == 2:
            return x[index, units]
        return x[index, positions[:, 0], positions[:, 1], units]

    scores, pull_back = jax.vjp(activation, images)
    (pixels,) = pull_back(scores if seed == "activation" else jnp.ones_like(scores))
    return pixels, scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _relu(x: Array, guided: bool) -> Array:
    return jnp.maximum(x, 0)


def _relu_forward(x: Array, guided: bool) -> tuple[Array, Array]:
    return jnp.maximum(x, 0), x > 0 if guided else jnp.array(True)


def _relu_backward(guided: bool, passed: Array, back: Array) -> tuple[Array]:
    return (jnp.where(passed, jnp.maximum(back, 0), 0),)


_relu.defvjp(_relu_forward, _relu_backward)


class _Value(NamedTuple):
    array: Any
    # Whether it depends on the images.
    of_images: bool = False
    # The number that all its elements are, as far as the program shows it.
    constant: float | None = None


def _evaluate(
    jaxpr: Jaxpr,
    constants: Sequence[_Value],
    inputs: Sequence[_Value],
    relu: Callable[[Array], Array],
) -> list[_Value]:
    """Evaluates a program with another ReLU."""
    values: dict[Any, _Value] = {}
    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Value:
        if isinstance(atom, Constant):
            return _Value(atom.val, constant=None if jnp.ndim(atom.val) else atom.val)
        return values[atom]

    for eqn in jaxpr.eqns:
        results = _results(eqn, [read(atom) for atom in eqn.invars], relu)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(
    eqn: JaxprEqn, xs: list[_Value], relu: Callable[[Array], Array]
) -> list[_Value]:
    name, of_images = eqn.primitive.name, any(x.of_images for x in xs)
    nonlinear = _primitives(eqn) - PASSED if of_images else set()
    if nonlinear == {"max"} == {name}:
        if any(x.constant == 0 for x in xs):
            (x,) = (x for x in xs if x.of_images)
            return [_Value(relu(x.array), of_images=True)]
        if any(x.constant == -math.inf for x in xs):  # softmax has it
            nonlinear = set()
    if nonlinear and name in CALLS:
        (program,) = jaxprs_in_params(eqn.params)
        return _evaluate(program, _constants(eqn), xs, relu)
    if nonlinear:
        inside = "" if nonlinear == {name} else f" inside of `{name}`"
        raise ValueError(
            f"the network has `{min(nonlinear)}`{inside}, which no rule for ReLUs"
            " applies to: where it is a ReLU, write it as jax.nn.relu(x)"
        )
    params = eqn.primitive.get_bind_params(eqn.params)
    results = eqn.primitive.bind(*(x.array for x in xs), **params)
    constant = xs[0].constant if name in KEEP_CONSTANT else None
    results = results if eqn.primitive.multiple_results else [results]
    return [_Value(x, of_images, constant) for x in results]


def _constants(call: JaxprEqn) -> list[_Value]:
    """Returns the constants of the program that is called."""
    consts = [getattr(param, "consts", ()) for param in call.params.values()]
    return [_Value(x) for x in itertools.chain(*consts)]


def _primitives(eqn: JaxprEqn) -> set[str]:
    """Returns the primitives of an equation, those of what it calls in its place."""
    called = [inner for jaxpr in jaxprs_in_params(eqn.params) for inner in jaxpr.eqns]
    return set().union(*map(_primitives, called)) or {eqn.primitive.name}


# Calls that are replaced by what they call; not `custom_vjp_call`, whose gradient would
# be lost.
CALLS = {
    *("checkpoint", "closed_call", "core_call", "jit", "pjit", "remat2"),
    "custom_jvp_call",
}
KEEP_CONSTANT = {"broadcast_in_dim", "convert_element_type", "copy", "reshape"}
# What goes back by its own gradient: the linear, poolings, and what normalises.
PASSED = {
    *("add", "add_any", "conv_general_dilated", "cumsum", "div", "dot_general", "mul"),
    *("neg", "reduce_sum", "reduce_window", "reduce_window_sum", "sub"),
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p"),
    *("dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "pad"),
    *("reduce_precision", "reshape", "rev", "select_n", "slice", "split", "squeeze"),
    *("stack", "tile", "unstack"),
    *("transpose", "optimization_barrier", "sharding_constraint", "stop_gradient"),
    *("exp", "integer_pow", "log", "pow", "rsqrt", "sqrt", "square"),
    *("reduce_max", "reduce_window_max"),
}
