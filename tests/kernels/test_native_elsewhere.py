"""The compiled layers without JAX: held against stored results, on this processor and on others.

With a cross compiler and an emulator (Debian: g++-aarch64-linux-gnu, qemu-user) they are built for
ARM and run here.
"""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from helpers import ROOT
from kd_jax.kernels import activations, inverted_residual, native, winograd
from kd_jax.runtime import processor

SOURCES = ROOT / "kd_jax" / "kernels" / "native"
HARNESS = ROOT / "tests" / "kernels" / "harness.cc"
WINOGRAD, STEM, BLOCK, DEPTHWISE, INPUT, KERNEL, STATISTICS, GRADIENT = range(8)
# Flags of the compiler, and what runs the result.
TARGETS = {
    "sse": (("c++", "-march=x86-64-v2"), ()),
    "avx2": (("c++", "-march=x86-64-v3"), ()),
    "arm": (("aarch64-linux-gnu-g++", "-static"), ("qemu-aarch64-static",)),
    "clang": (("clang++",), ()),
}


def convolution(x, kernel, stride, padding, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def cases():
    """Yield the layer, its shape and its arrays, the result last, computed in float64."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape, np.float32).astype(np.float64)

    for size, inputs, outputs in ((8, 16, 48), (12, 8, 24), (4, 40, 72)):
        x, kernel = draw(3, size, size, inputs), draw(3, 3, inputs, outputs)
        sums = np.kron(winograd._KERNEL, winograd._KERNEL) @ kernel.reshape(9, -1)
        shape = (3, size, size, inputs, outputs)
        yield WINOGRAD, shape, x, sums, convolution(x, kernel, 1, "SAME")
    for size, side, stride, outputs in ((9, 3, 1, 24), (8, 5, 2, 40)):
        x, kernel = draw(2, size, size, 3), draw(side, side, 3, outputs)
        border = (side - 1) // 2
        y = convolution(x, kernel, stride, ((border, border),) * 2)
        yield STEM, (2, size, size, 3, *y.shape[1:], side, stride), x, kernel, y
    for size, inputs, hidden, outputs, stride in ((8, 16, 72, 16, 1), (9, 8, 40, 24, 2)):
        x = draw(2, size, size, inputs)
        weights = inverted_residual._Weights(
            draw(inputs, hidden) / 4, draw(2, hidden), draw(9, hidden) / 3, draw(2, hidden),
            draw(hidden, outputs) / 8, draw(2, outputs),
        )  # fmt: skip
        shape = (2, size, size, inputs, hidden, outputs, stride, 1)
        yield BLOCK, shape, x, *weights, inverted_residual._layer_by_layer(x, weights, stride)
    for size, channels, side, stride in ((8, 24, 3, 1), (7, 40, 5, 2), (6, 8, 5, 1), (9, 16, 3, 3)):
        x, kernel, border = draw(2, size, size, channels), draw(side, side, 1, channels), side // 2

        def filtered(x, kernel, stride=stride, border=border, channels=channels):
            return convolution(x, kernel, stride, ((border, border),) * 2, channels)

        y, pull = jax.vjp(filtered, x, kernel)
        grad = draw(*y.shape)
        of_x, of_kernel = pull(jnp.asarray(grad))
        shape = (*x.shape, *y.shape[1:3], side, side, stride, border, border)
        yield DEPTHWISE, shape, x, kernel, y
        yield INPUT, shape, grad, kernel, of_x
        yield KERNEL, shape, x, grad, of_kernel
    x, grad, mean, scale, shift = draw(301, 24), draw(301, 24), draw(24), draw(24), draw(24)
    yield STATISTICS, (301, 24), x, np.stack([x.sum(0), (x**2).sum(0)])
    for number, activation in enumerate(activations.ACTIVATIONS.values()):
        before = (x - mean) * scale + shift
        through = np.asarray(jax.vjp(activation, jnp.asarray(before))[1](jnp.asarray(grad))[0])
        sums = np.stack([through.sum(0), (through * (x - mean)).sum(0)])
        yield GRADIENT, (301, 24, number), x, grad, mean, scale, shift, sums


@pytest.fixture(scope="module")
def case_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cases") / "cases.bin"
    with jax.enable_x64(True), open(path, "wb") as file:
        for layer, shape, *arrays in cases():
            record = np.zeros(16, np.int64)
            record[0], record[1 : 1 + len(shape)], record[12] = layer, shape, len(arrays)
            file.write(record.tobytes())
            for array in arrays:
                values = np.asarray(array, np.float32)
                file.write(np.int64(values.size).tobytes() + values.tobytes())
    return path


@pytest.mark.parametrize("name", TARGETS)
def test_every_layer_gives_the_stored_results(name, case_file, tmp_path):
    (compiler, *flags), emulator = TARGETS[name]
    kind = processor.CLASSES.get(name)
    if kind and kind.lanes > processor.detected().lanes:
        pytest.skip(f"needs a processor of the class {name}")
    for program in (compiler, *emulator):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    made = tmp_path / "harness"
    options = [flag for flag in native._FLAGS if flag not in ("-shared", "-fPIC")]
    if "clang" in compiler:
        options = [flag for flag in options if not flag.startswith("--param")]
    command = [compiler, *options, *flags, f"-I{SOURCES}", str(HARNESS), "-o", str(made)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [*emulator, str(made), str(case_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    lanes = kind.lanes if kind else 4
    assert done.stdout.splitlines()[-1].startswith(f"24 cases, 0 wrong, vectors of {lanes}")
