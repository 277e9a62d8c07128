"""What the CPU lowering is worth, layer by layer: a guard that CI prints and never asserts.

    python -m benchmarks.lowering [--rounds=5]

One layer of each kind that XLA's CPU backend is slow on, forward and backward, under `layers`' own
lowering and as the ordinary convolution, in turns in one process. Ordinary 3x3 convolutions are
left alone by the lowering in training: their row shows what the machine's noise is. Batch norm with
the activation after it is measured beside Flax's; layers of frozen networks, and MobileNetV2's
blocks, forward alone.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from kd_jax import huge_pages, tables
from kd_jax.errors import run_command

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of both lowerings.", lower_bound=1)
_TURN_SECONDS = 0.25
# Name: (batch, pixels a side, channels in, channels out, kernel, stride, groups); all are the
# study's. Batches are small so that the slow form is not waited for.
LAYERS = {
    "depthwise 5x5, 8 px, 240 channels": (64, 8, 240, 240, 5, 1, 240),
    "depthwise 3x3, 16 px, 96 channels": (64, 16, 96, 96, 3, 1, 96),
    "depthwise 3x3, 32 px, 144 channels, stride 2": (16, 32, 144, 144, 3, 2, 144),
    "1x1, 16 px, 24 to 96": (64, 16, 24, 96, 1, 1, 1),
    "stem 3x3, 32 px, 3 to 16": (64, 32, 3, 16, 3, 1, 1),
    "3x3 of a 2 px map, 512 to 512": (64, 2, 512, 512, 3, 1, 1),
    "ordinary 3x3, 16 px, 32 to 32": (64, 16, 32, 32, 3, 1, 1),
}
# Name: (batch, pixels a side, channels, activation).
NORMS = {
    "batch norm and ReLU, 32 px, 72 channels": (64, 32, 72, "relu"),
    "batch norm and hard-swish, 8 px, 240 channels": (64, 8, 240, "hard_swish"),
}
FROZEN = {
    "frozen stem 3x3, 32 px, 3 to 64": (16, 32, 3, 64, 3, 1, 1),
    "frozen 3x3, 32 px, 16 to 16": (16, 32, 16, 16, 3, 1, 1),
    "frozen 3x3, 16 px, 32 to 32": (16, 16, 32, 32, 3, 1, 1),
    "frozen 3x3, 8 px, 64 to 64": (16, 8, 64, 64, 3, 1, 1),
    "frozen 3x3, 16 px, 128 to 128": (16, 16, 128, 128, 3, 1, 1),
    "frozen 3x3, 8 px, 256 to 256": (16, 8, 256, 256, 3, 1, 1),
}
# Name: (batch, pixels a side, channels in, channels out, stride); the expansion is six.
BLOCKS = {
    "frozen block of MobileNetV2, 32 px, 24 to 24": (16, 32, 24, 24, 1),
    "frozen block of MobileNetV2, 8 px, 72 to 120, stride 2": (16, 8, 72, 120, 2),
}


def work(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what is measured under that name, a function to be compiled, and its arguments."""
    import jax
    import numpy as np

    from kd_jax.models import layers, mobilenetv2, norm

    rng = np.random.default_rng(0)
    if name in BLOCKS:
        batch, pixels, inputs, outputs, stride = BLOCKS[name]
        frozen_norm = norm.batch_norm(False, None, None)
        block = mobilenetv2.InvertedResidual(6, outputs, stride, frozen_norm)
        x = rng.standard_normal((batch, pixels, pixels, inputs), np.float32)
        return block.apply, (block.init(jax.random.key(0), x), x)
    if name in NORMS:
        batch, pixels, channels, activation = NORMS[name]
        layer = norm.batch_norm(True, None, None)(activation=activation)
        x, weight = rng.standard_normal((2, batch, pixels, pixels, channels), np.float32)

        def weighted(x: jax.Array, variables: Any) -> jax.Array:
            return (layer.apply(variables, x, mutable=["batch_stats"])[0] * weight).sum()

        return jax.value_and_grad(weighted, (0, 1)), (x, layer.init(jax.random.key(0), x))
    batch, pixels, inputs, outputs, size, stride, groups = (LAYERS | FROZEN)[name]
    x = rng.standard_normal((batch, pixels, pixels, inputs), np.float32)
    kernel = rng.standard_normal((size, size, inputs // groups, outputs), np.float32)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return layers.conv2d(x, kernel, stride, groups)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (convolve(x, kernel) ** 2).sum()

    return convolve if name in FROZEN else jax.value_and_grad(loss, (0, 1)), (x, kernel)


def measure(name: str, rounds: int) -> tuple[float, float, list[float]]:
    """Return seconds of both lowerings (medians; ours first), and the ratio of every turn."""
    import jax

    from kd_jax.models import layers

    function, arguments = work(name)
    arguments = jax.device_put(arguments)

    def prepare(lowering: str) -> Callable[[], float]:
        frozen = layers.frozen() if name in FROZEN | BLOCKS else contextlib.nullcontext()
        with layers.lowering(lowering), frozen:
            # A function of its own: JAX keeps traces by function, and knows nothing of lowerings.
            step = jax.jit(lambda *a: function(*a)).lower(*arguments).compile()

        def seconds() -> float:
            began = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            return time.perf_counter() - began

        seconds()
        repeats = max(1, round(_TURN_SECONDS / seconds()))
        return lambda: statistics.median(seconds() for _ in range(repeats))

    ours, plain = prepare("cpu"), prepare("plain")
    pairs = [(ours(), plain()) for _ in range(rounds)]
    ratios = [slow / fast for fast, slow in pairs]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs), ratios


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    del argv
    rows = [
        [
            "layer, forward and backward unless frozen",
            "ours ms",
            "plain ms",
            "ratio (least to greatest)",
        ]
    ]
    for name in (*LAYERS, *NORMS, *FROZEN, *BLOCKS):
        ours, plain, ratios = measure(name, _ROUNDS.value)
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append([name, f"{1e3 * ours:.2f}", f"{1e3 * plain:.2f}", ratio])
    print(tables.markdown(rows))


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
