"""The roofline of the study's networks on accelerators, on paper; and what a device here reaches.

    python -m benchmarks.roofline [--write]          on paper, anywhere
    python -m benchmarks.roofline --measure [--teacher=resnet44] [--batch=512] [--dtype=bfloat16]

On paper: multiply-adds and bytes of the traced step, counting every convolution's and every matrix
product's arguments and result once, as if all else were fused into them. No program moves less, so
the rates are upper limits. `--measure` runs the distillation step on the devices of this machine
and says which share of its limit it reaches; it is what to run on a GPU or a TPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from kd_jax.kernels import jaxprs, lowering
from kd_jax.runtime import huge_pages, text_tables
from kd_jax.runtime.errors import run_command

_WRITE = flags.DEFINE_bool("write", False, "Put the table into docs/performance.md.")
_MEASURE = flags.DEFINE_bool("measure", False, "Run the step on this machine's devices.")
_TEACHER = flags.DEFINE_string("teacher", "resnet44", "Which teacher, with --measure.")
_STUDENT = flags.DEFINE_string("student", "mobilenet_v3_small", "Which student, with --measure.")
_BATCH = flags.DEFINE_integer("batch", 512, "Images a step.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "With --measure.")
_SECONDS = 10.0  # of measuring
_IMAGE_SHAPE = (32, 32, 3)


class Device(NamedTuple):
    """A device's limits, from its vendor's data sheet.

    Attributes:
      kind: begins `jax.Device.device_kind`.
      float32: TFLOP/s of matrix products whose arguments are float32 (tensor cores in TF32; a TPU
        multiplies them in bfloat16 by default).
      bfloat16: the same of bfloat16, dense.
      bandwidth: of its memory, TB/s.
    """

    name: str
    kind: str
    float32: float
    bfloat16: float
    bandwidth: float


DEVICES = (
    Device("A100 SXM 80 GB", "NVIDIA A100", 156, 312, 2.04),
    Device("H100 SXM", "NVIDIA H100", 494, 989, 3.35),
    Device("TPU v4, a chip", "TPU v4", 275, 275, 1.23),
    Device("TPU v5e, a core", "TPU v5 lite", 197, 197, 0.82),
)


class Work(NamedTuple):
    """What a program computes and must move, for one image.

    Attributes:
      madds: multiply-adds of convolutions and matrix products.
      elements: numbers that they read and write.
      operations: how many of them there are in a step.
    """

    madds: float
    elements: float
    operations: int

    def plus(self, other: Work) -> Work:
        """Return both one after another."""
        return Work(
            self.madds + other.madds,
            self.elements + other.elements,
            self.operations + other.operations,
        )

    def seconds(self, device: Device, dtype: str) -> tuple[float, float]:
        """Return the least seconds an image, for arithmetic and for memory."""
        peak = device.bfloat16 if dtype == "bfloat16" else device.float32
        size = 2 if dtype == "bfloat16" else 4
        return 2 * self.madds / (peak * 1e12), size * self.elements / (device.bandwidth * 1e12)


def count(jaxpr: Any) -> tuple[int, int, int]:
    """Return multiply-adds, elements moved, and operations of a traced program."""
    madds = elements = operations = 0
    for equation, repeats in jaxprs.equations(jaxpr):
        if equation_madds := jaxprs.multiply_adds(equation):
            values = (*equation.invars[:2], equation.outvars[0])
            madds += repeats * equation_madds
            elements += repeats * sum(value.aval.size for value in values)
            operations += repeats
    return madds, elements, operations


def work(arch: str, batch: int, *, training: bool) -> Work:
    """Return an image's share of a forward pass, or of a training step's two passes."""
    import jax
    import jax.numpy as jnp

    from kd_jax import models

    network = models.build(arch, 100, (0.5,) * 3, (0.25,) * 3)
    pixels = jax.ShapeDtypeStruct((batch, *_IMAGE_SHAPE), jnp.float32)
    variables = jax.eval_shape(lambda: network.init(0, _IMAGE_SHAPE))

    def loss(params: Any, statistics: Any, pixels: jax.Array) -> jax.Array:
        both = {"params": params, "batch_stats": statistics}
        return network.train_logits(both, pixels, None)[0].sum()

    with lowering.forced("plain"):
        if training:
            arguments = variables["params"], variables["batch_stats"], pixels
            traced = jax.make_jaxpr(jax.grad(loss))(*arguments)
        else:
            traced = jax.make_jaxpr(network.logits)(variables, pixels)
    madds, elements, operations = count(traced.jaxpr)
    return Work(madds / batch, elements / batch, operations)


def on_paper(batch: int) -> str:
    """Return the table of limits."""
    rows = [["work", "madds, M", "elements, M", "madds an element",
             "operations", *(f"{device.name}, 1000/s" for device in DEVICES)]]  # fmt: skip
    forward = ("resnet44", "vgg11_bn", "mobilenetv2_x0_75")
    trained = ("mobilenet_v3_small", "mobilenet_v3_small_cifar")
    works = {f"{arch} forward": work(arch, batch, training=False) for arch in forward}
    works |= {f"{arch} training": work(arch, batch, training=True) for arch in trained}
    for teacher in forward:
        both = works[f"{teacher} forward"].plus(works["mobilenet_v3_small training"])
        works[f"distil {teacher} -> mobilenet_v3_small"] = both
    for name, own in works.items():
        limits = []
        for device in DEVICES:
            arithmetic, memory = own.seconds(device, "bfloat16")
            by = "memory" if memory > arithmetic else "arithmetic"
            limits.append(f"{1e-3 / max(arithmetic, memory):,.0f} ({by})")
        rows.append([
            name, f"{own.madds / 1e6:.2f}", f"{own.elements / 1e6:.2f}",
            f"{own.madds / own.elements:.0f}", str(own.operations), *limits,
        ])  # fmt: skip
    return text_tables.markdown(rows)


def measure(teacher: str, student: str, batch: int, dtype: str) -> str:
    """Run the step for a while; return what was reached, beside the limit where it is known."""
    import jax
    import numpy as np

    from benchmarks import jax_side

    images = np.random.default_rng(0).integers(0, 256, (10_000, *_IMAGE_SHAPE), np.uint8)
    step, wait, (_, devices, _) = jax_side.train_step(images, teacher, student, batch, dtype)
    began = time.perf_counter()
    step(0)
    wait()
    first = time.perf_counter() - began
    step(1)
    wait()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        step(steps + 2)
        steps += 1
    wait()
    rate = steps * batch / (time.perf_counter() - began)
    kind = devices[0].device_kind
    text = (
        f"{teacher} -> {student}, batch {batch}, {dtype}, {len(devices)} x {kind}: {rate:,.0f} "
        f"images/s, {1e3 * batch / rate:.1f} ms a step; first step {first:.1f} s"
    )
    known = [device for device in DEVICES if kind.startswith(device.kind)]
    if known:
        both = work(teacher, batch, training=False).plus(work(student, batch, training=True))
        limit = len(devices) / max(both.seconds(known[0], dtype))
        text += f"; limit {limit:,.0f} images/s, of which {rate / limit:.0%}"
    stats = devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        text += f"; peak memory {stats['peak_bytes_in_use'] / 2**30:.2f} GiB a device"
    return text + f"; jax {jax.__version__}"


def main(argv: Sequence[str]) -> None:
    """Print the limits, or measure."""
    del argv
    from kd_jax.models import zoo

    for arch in (_TEACHER.value, _STUDENT.value):
        zoo.check_arch(arch)
    if _MEASURE.value:
        print(measure(_TEACHER.value, _STUDENT.value, _BATCH.value, _DTYPE.value))
        return
    text = on_paper(_BATCH.value)
    print(text)
    if _WRITE.value:
        from benchmarks import page

        page.write("roofline", text)


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
