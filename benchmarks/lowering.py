"""Whether each kind of layer takes its fastest form on this processor: `make guard`.

    python -m benchmarks.lowering [--rounds=5] [--only=frozen]
    KD_JAX_CPU=avx2 python -m benchmarks.lowering     # as a lower class of processors

Every layer is computed in the form that `kd_jax.kernels.forms` chooses and in every other that can
compute it, in turns in one process, on one CPU device a core, as in training. Forward and backward;
layers of frozen networks forward alone, over some chunks of images.
The last line counts in how many rows the chosen form wins or ties. Exit code 1 if in one row it
is slower than another by more than a tenth, in the median of the turns.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from kd_jax.kernels import conv, lowering, native
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import huge_pages, processor, text_tables
from kd_jax.runtime.errors import UserError, run_command

_ONLY = flags.DEFINE_string("only", "", "Rows whose name has this in it.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of every form.", lower_bound=1)
_TURN_SECONDS = 0.15
_CHUNKS = 8
_LOSES = 0.9  # a form that takes so much of the chosen one's time is the better choice
# Name: (batch, pixels a side, channels in, channels out, kernel, stride, groups); all are the
# study's. Batches are small so that the slow form is not waited for.
LAYERS = {
    "depthwise 5x5, 8 px, 240 channels": (64, 8, 240, 240, 5, 1, 240),
    "depthwise 3x3, 16 px, 96 channels": (64, 16, 96, 96, 3, 1, 96),
    "depthwise 3x3, 32 px, 144 channels, stride 2": (16, 32, 144, 144, 3, 2, 144),
    "depthwise 5x5, 16 px, 96 channels, stride 2": (64, 16, 96, 96, 5, 2, 96),
    "1x1, 16 px, 24 to 96": (64, 16, 24, 96, 1, 1, 1),
    "1x1, 4 px, 576 to 96": (64, 4, 576, 96, 1, 1, 1),
    "stem 3x3, 32 px, 3 to 16": (64, 32, 3, 16, 3, 1, 1),
    "3x3 of a 2 px map, 512 to 512": (64, 2, 512, 512, 3, 1, 1),
}
# Name: (batch, pixels a side, channels, activation).
NORMS = {
    "batch norm and ReLU, 32 px, 72 channels": (64, 32, 72, "relu"),
    "batch norm and hard-swish, 8 px, 240 channels": (64, 8, 240, "hard_swish"),
}
FROZEN = {
    "frozen stem 3x3, 32 px, 3 to 64": (16, 32, 3, 64, 3, 1, 1),
    "frozen stem 3x3, 32 px, 3 to 16": (16, 32, 3, 16, 3, 1, 1),
    "frozen 3x3, 32 px, 16 to 16": (16, 32, 16, 16, 3, 1, 1),
    "frozen 3x3, 16 px, 32 to 32": (16, 16, 32, 32, 3, 1, 1),
    "frozen 3x3, 8 px, 64 to 64": (16, 8, 64, 64, 3, 1, 1),
    "frozen 3x3, 16 px, 128 to 128": (16, 16, 128, 128, 3, 1, 1),
    "frozen 3x3, 8 px, 256 to 256": (16, 8, 256, 256, 3, 1, 1),
    "frozen 3x3, 4 px, 512 to 512": (32, 4, 512, 512, 3, 1, 1),
}
# Name: (batch, pixels a side, channels in, channels out, stride); the expansion is six.
BLOCKS = {
    "frozen block of MobileNetV2, 32 px, 24 to 24": (16, 32, 24, 24, 1),
    "frozen block of MobileNetV2, 32 px, 24 to 24, stride 2": (16, 32, 24, 24, 2),
    "frozen block of MobileNetV2, 16 px, 24 to 48, stride 2": (16, 16, 24, 48, 2),
    "frozen block of MobileNetV2, 8 px, 72 to 72": (16, 8, 72, 72, 1),
    "frozen block of MobileNetV2, 8 px, 72 to 120, stride 2": (16, 8, 72, 120, 2),
    "frozen block of MobileNetV2, 4 px, 120 to 120": (16, 4, 120, 120, 1),
}


def work(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what is measured under that name, a function to be compiled, and its arguments."""
    import jax
    import numpy as np

    from kd_jax.models import mobilenetv2, norm

    rng = np.random.default_rng(0)
    if name in BLOCKS:
        batch, pixels, inputs, outputs, stride = BLOCKS[name]
        frozen_norm = norm.batch_norm(False, None, None)
        block = mobilenetv2.InvertedResidual(6, outputs, stride, frozen_norm)
        x = rng.standard_normal((batch, pixels, pixels, inputs), np.float32)
        return _in_chunks(block.apply), (block.init(jax.random.key(0), x), x)
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

    def convolve(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return conv.conv2d(x, kernel, stride, groups)

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return (convolve(kernel, x) ** 2).sum()

    made = _in_chunks(convolve) if name in FROZEN else jax.value_and_grad(loss, (0, 1))
    return made, (kernel, x)


def _in_chunks(layer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a frozen layer over a few chunks of images: what is made of weights is made once."""
    import jax
    import jax.numpy as jnp

    def run(weights: Any, x: jax.Array) -> jax.Array:
        return jax.lax.map(lambda chunk: layer(weights, chunk), jnp.stack([x] * _CHUNKS))

    return run


def measure(name: str, rounds: int) -> tuple[str, dict[str, list[float]]]:
    """Return the form that is chosen, and the seconds of every form in every turn."""
    import jax
    import numpy as np

    from kd_jax.kernels import forms

    function, arguments = work(name)
    devices = jax.devices()
    arguments = (
        devices_lib.place(np.arange(len(devices)), devices),
        *devices_lib.replicate(arguments, devices),
    )

    def prepare(kind: str = "", form: str = "") -> tuple[Callable[[], float], dict[str, Any]]:
        frozen = lowering.frozen() if name in FROZEN | BLOCKS else contextlib.nullcontext()
        choice = {kind: form} if kind else {}
        with lowering.forced("cpu"), frozen, forms.forced(choice), forms.recorded() as seen:
            # A function of its own: JAX keeps traces by function, and knows nothing of forms.
            step = jax.pmap(lambda device, *a: function(*a), in_axes=(0, None, None))
            step = step.lower(*arguments).compile()

        def seconds() -> float:
            began = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            return time.perf_counter() - began

        first = min(seconds(), seconds())
        repeats = max(1, round(_TURN_SECONDS / first))
        return lambda: statistics.median(seconds() for _ in range(repeats)), seen

    ours, seen = prepare()
    # A block has other kinds inside it; every other row is about one.
    kind = forms.FROZEN_BLOCK if name in BLOCKS else next(iter(seen))
    ((chosen, possible),) = seen[kind].items()
    sides = {chosen: ours}
    sides |= {form: prepare(kind, form)[0] for form in possible if form != chosen}
    times: dict[str, list[float]] = {form: [] for form in sides}
    for _ in range(rounds):
        for form, side in sides.items():
            times[form].append(side())
    return chosen, times


def main(argv: Sequence[str]) -> None:
    """Print the table and the verdict."""
    del argv
    devices_lib.prepare(0, processor.cores())
    rows = [["layer", "chosen form", "ms", "other form", "ms", "other to chosen"]]
    names = [name for name in (*LAYERS, *NORMS, *FROZEN, *BLOCKS) if _ONLY.value in name]
    if not names:
        raise UserError(f"--only={_ONLY.value} is in no row's name: expected a part of one")
    lost: list[str] = []
    alone: list[str] = []
    for name in names:
        chosen, times = measure(name, _ROUNDS.value)
        worst = math.inf
        if len(times) == 1:
            alone.append(name)
        for form, seconds in times.items():
            if form == chosen:
                continue
            ratios = [other / ours for other, ours in zip(seconds, times[chosen], strict=True)]
            worst = min(worst, statistics.median(ratios))
            rows.append([
                name, chosen, f"{1e3 * statistics.median(times[chosen]):.2f}", form,
                f"{1e3 * statistics.median(seconds):.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ])  # fmt: skip
        if worst < _LOSES:
            lost.append(f"{name} ({worst:.2f})")
    print(text_tables.markdown(rows))
    print(
        f"\n{processor.describe()}, compiled passes {native.digest() or 'off'}: "
        f"chosen forms win or tie in {len(names) - len(alone) - len(lost)} of "
        f"{len(names) - len(alone)} rows"
        + (f"; they lose in {', '.join(lost)}" if lost else "")
        + (f" (no other form in {', '.join(alone)})" if alone else "")
    )
    if lost:
        sys.exit(1)


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
