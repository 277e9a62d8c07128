"""Larger operations of small ones: means, activations, pooling, and norms within convolutions.

Runtimes have these as single operations, which are faster, and of which quantisation knows the
range. Each rule is exact but for the order of rounding.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from kd_jax.export import function, graph
from kd_jax.export.graph import BATCH, Node, Operand, elementwise, in_order
from kd_jax.export.source import Source

_LINEAR = ("conv", "dense", "affine")  # have a kernel and a bias


def simplify(output: Node) -> Node:
    """Return an equal graph of larger operations."""
    for rule in (_mean, _pooling, _relu, _relu6, _hard_sigmoid, _hard_swish, _affine):
        output = _rewritten(output, rule)
    return output


def _rewritten(output: Node, rule: Callable[[Node, dict[int, int]], Node | None]) -> Node:
    """Return the graph with a rule applied to every node, its inputs first."""
    nodes = in_order(output)
    uses = collections.Counter(id(one) for node in nodes for one in node.inputs)
    new: dict[int, Node] = {}
    for node in nodes:
        inputs = tuple(new.get(id(one), one) for one in node.inputs)
        copied = dataclasses.replace(node, inputs=inputs)
        result = rule(copied, uses) or copied
        new[id(node)] = result
        uses[id(result)] = uses[id(node)]
    return new[id(output)]


def _split(node: Operand, op: str) -> tuple[Node, np.ndarray] | None:
    """Return the node and the constant of `op(node, constant)`, in either order; or None."""
    if not isinstance(node, Node) or node.op != op:
        return None
    for left, right in (node.inputs, node.inputs[::-1]):
        if isinstance(left, Node) and isinstance(right, np.ndarray):
            return left, right
    return None


def _with(node: Operand, op: str, value: float) -> Node | None:
    """Return x of `op(x, value)`; or None."""
    parts = _split(node, op)
    return parts[0] if parts and np.allclose(parts[1], value, rtol=1e-6, atol=0) else None


def _mean(node: Node, uses: dict[int, int]) -> Node | None:
    """Recognise a sum, maybe with its axes kept, over the number of what is summed."""
    parts = _split(node, "div")
    if parts is None or node.inputs[0] is not parts[0]:
        return None
    kept, count = parts
    total = kept.inputs[0] if kept.op == "reshape" else kept
    if not isinstance(total, Node) or total.op != "sum":
        return None
    sizes = [total.input.shape[axis] for axis in total.options["axes"]]
    if not np.all(count == math.prod(sizes)):
        return None
    mean = dataclasses.replace(total, op="mean")
    return mean if kept is total else dataclasses.replace(kept, inputs=(mean,))


def _pooling(node: Node, uses: dict[int, int]) -> Node | None:
    """Recognise the maximum of squares: `[n, h, k, w, k, c]`, reduced over both k."""
    if node.op != "amax" or node.options["axes"] != (2, 4):
        return None
    squares = node.input
    if squares.op != "reshape":
        return None
    x = squares.input
    batch, height, rows, width, columns, channels = squares.shape
    if x.shape != (batch, height * rows, width * columns, channels):
        return None
    options = {"window": (rows, columns), "strides": (rows, columns)}
    return Node("max_pool", (x,), node.shape, options)


def _relu(node: Node, uses: dict[int, int]) -> Node | None:
    x = _with(node, "max", 0.0)
    return x and Node("relu", (x,), node.shape)


def _relu6(node: Node, uses: dict[int, int]) -> Node | None:
    x = _with(node, "min", 6.0)
    return Node("relu6", x.inputs, node.shape) if x and x.op == "relu" else None


def _hard_sigmoid(node: Node, uses: dict[int, int]) -> Node | None:
    clipped = _with(node, "mul", 1 / 6)
    if clipped is None or clipped.op != "relu6":
        return None
    x = _with(clipped.inputs[0], "add", 3.0)
    return x and Node("hard_sigmoid", (x,), node.shape)


def _hard_swish(node: Node, uses: dict[int, int]) -> Node | None:
    if node.op != "mul":
        return None
    for x, factor in (node.inputs, node.inputs[::-1]):
        if isinstance(factor, Node) and factor.op == "hard_sigmoid" and factor.inputs[0] is x:
            return Node("hard_swish", factor.inputs, node.shape)
    return None


def _affine(node: Node, uses: dict[int, int]) -> Node | None:
    """Join factors and summands of channels, one after another, with what computes the channels.

    Only where nobody else uses the value between. The constants are computed in float64.
    """
    parts = _split(node, node.op) if node.op in ("add", "sub", "mul", "div") else None
    if parts is None:
        return None
    x, constant = parts
    is_first = node.inputs[0] is x
    if not _is_of_channels(constant, x) or (node.op == "div" and not is_first):
        return None
    factor, summand = _as_linear(node.op, constant.astype(np.float64).reshape(-1), is_first)
    if x.op not in _LINEAR or uses[id(x)] > 1:
        x = Node("affine", (x,), x.shape)
    return dataclasses.replace(
        x,
        kernel=x.kernel.astype(np.float64) * factor,
        bias=x.bias.astype(np.float64) * factor + summand,
    )


def _as_linear(op: str, value: np.ndarray, is_first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and summand of `op(x, value)`; of `op(value, x)` unless x is first."""
    zero, one = np.zeros_like(value), np.ones_like(value)
    match op:
        case "add":
            return one, value
        case "sub":
            return (one, -value) if is_first else (-one, value)
        case "mul":
            return value, zero
    return one / value, zero


