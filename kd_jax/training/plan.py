"""What a run would take, before it takes it: `kd_jax.main --plan`. No device is looked at.

Everything is counted from the traced program and from shapes. Memory is an estimate of what must be
held at once on a device: the training set, the state, the teacher, and what the student's forward
pass keeps for its backward pass; XLA's own temporaries come on top.

With `--plan_compile` the step is compiled too, for as many CPU devices as are planned for, which
any machine can pretend to have. Then collectives and temporaries are those of the compiled program:
of the ordinary convolutions, as on accelerators, but under XLA's choices for CPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax import models
from kd_jax.config import checks
from kd_jax.data import catalog, prefetch, sampler, splits, tfds_source
from kd_jax.data import dataset as dataset_lib
from kd_jax.distillation import ensemble
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.kernels import jaxprs, lowering
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import text_tables
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import recording
from kd_jax.training import hlo, setup, time_left
from kd_jax.training import optimizer as optimizer_lib
from kd_jax.weights import saved_network

_COLLECTIVES = ("psum", "psum_invariant", "pmax", "all_gather", "all_gather_invariant")


def plan(
    config: ConfigDict,
    num_devices: int,
    images_per_second: float | None,
    *,
    compiled: bool = False,
) -> str:
    """Return the plan as a Markdown table.

    Args:
      config: an experiment; the teachers' weights need not be there: of the first its architecture
        is enough, and those of which nothing is known are named as such.
      num_devices: over all processes.
      images_per_second: the rate to reckon with; None: no time is told.
      compiled: whether to compile the step, which takes as long as it does.

    Raises:
      UserError: a value is not as it must be, or the data set is neither known nor there.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if config.distill.label_weight < 1 and not config.teacher.weights:
            config.teacher.weights = "(not given)"
    checks.check(config)
    if config.batch_size % (num_devices * config.accumulate):
        raise UserError(
            f"config.batch_size is {config.batch_size}, which {num_devices} devices in "
            f"{config.accumulate} part(s) do not divide: choose a multiple, or other --plan_devices"
        )
    with lowering.forced("plain"):  # which does not ask what platform this is
        return text_tables.markdown(_rows(config, num_devices, images_per_second, compiled))


def _rows(
    config: ConfigDict, devices: int, images_per_second: float | None, compiled: bool
) -> list[list[str]]:
    has_teachers = config.distill.label_weight < 1
    examples, shape, num_classes = _size_of_data(config)
    total_steps = config.total_steps or sampler.steps_in(
        config.total_epochs, config.batch_size, examples
    )
    student = _network(
        config.student.arch,
        num_classes,
        config.student.dtype,
        devices_lib.AXIS if config.batch_norm.sync else None,
    )
    kept_norms = setup.frozen_norms(config.student.freeze, student, shape)
    student = dataclasses.replace(student, kept_norms=kept_norms)
    archs = _teachers(config) if has_teachers else []
    teachers = [
        _network(arch, num_classes, config.teacher.dtype, None)
        for arch in archs
        if arch is not None
    ]
    logit_bytes = 0
    if has_teachers and config.distill.view == "fixed":
        logit_bytes = 4 * len(archs) * examples * num_classes
    optimizer = optimizer_lib.build(config, total_steps, 0)
    variables = models.abstract_variables(student, shape)
    state = jax.eval_shape(lambda v: state_lib.init_state(config, v, optimizer), variables)
    is_resident = prefetch.is_resident(config.dataset, examples * math.prod(shape))
    images = examples if is_resident else _streamed_images(config) // devices
    sizes = {
        "the training set" if is_resident else "streamed batches": images * math.prod(shape),
        "the state (parameters, statistics, optimiser)": _bytes(state),
        _name_of_teachers(archs): sum(
            _bytes(models.abstract_variables(teacher, shape)) for teacher in teachers
        ),
        **({"the teachers' kept logits": logit_bytes} if logit_bytes else {}),
        "kept for the student's backward pass": _residual_bytes(
            student,
            config.student.dtype,
            variables,
            config.batch_size // devices // config.accumulate,
            shape,
        ),
    }
    rows = [
        ["what", "value"],
        ["student", _cost(student, shape)],
        *_teacher_rows(archs, teachers, shape),
        ["examples, classes, image", f"{examples:,}, {num_classes}, {'x'.join(map(str, shape))}"],
        ["batch", f"{config.batch_size} on {devices} device(s)"],
        ["steps, epochs", f"{total_steps:,}, {total_steps * config.batch_size / examples:.1f}"],
        *([f"MB a device: {name}", f"{size / 1e6:,.1f}"] for name, size in sizes.items()),
        ["MB a device: all of these", f"{sum(sizes.values()) / 1e6:,.1f}"],
    ]
    if config.teacher.record:
        answers = recording.size_of_answers(config, len(archs), num_classes, total_steps)
        rows.append(["GB on disk: the recorded answers", f"{answers / 1e9:,.2f}"])
    if len(teachers) == len(archs):
        train = (examples, *shape) if is_resident else None
        step, arguments = _step(config, student, teachers, optimizer, state, shape, train, devices)
        program = jax.make_jaxpr(step, axis_env=[(devices_lib.AXIS, devices)])(*arguments)
        number, size = _count(program.jaxpr)
        rows.append(["collectives a step, and their MB", f"{number}, {size / 1e6:.2f}"])
        rows += _compiled_rows(step, arguments, devices) if compiled else []
    if images_per_second:
        seconds = total_steps * config.batch_size / images_per_second
        rows.append([f"time at {images_per_second:g} images/s", time_left.duration(seconds)])
    return rows


