"""Layers as affine functions of other layers, found in the network's own program.

What a unit is before its ReLU is a bias and a sum of weights times inputs. The inputs are
where a walk from the pre-activation back through affine operations (convolutions, dense
layers, batch norm, sums, averages) ends: at another layer's activations, or what max
pooling or a normalisation made of them. A chain has one such end for each layer; a layer
that is a sum, such as a residual block's, has several.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from nstvis.attribution import CALLS, KEEP_CONSTANT
from nstvis.hoisting import part
from nstvis.models import Forward, Params


@dataclasses.dataclass(frozen=True)
class Input:
    """Activations that a layer is an affine function of."""

    # The layer that they are of, maybe pooled or normalised since; "inside LAYER" if they
    # are a ReLU's in LAYER itself, numbered if there are several, "" if the image.
    layer: str
    # Where the program has them.
    variable: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """`[batch, height, width, channels]` or `[batch, channels]`."""
        return self.variable.aval.shape


@dataclasses.dataclass(frozen=True)
class Sum:
    """A layer whose pre-activation is an affine function of its inputs."""

    # Where the program has it.
    pre_activation: Any
    inputs: tuple[Input, ...]
    # Whether the layer's activation is the ReLU of that, rather than the same.
    relu: bool


class Program:
    """A network as a sequence of operations.

    Args:
        forward: The network.
        params: Its parameters, or their shapes.
        images: The shape of the images; the program takes no others.
    """

    def __init__(self, forward: Forward, params: Params, images: jax.ShapeDtypeStruct):
        names: list[str] = []

        def trace(params: Params, images: Array) -> list[Array]:
            activations = forward(params, images)
            names[:] = activations  # here, as JAX returns dicts sorted by key
            return list(activations.values())

        # Convolutions as such, rather than by Winograd's algorithm.
        with jax.default_matmul_precision("highest"):
            nested = jax.make_jaxpr(trace)(params, images)

            def inlined(*inputs: Array) -> list[Array]:
                return _inlined(nested.jaxpr, nested.consts, inputs)

            self._program = jax.make_jaxpr(inlined)(*jax.tree.leaves((params, images)))
        self.images: Any = self._program.jaxpr.invars[-1]
        self._named = dict(zip(names, self._program.jaxpr.outvars, strict=True))
        self._maker = {x: e for e in self._program.jaxpr.eqns for x in e.outvars}
        self._of_images = _dependent(self._program.jaxpr, {self.images})

    def function(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Callable:
        """Returns `f(params, *inputs) -> outputs` for values of the program."""
        jaxpr, needed, seen = self._program.jaxpr, set(), {*inputs}
        waiting = [x for x in outputs if x not in seen]
        while waiting:
            variable = waiting.pop()
            if variable in seen or variable not in self._maker:
                continue
            seen.add(variable)
            needed.add(id(self._maker[variable]))
            waiting += _variables(self._maker[variable].invars)
        equations = [e for e in jaxpr.eqns if id(e) in needed]
        first = [*jaxpr.constvars, *jaxpr.invars[:-1]]
        computed = part(jaxpr, equations, [*first, *inputs], list(outputs))

        def function(params: Params, *inputs: Array) -> list[Array]:
            return computed(*self._program.consts, *jax.tree.leaves(params), *inputs)

        return function

    def sum(self, layer: str, layers: Collection[str]) -> Sum:
        """Finds what a layer is a sum of.

        Args:
            layer: Its name.
            layers: Names of all layers whose units may be inputs.

        Raises:
            ValueError: It is no affine function of other layers' activations, or no ReLU
                of one.
        """
        activation = self._named[layer]
        rectified = self._rectified(activation)
        pre_activation = activation if rectified is None else rectified
        variables = self._ends(layer, pre_activation)
        names = [self._origin(layer, x, layers) for x in variables]
        inside = [name for name in names if name == f"inside {layer}"]
        if len(inside) > 1:
            number = itertools.count(1)
            names = [f"{x} {next(number)}" if x in inside else x for x in names]
        inputs = [Input(*pair) for pair in zip(names, variables, strict=True)]
        return Sum(pre_activation, tuple(inputs), rectified is not None)

    def _walk(self, start: Any, is_end: Callable[[Any, JaxprEqn], bool]) -> list[Any]:
        """Walks back through what depends on the images; returns where that ends."""
        ends, seen, waiting = [], set(), [start]
        while waiting:
            variable = waiting.pop()
            if variable in seen:
                continue
            seen.add(variable)
            maker = self._maker.get(variable)
            if maker is None or is_end(variable, maker):
                ends.append(variable)
            else:
                waiting += [x for x in _variables(maker.invars) if self._depends(x)]
        return ends

    def _ends(self, layer: str, start: Any) -> list[Any]:
        """Walks back through affine operations; returns where that ends."""
        named = {*_variables(self._named.values())} - {start}

        def is_end(variable: Any, maker: JaxprEqn) -> bool:
            return variable in named or not _affine(maker, self._of_images)

        ends = self._walk(start, is_end)
        if start in ends:
            raise ValueError(
                f"{layer} is neither an affine function of other layers nor a ReLU of one"
            )
        return ends[::-1]  # in the order in which the program adds them

    def _origin(self, layer: str, variable: Any, layers: Collection[str]) -> str:
        """Returns the name of the layer that activations are of."""
        names = {
            x: name for name, x in self._named.items() if not isinstance(x, Literal)
        }
        names |= {self._named[name]: name for name in layers}
        wanted = {self._named[name] for name in layers}

        def is_end(x: Any, maker: JaxprEqn) -> bool:
            rectified = self._rectified(x) is not None
            return x in wanted or rectified or bool(_primitives([maker]) & _MIXING)

        found = self._walk(variable, is_end)
        if found == [self.images]:
            return ""
        if len(found) == 1 and found[0].aval.shape[-1] == variable.aval.shape[-1]:
            if found[0] in names:
                return names[found[0]]
            if self._rectified(found[0]) is not None:
                return f"inside {layer}"
        raise ValueError(
            f"{layer} is a function of what is no other layer's activation, even pooled"
        )

    def _depends(self, variable: Any) -> bool:
        return variable in self._of_images

    def _rectified(self, variable: Any) -> Any:
        """Returns what a variable is the ReLU of; None if it is no ReLU."""
        maker = self._maker.get(variable)
        if maker is None or maker.primitive.name != "max":
            return None
        for x, other in itertools.permutations(maker.invars):
            if self._constant(other) == 0 and x in self._of_images:
                return x
        return None

    def _constant(self, atom: Any) -> Any:
        """Returns the number that all elements are, as far as the program shows it."""
        if isinstance(atom, Literal):
            return atom.val if not getattr(atom.val, "shape", ()) else None
        maker = self._maker.get(atom)
        if maker is None or maker.primitive.name not in KEEP_CONSTANT:
            return None
        return self._constant(maker.invars[0])


def _inlined(
    jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[Any]
) -> list[Array]:
    """Evaluates a program, what it calls in place of the calls."""
    values: dict[Any, Any] = {}
    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        xs = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in CALLS:
            (called,) = _called(eqn)
            results = _inlined(called.jaxpr, called.consts, xs)
        else:
            params = eqn.primitive.get_bind_params(eqn.params)
            results = eqn.primitive.bind(*xs, **params)
            results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _called(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """Yields the programs that an equation calls."""
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr):
            yield value
        elif isinstance(value, Jaxpr):
            yield ClosedJaxpr(value, [])


def _variables(atoms: Iterable[Any]) -> list[Any]:
    return [x for x in atoms if not isinstance(x, Literal)]


def _dependent(jaxpr: Jaxpr, first: set[Any]) -> set[Any]:
    """Returns all variables that depend on the first ones, and these."""
    found = set(first)
    for eqn in jaxpr.eqns:
        if found.intersection(_variables(eqn.invars)):
            found.update(eqn.outvars)
    return found


def _affine(eqn: JaxprEqn, variables: set[Any]) -> bool:
    """Whether an equation is affine in those of its inputs, all taken together."""
    depends = [x for x in eqn.invars if not isinstance(x, Literal) and x in variables]
    called = list(jaxprs_in_params(eqn.params))
    if called:
        return len(called) == 1 and _affine_program(eqn, called[0], variables)
    if eqn.primitive.name in _LINEAR_IN_FIRST:
        return depends == eqn.invars[:1]
    if eqn.primitive.name in _LINEAR_IN_EACH:
        return len(depends) == 1
    return eqn.primitive.name in _LINEAR


def _affine_program(eqn: JaxprEqn, called: Jaxpr, variables: set[Any]) -> bool:
    if len(called.invars) != len(eqn.invars):
        return False
    pairs = zip(eqn.invars, called.invars, strict=True)
    first = {y for x, y in pairs if not isinstance(x, Literal) and x in variables}
    inner = _dependent(called, first)
    return all(
        _affine(e, inner)
        for e in called.eqns
        if inner.intersection(_variables(e.invars))
    )


def _primitives(equations: Iterable[JaxprEqn]) -> set[str]:
    """Returns the primitives of equations, and of what they call."""
    found = set()
    for eqn in equations:
        found.add(eqn.primitive.name)
        for called in jaxprs_in_params(eqn.params):
            found |= _primitives(called.eqns)
    return found


# What makes channels of all channels.
_MIXING = {"conv_general_dilated", "dot_general"}
_LINEAR = {
    *("add", "add_any", "concatenate", "convert_element_type", "copy", "copy_p"),
    *(
        "broadcast_in_dim",
        "cumsum",
        "expand_dims",
        "neg",
        "optimization_barrier",
        "pad",
    ),
    *("reduce_precision", "reduce_sum", "reduce_window_sum", "reshape", "rev", "slice"),
    *("sharding_constraint", "split", "squeeze", "stack", "sub", "tile", "transpose"),
}
# Whatever else they take must not depend on the image.
_LINEAR_IN_FIRST = {"div", "dynamic_slice", "gather"}
_LINEAR_IN_EACH = {"conv_general_dilated", "dot_general", "mul"}
