"""The network for TensorFlow Lite (LiteRT): float32, float16 weights, or int8.

The nodes of `graph` are called as TensorFlow's functions and given to its converter. The file is a
zip archive as well, as TensorFlow's metadata are: `labels.txt` in it has the names of the classes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax.data.splits import stratified_indices
from kd_jax.export import graph, graph_rules
from kd_jax.export.graph import Node, Operand
from kd_jax.export.runtimes import FACTS_FILE, LABELS_FILE, tflite_interpreter
from kd_jax.export.source import Source
from kd_jax.runtime import quiet_tensorflow
from kd_jax.runtime.errors import UserError

FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
CALIBRATION_IMAGES = 500


def content(source: Source, outputs: str, numbers: str = FLOAT32) -> bytes:
    """Return a model of TensorFlow Lite, for any batch; a fresh interpreter has the batch 1.

    Args:
      source: the network; for int8 also the training images that ranges are measured on, unless it
        was trained with ranges.
      outputs: `logits` or `probabilities`.
      numbers: `float32`; `float16`, for weights; or `int8`, for weights and maps.

    Raises:
      UserError: the network has an operation that is not known here, or that the converter does
        not take.
    """
    with quiet_tensorflow.silence():
        tf = quiet_tensorflow.import_tensorflow()
    output = graph_rules.of_network(source, outputs)
    if source.is_quantized:
        output = graph_rules.with_known_ranges(output)
    as_pixels = numbers == INT8  # its converter makes the integers of floating-point inputs only
    spec = tf.TensorSpec(
        (None, *source.card.image_shape), tf.float32 if as_pixels else tf.uint8, "images"
    )
    module = tf.Module()

    @tf.function(input_signature=[spec], autograph=False)
    def serve(images: Any) -> dict[str, Any]:
        if source.is_quantized:
            images = _fake_quantize(tf, images, 0.0, 255.0)
        return {outputs: _call(tf, output, images)}

    module.serve = serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], module
    )
    if numbers != FLOAT32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if numbers == FLOAT16:
        converter.target_spec.supported_types = [tf.float16]
    if numbers == INT8:
        converter.inference_input_type = tf.uint8
    if numbers == INT8 and not source.is_quantized:
        converter.representative_dataset = lambda: _calibration(source)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with quiet_tensorflow.silence():
            model = converter.convert()
    except Exception as error:  # whatever the converter makes of it
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"TensorFlow's converter does not take {source.card.arch} as {numbers} ({reason}): "
            "--format=onnx and --format=stablehlo do not need it"
        ) from error
    if numbers == INT8 and source.is_quantized:
        _check_integers(bytes(model), source.card.arch)
    return _with_facts(bytes(model), source)


def _check_integers(model: bytes, arch: str) -> None:
    """Raise `UnsupportedError` if a model computes anything but its outputs in floats."""
    interpreter = tflite_interpreter(model, 1)
    outputs = {tensor["index"] for tensor in interpreter.get_output_details()}
    for tensor in interpreter.get_tensor_details():
        if tensor["dtype"] == np.float32 and tensor["index"] not in outputs:
            raise graph.UnsupportedError(
                f"{arch} has a result without a range ({tensor['name']}), which an int8 file "
                "cannot hold: expected kd_jax.models.quantize.result or layers.activate around it "
                "(docs/adding_a_model.md)"
            )


def calibration_indices(source: Source) -> np.ndarray:
    """Return which training images ranges are measured on, each class in proportion."""
    train = source.dataset.train
    return stratified_indices(train.labels, min(CALIBRATION_IMAGES, len(train) - 1), seed=0)


def _calibration(source: Source) -> Iterator[list[np.ndarray]]:
    """Yield training images one by one, and two that have all the range of a pixel."""
    train, chosen = source.dataset.train, calibration_indices(source)
    for index in chosen:
        yield [train.images[index][None].astype(np.float32)]
    image = train.images[chosen[0]][None].astype(np.float32)
    image[0, 0, 0], image[0, -1, -1] = 0, 255  # so that the step of the input is one pixel value
    yield [image]


def _with_facts(model: bytes, source: Source) -> bytes:
    """Return a model with the names of its classes as files of an archive behind it."""
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        if source.card.class_names:
            _add(archive, LABELS_FILE, "".join(f"{name}\n" for name in source.card.class_names))
        _add(archive, FACTS_FILE, json.dumps(source.texts()))
    return file.getvalue()


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    """Write a file with a constant date: the same network gives the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), text)