def _is_of_channels(constant: np.ndarray, x: Node) -> bool:
    """Tell whether a constant has one value, or one for each channel of `x`."""
    return constant.ndim <= len(x.shape) and (
        constant.size == 1 or constant.shape[-1] == constant.size == x.shape[-1]
    )


def with_known_ranges(output: Node) -> Node:
    """Return an equal graph in which the range of every result is known.

    For a network that was trained with int8's numbers: it has the ranges of what its layers return,
    and two operations of the graph are made of several.
    """
    for rule in (_scaling_convolution, _rounded_hard_sigmoid):
        output = _rewritten(output, rule)
    return output


def _scaling_convolution(node: Node, uses: dict[int, int]) -> Node | None:
    """Make one operation of the factors and summands of channels of images."""
    if node.op != "affine" or len(node.shape) != 4:
        return None
    channels = node.shape[-1]
    options = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "groups": channels}
    kernel = np.broadcast_to(node.kernel, channels).reshape(1, 1, 1, channels)
    return dataclasses.replace(node, op="conv", options=options, kernel=kernel)


def _rounded_hard_sigmoid(node: Node, uses: dict[int, int]) -> Node | None:
    """Round between 0 and 6 before the division by 6: that is rounding between 0 and 1 after it."""
    if node.op != "hard_sigmoid":
        return None
    clipped = Node("relu6", (elementwise("add", node.input, np.full((), 3.0)),), node.shape)
    rounded = Node("fake_quantize", (clipped,), node.shape, {"low": 0.0, "high": 6.0})
    return elementwise("mul", rounded, np.full((), 1 / 6))


def of_network(source: Source, outputs: str) -> Node:
    """Return the outputs of a network as a node of uint8 images.

    Args:
      source: the network.
      outputs: `logits` or `probabilities`.

    Raises:
      UnsupportedError: the network has an operation that is not known here.
    """
    call = function.make(source.network, source.variables, function.LOGITS)
    logits = simplify(graph.trace(call, source.card.image_shape))
    if outputs == function.PROBABILITIES:
        return Node("softmax", (logits,), logits.shape)
    return logits


def batch_free(shape: tuple[int, ...]) -> list[int]:
    """Return a shape with -1 in the place of the batch, as runtimes write it."""
    return [-1 if size == BATCH else size for size in shape]
