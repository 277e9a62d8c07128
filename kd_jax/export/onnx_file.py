"""The network as an ONNX graph, for any batch.

Convolutions of ONNX want `[n, C, H, W]`. A map stays in that order from the first convolution on,
and is brought back where an operation goes by the order of the axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kd_jax
from kd_jax.export import graph, graph_rules
from kd_jax.export.graph import Node, Operand
from kd_jax.export.source import Source

OPSET = 17  # the oldest with all that is used; ONNX Runtime 1.12 and later read it
INPUT = "images"
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
_NAMES = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "exp": "Exp", "log": "Log", "logistic": "Sigmoid", "neg": "Neg", "sqrt": "Sqrt",
    "tanh": "Tanh", "abs": "Abs", "relu": "Relu", "hard_swish": "HardSwish",
}  # fmt: skip


def content(source: Source, outputs: str) -> bytes:
    """Return the serialised model.

    Args:
      source: the network.
      outputs: `logits` or `probabilities`, which is the name of the output too.

    Raises:
      UnsupportedError: the network has an operation that is not known here.
    """
    import onnx
    from onnx import TensorProto, helper

    writer = _Writer()
    result = writer.natural(graph_rules.of_network(source, outputs))
    writer.node("Identity", [result], outputs)
    shape = source.card.image_shape
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            source.card.arch,
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *shape])],
            [helper.make_tensor_value_info(
                outputs, TensorProto.FLOAT, ["batch", source.card.num_classes]
            )],
            writer.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="kd_jax",
        producer_version=kd_jax.__version__,
    )  # fmt: skip
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    helper.set_model_props(model, source.texts())
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _Writer:
    """Writes nodes of `graph` as nodes of ONNX, each once."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._written: dict[int, tuple[str, bool]] = {}  # name, and whether it is [n, C, H, W]
        self._moved: dict[tuple[str, bool], str] = {}

    def natural(self, node: Node) -> str:
        """Return the name of a node's tensor with the axes of `node.shape`."""
        return self._in_order(node, False)

    def _in_order(self, node: Node, channels_first: bool) -> str:
        name, is_first = self._write(node)
        if is_first == channels_first:
            return name
        if (name, channels_first) not in self._moved:
            axes = _TO_NCHW if channels_first else _TO_NHWC
            self._moved[name, channels_first] = self.node("Transpose", [name], perm=axes)
        return self._moved[name, channels_first]

    def node(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Add a node of ONNX; return the name of its output."""
        from onnx import helper

        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _write(self, output: Node) -> tuple[str, bool]:
        if id(output) not in self._written:
            for node in graph.in_order(output):  # not by recursion: networks are deep
                if id(node) not in self._written:
                    self._written[id(node)] = self._write_one(node)
        return self._written[id(output)]

    def _write_one(self, node: Node) -> tuple[str, bool]:
        if node.op == "input":
            return INPUT, False
        if write := _WRITERS.get(node.op):
            return write(self, node)
        if len(node.shape) == 4:
            return self._elementwise(node, self._is_channels_first(node))
        return self._elementwise(node, False)

    def _is_channels_first(self, node: Node) -> bool:
        """Tell whether the largest operand of an elementwise operation is [n, C, H, W]."""
        nodes = [one for one in node.inputs if isinstance(one, Node) and len(one.shape) == 4]
        largest = max(nodes, key=lambda one: int(np.prod(one.shape)))
        return self._write(largest)[1]

    def _elementwise(self, node: Node, first: bool) -> tuple[str, bool]:
        if node.op == "affine":
            return self._affine(node, first), first
        inputs = [self._operand(one, first) for one in node.inputs]
        if node.op == "square":
            return self.node("Mul", inputs * 2), first
        if node.op == "rsqrt":
            return self.node("Reciprocal", [self.node("Sqrt", inputs)]), first
        if node.op == "relu6":
            limits = [self.constant(np.float32(limit)) for limit in (0, 6)]
            return self.node("Clip", [*inputs, *limits]), first
        if node.op == "hard_sigmoid":
            return self.node("HardSigmoid", inputs, alpha=1 / 6, beta=0.5), first
        if node.op == "cast":
            return self.node("Cast", inputs, to=1), first  # to float32
        return self.node(_NAMES[node.op], inputs), first

    def _affine(self, node: Node, first: bool) -> str:
        name = self._operand(node.input, first)
        if np.any(node.kernel != 1):
            name = self.node("Mul", [name, self._operand(node.kernel, first)])
        if np.any(node.bias != 0):
            name = self.node("Add", [name, self._operand(node.bias, first)])
        return name

    def _operand(self, value: Operand, first: bool) -> str:
        if isinstance(value, Node):
            return self._in_order(value, first and len(value.shape) == 4)
        if first and value.size > 1:
            value = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(_TO_NCHW)
        return self.constant(value)

    def conv(self, node: Node) -> tuple[str, bool]:
        (top, bottom), (left, right) = node.options["padding"]
        kernel = self.constant(node.kernel.transpose(3, 2, 0, 1))
        inputs = [self._in_order(node.input, True), kernel]
        if np.any(node.bias):
            inputs.append(self._bias(node))
        name = self.node(
            "Conv", inputs, strides=node.options["strides"], pads=(top, left, bottom, right),
            group=node.options["groups"],
        )  # fmt: skip
        return name, True

    def dense(self, node: Node) -> tuple[str, bool]:
        inputs = [self.natural(node.input), self.constant(node.kernel), self._bias(node)]
        return self.node("Gemm", inputs), False

    def _bias(self, node: Node) -> str:
        return self.constant(np.broadcast_to(node.bias, node.kernel.shape[-1:]))

    def reduction(self, node: Node, *, kind: str) -> tuple[str, bool]:
        axes = node.options["axes"]
        name, first = self._write(node.input)
        if first and axes == (1, 2):  # what is left has the same order
            axes = (2, 3)
        else:
            name = self.natural(node.input)
        if kind == "ReduceSum":
            return self.node(kind, [name, self.constant(axes, np.int64)], keepdims=0), False
        return self.node(kind, [name], axes=axes, keepdims=0), False

    def reshape(self, node: Node) -> tuple[str, bool]:
        shape = self.constant(graph_rules.batch_free(node.shape), np.int64)
        return self.node("Reshape", [self.natural(node.input), shape]), False

    def transpose(self, node: Node) -> tuple[str, bool]:
        axes = node.options["axes"]
        if axes == _TO_NCHW:
            return self._in_order(node.input, True), False
        return self.node("Transpose", [self.natural(node.input)], perm=axes), False

    def max_pool(self, node: Node) -> tuple[str, bool]:
        window, strides = node.options["window"], node.options["strides"]
        name = self.node(
            "MaxPool", [self._in_order(node.input, True)], kernel_shape=window, strides=strides
        )
        return name, True

    def tile(self, node: Node) -> tuple[str, bool]:
        counts = self.constant(node.options["counts"], np.int64)
        return self.node("Tile", [self.natural(node.input), counts]), False

    def pad(self, node: Node) -> tuple[str, bool]:
        begin, end = zip(*node.options["widths"], strict=True)
        widths = self.constant((*begin, *end), np.int64)
        return self.node("Pad", [self.natural(node.input), widths]), False

    def slice(self, node: Node) -> tuple[str, bool]:
        begin, end = node.options["begin"][1:], node.options["end"][1:]
        axes = range(1, len(node.shape))
        limits = [self.constant(values, np.int64) for values in (begin, end, axes)]
        return self.node("Slice", [self.natural(node.input), *limits]), False

    def softmax(self, node: Node) -> tuple[str, bool]:
        return self.node("Softmax", [self.natural(node.input)], axis=-1), False


_WRITERS: dict[str, Callable[[_Writer, Node], tuple[str, bool]]] = {
    "conv": _Writer.conv,
    "dense": _Writer.dense,
    "mean": functools.partial(_Writer.reduction, kind="ReduceMean"),
    "sum": functools.partial(_Writer.reduction, kind="ReduceSum"),
    "amax": functools.partial(_Writer.reduction, kind="ReduceMax"),
    "reshape": _Writer.reshape,
    "transpose": _Writer.transpose,
    "max_pool": _Writer.max_pool,
    "tile": _Writer.tile,
    "pad": _Writer.pad,
    "slice": _Writer.slice,
    "softmax": _Writer.softmax,
}
