"""What a network computes from its parameters alone, done once for many images.

Winograd's filters are the larger part of a small picture's convolution, and the same at
every step that leaves the parameters as they are.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval

from nstvis.models import Forward, Params


def hoisted(
    forward: Forward, params: Params, images: Any
) -> tuple[Callable[[Params], Any], Forward]:
    """Splits a network in two: `forward(p, x) == rest(prepare(p), x)`, bit for bit.

    Args:
        forward: The network; what is inside of a `jax.jit` of its own stays whole.
        params: Its parameters, or their shapes.
        images: Images, or their shape. The second part takes no others.

    Returns:
        `prepare`, which takes parameters, and copies none of them unless it is compiled
        itself, and `rest`, which takes what that returns, and
        images, and is differentiable by the images.
    """
    names: list[str] = []

    def trace(params: Params, images: Array) -> list[Array]:
        activations = forward(params, images)
        names[:] = activations  # here, as JAX returns dicts sorted by key
        return list(activations.values())

    program = jax.make_jaxpr(trace)(params, images)
    # Without what no result depends on, such as layers beyond the last that is returned.
    used = [True] * len(program.out_avals)
    jaxpr, _ = partial_eval.dce_jaxpr(program.jaxpr, used, instantiate=True)
    *of_params, of_images = jaxpr.invars
    known, early, late = {*jaxpr.constvars, *of_params}, [], []
    for equation in jaxpr.eqns:
        if all(isinstance(x, Literal) or x in known for x in equation.invars):
            early.append(equation)
            known.update(equation.outvars)
        else:
            late.append(equation)
    used = [x for equation in late for x in equation.invars] + jaxpr.outvars
    cut = list(
        dict.fromkeys(x for x in used if not isinstance(x, Literal) and x in known)
    )
    inputs = [*jaxpr.constvars, *of_params]
    computed = [x for x in cut if x not in inputs]
    before = jax.jit(part(jaxpr, early, inputs, computed))
    after = part(jaxpr, late, [*cut, of_images], jaxpr.outvars)

    def prepare(params: Params) -> list[Array]:
        given = [*program.consts, *jax.tree.leaves(params)]
        made = zip([*inputs, *computed], [*given, *before(*given)], strict=True)
        values = dict(made)
        return [values[x] for x in cut]

    def rest(prepared: Any, images: Array) -> dict[str, Array]:
        return dict(zip(names, after(*prepared, images), strict=True))

    return prepare, rest


def part(
    jaxpr: Jaxpr, equations: list, inputs: list, outputs: list
) -> Callable[..., list[Array]]:
    """Returns the function that some of a program's equations compute.

    Args:
        jaxpr: The program.
        equations: The equations, in the program's order.
        inputs: Variables that the function takes.
        outputs: Variables that it returns.
    """
    program = jaxpr.replace(
        constvars=[],
        invars=inputs,
        outvars=outputs,
        eqns=equations,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jaxpr_as_fun(ClosedJaxpr(program, []))
