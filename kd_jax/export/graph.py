"""A network as a graph of a few operations, from the program that JAX traces of it.

ONNX and TensorFlow Lite have no operation for every primitive of JAX, and none for a batch of any
size. So the program is read equation by equation into `Node`s, whose semantics are NumPy's with
images as `[batch, H, W, C]`. What depends on weights only is computed here. What the zoo does not
need is refused by its name.

`graph_rules` makes larger operations of small ones: means, activations, pooling, and batch norm as
part of the convolution before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from kd_jax.models import quantize
from kd_jax.runtime.errors import UserError

BATCH = 1009  # images that a network is traced with: a prime, so no other size equals it
_UNARY = frozenset(("exp", "log", "logistic", "neg", "rsqrt", "sqrt", "square", "tanh", "abs"))
_BINARY = frozenset(("add", "sub", "mul", "div", "max", "min"))
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that are programs
_NHWC, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1)


@dataclasses.dataclass(eq=False)
class Node:
    """One operation and its result.

    Attributes:
      op: name of the operation.
      inputs: nodes, or constant arrays. Operands of elementwise operations are broadcast.
      shape: of the result; the batch has the size `BATCH`, or 1 where it does not matter.
      options: of the operation; axes and widths count as in `shape`.
      kernel: of `conv` and `dense`, with the outputs last; of `affine` the factors of channels.
      bias: of these, one value for each output.
    """

    op: str
    inputs: tuple[Operand, ...]
    shape: tuple[int, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    kernel: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(1))
    bias: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1))

    @property
    def input(self) -> Node:
        """The node that an operation of one operand is of."""
        (x,) = self.inputs
        assert isinstance(x, Node)
        return x


Operand: TypeAlias = Node | np.ndarray


class UnsupportedError(UserError):
    """A network has an operation that a format cannot hold."""


def trace(call: Callable[[Any], jax.Array], image_shape: tuple[int, int, int]) -> Node:
    """Return the result of a function of images as a node; its one free node is the `input`.

    Args:
      call: maps uint8 `[n, H, W, C]` to float32 `[n, classes]`, each image by itself.
      image_shape: `(H, W, C)`.

    Raises:
      UnsupportedError: the program has an operation that is not known here.
    """
    shape = (BATCH, *image_shape)
    closed = jax.make_jaxpr(call)(jax.ShapeDtypeStruct(shape, jnp.uint8))
    (result,) = _evaluate(closed.jaxpr, closed.consts, [Node("input", (), shape)])
    if not isinstance(result, Node):
        raise UnsupportedError("the outputs of this network do not depend on the image")
    return result


def in_order(output: Node) -> list[Node]:
    """Return all nodes that a node depends on, each after its inputs; the node itself is last."""
    ordered: dict[int, Node] = {}
    stack: list[tuple[Node, Iterator[Node]]] = [(output, _nodes(output))]
    while stack:
        node, inputs = stack[-1]
        following = next((one for one in inputs if id(one) not in ordered), None)
        if following is None:
            ordered[id(node)] = node
            stack.pop()
        else:
            stack.append((following, _nodes(following)))
    return list(ordered.values())


def _nodes(node: Node) -> Iterator[Node]:
    return (one for one in node.inputs if isinstance(one, Node))


def elementwise(op: str, *inputs: Operand) -> Node:
    """Return an elementwise operation of operands that are broadcast."""
    return Node(op, inputs, np.broadcast_shapes(*(one.shape for one in inputs)))


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Operand]) -> list[Operand]:
    """Return the results of a program, as nodes where they depend on the images."""
    values: dict[Any, Operand] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Operand:
        if isinstance(variable, jax.extend.core.Literal):
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype)
        return values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = _results(equation, inputs)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _results(equation: Any, inputs: list[Operand]) -> list[Operand]:
    name, params = equation.primitive.name, equation.params
    if params.get("name") == quantize.NAME and isinstance(inputs[0], Node):
        return [_rounded(inputs[0], inputs[1])]
    if inner := next((params[key] for key in _INNER if key in params), None):
        return _evaluate(inner.jaxpr, inner.consts, inputs)
    shapes = [variable.aval.shape for variable in equation.outvars]
    is_constant = not any(isinstance(one, Node) for one in inputs)
    if is_constant and not any(BATCH in shape for shape in shapes):
        results = equation.primitive.bind(*map(jnp.asarray, inputs), **params)
        results = results if equation.primitive.multiple_results else [results]
        return [np.asarray(result) for result in results]
    if name == "broadcast_in_dim":
        return [_broadcast(inputs[0], params["shape"], params["broadcast_dimensions"])]
    if name in _BINARY | _UNARY:
        return [elementwise(name, *inputs)]
    read = _READERS.get(name)
    first = inputs[0]
    if read is None or not isinstance(first, Node):
        raise _unsupported(equation, "")
    if name not in _BROADCASTING:
        first = _repeated(equation, first)
    return [read(equation, first, *inputs[1:])]


def _rounded(x: Node, ends: Operand) -> Node:
    """Return what `quantize.fake_quantize` makes of a value: `low` and `high` are on its grid."""
    assert isinstance(ends, np.ndarray)
    step, least, most = map(float, quantize.grid(ends))
    options = {"low": least * step, "high": most * step}
    return Node("fake_quantize", (x,), x.shape, options)


def _unsupported(equation: Any, detail: str) -> UnsupportedError:
    return UnsupportedError(
        f"the network has the operation {equation.primitive.name}{detail}, which this format's "
        "writer does not know: --format=stablehlo holds any network"
    )


def _broadcast(value: Operand, shape: tuple[int, ...], dimensions: Sequence[int]) -> Operand:
    """Return a value with axes of size 1 where it is repeated; whoever uses it broadcasts."""
    sizes = [1] * len(shape)
    for size, axis in zip(value.shape, dimensions, strict=True):
        sizes[axis] = size
    if isinstance(value, np.ndarray):
        return value.reshape(sizes)
    return _reshape(value, tuple(sizes))


def _repeated(equation: Any, value: Node) -> Node:
    """Return a value with the shape that it has in the program."""
    shape = equation.invars[0].aval.shape
    if value.shape == shape:
        return value
    counts = tuple(new // old for new, old in zip(shape, value.shape, strict=True))
    if counts[0] != 1:
        raise _unsupported(equation, " of what is the same for all images")
    return Node("tile", (value,), shape, {"counts": counts})


def _reshape(value: Node, shape: tuple[int, ...]) -> Node:
    return value if value.shape == shape else Node("reshape", (value,), shape)


def _read_reshape(equation: Any, x: Node) -> Node:
    shape = equation.outvars[0].aval.shape
    if shape[:1] != (BATCH,):
        raise _unsupported(equation, " of the batch")
    return _reshape(x, shape)


def _read_reduction(op: str) -> Callable[..., Node]:
    def read(equation: Any, x: Node) -> Node:
        axes = tuple(equation.params["axes"])
        if 0 in axes:
            raise _unsupported(equation, " over the batch")
        return Node(op, (x,), equation.outvars[0].aval.shape, {"axes": axes})

    return read


def _read_cast(equation: Any, x: Node) -> Node:
    if equation.params["new_dtype"] != np.float32:
        raise _unsupported(equation, f" to {equation.params['new_dtype']}")
    return x if equation.invars[0].aval.dtype == np.float32 else Node("cast", (x,), x.shape)


def _read_power(equation: Any, x: Node) -> Node:
    if equation.params["y"] != 2:
        raise _unsupported(equation, f" {equation.params['y']}")
    return elementwise("square", x)


def _read_transpose(equation: Any, x: Node) -> Node:
    axes = tuple(equation.params["permutation"])
    if axes[0] != 0:
        raise _unsupported(equation, " of the batch")
    return Node("transpose", (x,), equation.outvars[0].aval.shape, {"axes": axes})


def _read_dense(equation: Any, x: Node, kernel: Operand) -> Node:
    contracted, batched = equation.params["dimension_numbers"]
    of_x, of_kernel = map(tuple, contracted)
    if (of_x, of_kernel, *map(tuple, batched)) != ((1,), (0,), (), ()) or len(x.shape) != 2:
        raise _unsupported(equation, " of other axes")
    if isinstance(kernel, Node):
        raise _unsupported(equation, " of two values")
    return Node("dense", (x,), equation.outvars[0].aval.shape, kernel=kernel)


def _read_conv(equation: Any, x: Node, kernel: Operand) -> Node:
    params = equation.params
    specs = params["dimension_numbers"]
    is_usual = (
        (specs.lhs_spec, specs.rhs_spec, specs.out_spec) == (_NHWC, _HWIO, _NHWC)
        and set(params["lhs_dilation"]) == set(params["rhs_dilation"]) == {1}
        and params["batch_group_count"] == 1
    )
    if not is_usual or isinstance(kernel, Node):
        raise _unsupported(equation, " with dilations, other axes or a kernel of the image")
    options = {
        "strides": tuple(params["window_strides"]),
        "padding": tuple(map(tuple, params["padding"])),
        "groups": params["feature_group_count"],
    }
    return Node("conv", (x,), equation.outvars[0].aval.shape, options, kernel)


def _read_pad(equation: Any, x: Node, value: Operand) -> Node:
    config = equation.params["padding_config"]
    if (
        not isinstance(value, np.ndarray)
        or value != 0
        or any(i or min(a, b) < 0 for a, b, i in config)
    ):
        raise _unsupported(equation, " with another value than 0, or within the image")
    widths = tuple((low, high) for low, high, _ in config)
    return Node("pad", (x,), equation.outvars[0].aval.shape, {"widths": widths})


def _read_max_pool(equation: Any, x: Node) -> Node:
    params = equation.params
    window, strides = params["window_dimensions"], params["window_strides"]
    is_usual = (
        len(window) == 4
        and (window[0], window[3], strides[0], strides[3]) == (1, 1, 1, 1)
        and not np.any(params["padding"])
        and set(params["base_dilation"]) == set(params["window_dilation"]) == {1}
    )
    if not is_usual:
        raise _unsupported(equation, " with padding or dilations")
    options = {"window": tuple(window[1:3]), "strides": tuple(strides[1:3])}
    return Node("max_pool", (x,), equation.outvars[0].aval.shape, options)


def _read_slice(equation: Any, x: Node) -> Node:
    params = equation.params
    begin, end = params["start_indices"], params["limit_indices"]
    has_steps = set(params["strides"] or (1,)) != {1}
    if has_steps or (begin[0], end[0]) != (0, BATCH):
        raise _unsupported(equation, " of the batch, or with steps")
    shape = equation.outvars[0].aval.shape
    return _sliced(x, shape, tuple(begin), tuple(end))


def _sliced(x: Node, shape: tuple[int, ...], begin: tuple[int, ...], end: tuple[int, ...]) -> Node:
    return x if x.shape == shape else Node("slice", (x,), shape, {"begin": begin, "end": end})


_READERS: dict[str, Callable[..., Node]] = {
    "convert_element_type": _read_cast,
    "copy": lambda equation, x: x,
    "stop_gradient": lambda equation, x: x,
    "reshape": _read_reshape,
    "squeeze": _read_reshape,
    "expand_dims": _read_reshape,
    "transpose": _read_transpose,
    "reduce_sum": _read_reduction("sum"),
    "reduce_max": _read_reduction("amax"),
    "integer_pow": _read_power,
    "dot_general": _read_dense,
    "conv_general_dilated": _read_conv,
    "pad": _read_pad,
    "reduce_window_max": _read_max_pool,
    "slice": _read_slice,
}
_BROADCASTING = frozenset(("convert_element_type", "copy", "stop_gradient", "integer_pow"))