def _call(tf: Any, output: Node, images: Any) -> Any:
    """Return the value of a node, made of TensorFlow's functions."""
    values: dict[int, Any] = {}

    def read(operand: Operand) -> Any:
        if isinstance(operand, Node):
            return values[id(operand)]
        return np.asarray(operand, np.float32)

    for node in graph.in_order(output):
        if node.op == "input":
            values[id(node)] = images
        else:
            values[id(node)] = _apply(tf, node, [read(one) for one in node.inputs])
    return values[id(output)]


def _fake_quantize(tf: Any, x: Any, low: float, high: float) -> Any:
    """Return a value with its range, which the converter makes a type of."""
    return tf.quantization.fake_quant_with_min_max_vars(x, low, high)


def _apply(tf: Any, node: Node, inputs: list[Any]) -> Any:
    x, options = inputs[0], node.options
    kernel, bias = node.kernel.astype(np.float32), node.bias.astype(np.float32)
    if node.op in _FUNCTIONS:
        return getattr(tf.math, _FUNCTIONS[node.op])(*inputs)
    if node.op in _REDUCTIONS:
        return getattr(tf.math, _REDUCTIONS[node.op])(x, axis=list(options["axes"]))
    match node.op:
        case "conv":
            return _conv(tf, node, x)
        case "dense":
            return tf.linalg.matmul(x, kernel) + bias
        case "affine":
            x = x * kernel if np.any(kernel != 1) else x
            return x + bias if np.any(bias != 0) else x
        case "cast":
            return tf.cast(x, tf.float32)
        case "relu" | "relu6" | "softmax":
            return getattr(tf.nn, node.op)(x)
        case "fake_quantize":
            return _fake_quantize(tf, x, **options)
        case "hard_sigmoid":
            return tf.nn.relu6(x + 3.0) * np.float32(1 / 6)
        case "hard_swish":
            return x * tf.nn.relu6(x + 3.0) * np.float32(1 / 6)  # in the order of the converter
        case "reshape":
            return tf.reshape(x, graph_rules.batch_free(node.shape))
        case "transpose":
            return tf.transpose(x, options["axes"])
        case "max_pool":
            return tf.nn.max_pool2d(x, options["window"], options["strides"], "VALID")
        case "tile":
            return tf.tile(x, options["counts"])
        case "pad":
            return tf.pad(x, options["widths"])
        case "slice":
            limits = zip(options["begin"][1:], options["end"][1:], strict=True)
            return x[(slice(None), *(slice(*pair) for pair in limits))]
    raise graph.UnsupportedError(
        f"the network has the operation {node.op}, which is not written for TensorFlow Lite: "
        "--format=stablehlo holds any network"
    )


_FUNCTIONS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "max": "maximum",
    "min": "minimum", "exp": "exp", "log": "log", "logistic": "sigmoid", "neg": "negative",
    "rsqrt": "rsqrt", "sqrt": "sqrt", "square": "square", "tanh": "tanh", "abs": "abs",
}  # fmt: skip
_REDUCTIONS = {"mean": "reduce_mean", "sum": "reduce_sum", "amax": "reduce_max"}


def _conv(tf: Any, node: Node, x: Any) -> Any:
    kernel = node.kernel.astype(np.float32)
    bias = np.broadcast_to(node.bias, kernel.shape[-1:]).astype(np.float32)
    strides, padding, groups = (node.options[name] for name in ("strides", "padding", "groups"))
    if padding == _same(node.input.shape[1:3], kernel.shape[:2], strides):
        mode = "SAME"
    else:
        mode = "VALID"
        if np.any(padding):
            x = tf.pad(x, [(0, 0), *padding, (0, 0)])
    if groups == 1:
        y = tf.nn.conv2d(x, kernel, strides, mode)
    elif groups == node.input.shape[3] == kernel.shape[3]:
        y = tf.nn.depthwise_conv2d(x, kernel.transpose(0, 1, 3, 2), (1, *strides, 1), mode)
    else:
        raise graph.UnsupportedError(
            f"the network has a convolution of {groups} groups, which is not written for "
            "TensorFlow Lite: --format=onnx and --format=stablehlo hold it"
        )
    return tf.nn.bias_add(y, bias) if np.any(bias) else y


def _same(
    sizes: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Return the padding that TensorFlow calls SAME."""
    padding = []
    for size, length, stride in zip(sizes, kernel, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + length - size, 0)
        padding.append((total // 2, total - total // 2))
    return tuple(padding)
