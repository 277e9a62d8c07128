"""The step of a run that is only planned: traced from shapes, or compiled for CPUs, never run."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import config as config_lib
from kd_jax import models
from kd_jax.data import sampler
from kd_jax.distillation import ensemble
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.distillation.student import StudentSpec
from kd_jax.kernels import jaxprs
from kd_jax.runtime import devices as devices_lib
from kd_jax.training import hlo

_COLLECTIVES = ("psum", "psum_invariant", "pmax", "all_gather", "all_gather_invariant")


def network(
    arch: str, num_classes: int, dtype: str = "float32", axis_name: str | None = None
) -> models.Network:
    """Return a network of the zoo, whose normalisation does not matter here."""
    return models.build(
        arch, num_classes, (0.5,) * 3, (0.25,) * 3, axis_name=axis_name, dtype=dtype
    )


def size_of(tree: Any) -> int:
    """Return the bytes of a tree of arrays or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def traced_rows(step: Any, arguments: tuple[Any, ...], devices: int) -> list[list[str]]:
    """Return how many collectives a traced step makes, and their bytes."""
    program = jax.make_jaxpr(step, axis_env=[(devices_lib.AXIS, devices)])(*arguments)
    number, size = _count(program.jaxpr)
    return [["collectives a step, and their MB", f"{number}, {size / 1e6:.2f}"]]


def residual_bytes(
    student: models.Network, variables: Any, count: int, shape: tuple[int, int, int]
) -> int:
    """Return the bytes that a device's forward pass keeps, parameters not counted."""
    alone = dataclasses.replace(student, module=student.module.clone(axis_name=None))

    def residuals(variables: Any, pixels: jax.Array) -> Any:
        def forward(params: Any) -> jax.Array:
            collections = {"params": params, "batch_stats": variables["batch_stats"]}
            return alone.train_logits(collections, pixels, None)[0]

        return jax.vjp(forward, variables["params"])[1]

    pixels = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
    arrays = jax.eval_shape(residuals, variables, pixels)
    return max(0, size_of(arrays) - size_of(variables["params"]))


def step_of(
    spec: StudentSpec,
    teachers: list[models.Network],
    state: Any,
    shape: tuple[int, int, int],
    train_shape: tuple[int, ...] | None,
    devices: int,
) -> tuple[Any, tuple[Any, ...]]:
    """Return the per-device step, and the shapes and dtypes of its arguments.

    `train_shape` is that of the training set on the devices; None when it is streamed.
    """
    config, student, group = spec.config, spec.network, None
    if teachers:
        shares = (1.0 / len(teachers),) * len(teachers)
        group = ensemble.Ensemble(tuple(teachers), shares, config.teacher.combine)
    step = step_lib.make_cohort_step((spec,), group)
    variables = tuple(models.abstract_variables(teacher, shape) for teacher in teachers)
    count = config.batch_size // devices
    reads_labels = config_lib.reads_labels(config)
    has_fixed_view = group is not None and config.distill.view == "fixed"
    index, labels = _abstract((count,), np.int32), _abstract((config.batch_size,), np.int32)
    batch: Any = sampler.Batch(index, index, index, index)
    if train_shape is None:
        pixels = _abstract((count, *shape), np.uint8)
        batch = sampler.Streamed(batch, pixels, None if config.mixup.kind == "none" else pixels)
    logits = _abstract((len(teachers), config.batch_size, student.num_classes), np.float32)
    constants = state_lib.Constants(
        images=_abstract(train_shape, np.uint8) if train_shape else None,
        labels=labels if reads_labels else None,
        teacher_variables=variables,
        teacher_logits=logits if has_fixed_view else None,
    )
    return step, ((state,), constants, batch)


def compiled_rows(step: Any, arguments: tuple[Any, ...], num_devices: int) -> list[list[str]]:
    """Return what only the compiled step can say."""
    with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has
        jax.config.update("jax_num_cpu_devices", num_devices)
        jax.config.update("jax_platforms", "cpu")
    devices = jax.devices("cpu")[:num_devices]
    *common_arguments, batch = arguments
    shards = jax.tree.map(lambda x: _abstract((num_devices, *x.shape), x.dtype), batch)
    mapped_step: Any = devices_lib.pmap(step, devices, (False, False, True))
    program = mapped_step.lower(*common_arguments, shards).compile()
    number, size = hlo.collectives(program.as_text())
    temporaries = program.memory_analysis().temp_size_in_bytes
    return [
        ["the same, compiled for CPUs", f"{number}, {size / 1e6:.2f}"],
        ["MB a device: all temporaries, compiled for CPUs", f"{temporaries / 1e6:,.1f}"],
    ]


def _abstract(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))


def _count(jaxpr: Any) -> tuple[int, int]:
    """Return how many collectives a traced program makes, and the bytes of their results.

    XLA may join some that do not wait for each other.
    """
    number = size = 0
    for equation, repeats in jaxprs.equations(jaxpr):
        if equation.primitive.name in _COLLECTIVES:
            number += repeats
            bytes_of_results = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
            size += repeats * bytes_of_results
    return number, size