def _teachers(config: ConfigDict) -> list[str | None]:
    """Return every teacher's architecture; None where only its weights would tell, which lack."""
    archs: list[str | None] = []
    for number, place in enumerate((config.teacher.weights, *config.teacher.ensemble)):
        arch = config.teacher.arch if number == 0 else ""
        path = reachable(place, "a teacher's weights")
        if not arch and (path / saved_network.CARD_FILE).exists():
            arch = saved_network.load_card(path).arch
        archs.append(arch or None)
    return archs


def _name_of_teachers(archs: list[str | None]) -> str:
    name = "the teachers" if len(archs) > 1 else "the teacher"
    return f"{name}, as far as known" if None in archs else name


def _teacher_rows(
    archs: list[str | None], teachers: list[models.Network], shape: tuple[int, int, int]
) -> list[list[str]]:
    """Return a row for each teacher."""
    networks = iter(teachers)
    rows = [["teacher", _cost(next(networks), shape) if arch else "as its weights say"]
            for arch in archs]  # fmt: skip
    return rows or [["teacher", "-"]]


def _streamed_images(config: ConfigDict) -> int:
    """Return how many images are on the devices at once, partners among them."""
    batch = config.batch_size * (1 if config.mixup.kind == "none" else 2)
    return batch * config.steps_per_call * (1 + prefetch.AHEAD)


def _size_of_data(config: ConfigDict) -> tuple[int, tuple[int, int, int], int]:
    """Return train examples, image shape and classes; other sets than the known are read."""
    options = config.dataset
    facts = catalog.facts(tfds_source.base_name(options.name))
    size = options.image_size or facts.image_size
    if facts.train_examples and facts.num_classes and options.train_split == "train" and size:
        held_out = 0
        if options.validation == "held_out":
            held_out = splits.count_held_out(options.val_examples, facts.train_examples)
        examples = max(1, facts.train_examples - held_out)
        return examples, (size, size, 3), facts.num_classes
    dataset = dataset_lib.load(options)
    return len(dataset.train), dataset.image_shape, dataset.num_classes


def _network(arch: str, num_classes: int, dtype: str, axis_name: str | None) -> models.Network:
    return models.build(
        arch, num_classes, (0.5,) * 3, (0.25,) * 3, axis_name=axis_name, dtype=dtype
    )


def _cost(network: models.Network, shape: tuple[int, int, int]) -> str:
    params, madds = models.count_params(network, shape), models.count_madds(network, shape)
    return f"{network.arch}, {params / 1e6:.2f} M parameters, {madds / 1e6:.2f} M multiply-adds"


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _residual_bytes(
    student: models.Network, dtype: str, variables: Any, count: int, shape: tuple[int, int, int]
) -> int:
    """Return the bytes that a device's forward pass keeps, parameters not counted."""
    network = dataclasses.replace(
        _network(student.arch, student.num_classes, dtype, None), kept_norms=student.kept_norms
    )

    def residuals(variables: Any, pixels: jax.Array) -> Any:
        def forward(params: Any) -> jax.Array:
            collections = {"params": params, "batch_stats": variables["batch_stats"]}
            return network.train_logits(collections, pixels, None)[0]

        return jax.vjp(forward, variables["params"])[1]

    pixels = jax.ShapeDtypeStruct((count, *shape), jnp.float32)
    arrays = jax.eval_shape(residuals, variables, pixels)
    return max(0, _bytes(arrays) - _bytes(variables["params"]))


def _step(
    config: ConfigDict,
    student: models.Network,
    teachers: list[models.Network],
    optimizer: Any,
    state: Any,
    shape: tuple[int, int, int],
    train_shape: tuple[int, ...] | None,
    devices: int,
) -> tuple[Any, tuple[Any, ...]]:
    """Return the per-device step, and the shapes and dtypes of its arguments.

    `train_shape` is that of the training set on the devices; None when it is streamed.
    """
    group = None
    if teachers:
        shares = (1.0 / len(teachers),) * len(teachers)
        group = ensemble.Ensemble(tuple(teachers), shares, config.teacher.combine)
    step = step_lib.make_train_step(config, student, group, optimizer)
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
    return step, (state, constants, batch)


def _compiled_rows(step: Any, arguments: tuple[Any, ...], num_devices: int) -> list[list[str]]:
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
