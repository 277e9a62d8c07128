"""What a run would take, before it takes it: `kd_jax.main --plan`.

Everything is counted from the traced program and from shapes. Memory is an estimate of what must be
held at once on a device: the training set, the state, the teacher, and what the student's forward
pass keeps for its backward pass; XLA's own temporaries come on top.

With `--plan_compile` the step is compiled too, for as many CPU devices as are planned for, which
any machine can pretend to have. Then collectives and temporaries are those of the compiled program:
of the ordinary convolutions, as on accelerators, but under XLA's choices for CPUs. With
`--plan_measure` some steps are made on this machine (`measured_plan`).
"""

from __future__ import annotations

import dataclasses
import math

import jax
from ml_collections import ConfigDict

from kd_jax import models
from kd_jax.config import checks
from kd_jax.data import catalog, prefetch, splits, tfds_source
from kd_jax.data import dataset as dataset_lib
from kd_jax.distillation import state as state_lib
from kd_jax.distillation.features import Features
from kd_jax.distillation.student import StudentSpec
from kd_jax.kernels import lowering
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import text_tables
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import recording
from kd_jax.training import (
    feature_setup,
    length,
    measured_plan,
    planned_step,
    planned_teachers,
    setup,
    student_setup,
    time_left,
)
from kd_jax.training import optimizer as optimizer_lib
from kd_jax.training.planned_teachers import Planned


def plan(
    config: ConfigDict,
    num_devices: int | None,
    images_per_second: float | None,
    *,
    compiled: bool = False,
    measured: bool = False,
) -> str:
    """Return the plan as a Markdown table.

    Args:
      config: an experiment; the teachers' weights need not be there: of the first its architecture
        is enough, and those of which nothing is known are named as such.
      num_devices: over all processes, of any machine, and no device is looked at; None: those that
        the run would take on this one.
      images_per_second: the rate to reckon with; None: no time is told.
      compiled: whether to compile the step, which takes as long as it does.
      measured: whether to make some steps on this machine, which needs data and teachers.

    Raises:
      UserError: a value is not as it must be, or the data set is neither known nor there.
    """
    if measured and (num_devices is not None or compiled):
        raise UserError(
            "--plan_measure measures the run as this machine would make it: expected neither "
            "--plan_devices nor --plan_compile with it"
        )
    given = config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if config.distill.label_weight < 1 and not (
            config.teacher.weights or config.teacher.replay
        ):
            config.teacher.weights = planned_teachers.NOT_GIVEN
    checks.check(config)
    machine = []
    if num_devices is None:
        setup.prepare(config)
        devices = devices_lib.select(config.num_devices, config.batch_size, config.accumulate)
        num_devices, machine = len(devices), [["this machine", measured_plan.machine(devices)]]
    if config.batch_size % (num_devices * config.accumulate):
        raise UserError(
            f"config.batch_size is {config.batch_size}, which {num_devices} devices in "
            f"{config.accumulate} part(s) do not divide: choose a multiple, or other --plan_devices"
        )
    with lowering.forced("plain"):  # which does not ask what platform this is
        rows = _rows(config, num_devices, images_per_second, compiled)
    rows[1:1] = machine
    if measured:
        rows += measured_plan.rows(given)
    return text_tables.markdown(rows)


def _rows(
    config: ConfigDict, devices: int, images_per_second: float | None, compiled: bool
) -> list[list[str]]:
    has_teachers = config.distill.label_weight < 1
    examples, shape, num_classes = _size_of_data(config)
    total_steps = length.total_steps(config, examples)
    student = planned_step.network(
        config.student.arch,
        num_classes,
        config.student.dtype,
        devices_lib.AXIS if config.batch_norm.sync else None,
    )
    kept_norms = student_setup.frozen_norms(config.student.freeze, student, shape)
    # Where a part of the steps is made with int8's numbers, those are planned: they need more.
    quantized = config.student.quantize != "none"
    student = dataclasses.replace(student, kept_norms=kept_norms, quantized=quantized)
    planned = planned_teachers.find(config, num_classes, shape) if has_teachers else []
    teachers = [each.network for each in planned if each.network is not None]
    logit_bytes = 0
    if has_teachers and config.distill.view == "fixed":
        logit_bytes = 4 * len(planned) * examples * num_classes
    lengths = total_steps, 0, examples / config.batch_size
    optimizer = optimizer_lib.build(config, *lengths)
    features = None
    if config.distill.features and teachers:
        of_teacher = models.abstract_variables(teachers[0], shape)
        features = feature_setup.of_network(
            config, teachers[0], of_teacher, student, shape, lengths
        )
    variables = models.abstract_variables(student, shape)
    state = jax.eval_shape(
        lambda v: state_lib.init_state(config, v, optimizer, features), variables
    )
    spec = StudentSpec(config, student, optimizer, features=features)
    is_resident = prefetch.is_resident(config.dataset, examples * math.prod(shape))
    images = examples if is_resident else _streamed_images(config) // devices
    sizes = {
        "the training set" if is_resident else "streamed batches": images * math.prod(shape),
        "the state (parameters, statistics, optimiser)": planned_step.size_of(state),
        _name_of_teachers(planned): sum(
            planned_step.size_of(models.abstract_variables(teacher, shape)) for teacher in teachers
        ),
        **({"the teachers' kept logits": logit_bytes} if logit_bytes else {}),
        "kept for the student's backward pass": planned_step.residual_bytes(
            student,
            variables,
            config.batch_size // devices // config.accumulate,
            shape,
        ),
    }
    rows = [
        ["what", "value"],
        ["student", planned_teachers.cost(student, shape)],
        *([["teacher", each.words] for each in planned] or [["teacher", "-"]]),
        *_feature_rows(config, features),
        ["examples, classes, image", f"{examples:,}, {num_classes}, {'x'.join(map(str, shape))}"],
        ["batch", f"{config.batch_size} on {devices} device(s)"],
        ["steps, epochs", f"{total_steps:,}, {total_steps * config.batch_size / examples:.1f}"],
        *_quantization_rows(config, total_steps),
        *([f"MB a device: {name}", f"{size / 1e6:,.1f}"] for name, size in sizes.items()),
        ["MB a device: all of these", f"{sum(sizes.values()) / 1e6:,.1f}"],
    ]
    if config.teacher.record:
        answers = recording.size_of_answers(config, len(planned), num_classes, total_steps)
        rows.append(["GB on disk: the recorded answers", f"{answers / 1e9:,.2f}"])
    if len(teachers) == len(planned):
        train = (examples, *shape) if is_resident else None
        step, arguments = planned_step.step_of(spec, teachers, state, shape, train, devices)
        rows += planned_step.traced_rows(step, arguments, devices)
        rows += planned_step.compiled_rows(step, arguments, devices) if compiled else []
    if images_per_second:
        seconds = total_steps * config.batch_size / images_per_second
        rows.append([f"time at {images_per_second:g} images/s", time_left.duration(seconds)])
    return rows


def _quantization_rows(config: ConfigDict, total_steps: int) -> list[list[str]]:
    first = length.quantize_from(config, total_steps)
    if first == total_steps:
        return []
    return [["with int8's numbers", f"the last {total_steps - first:,} steps: counted as all"]]


def _name_of_teachers(planned: list[Planned]) -> str:
    name = "the teachers" if len(planned) > 1 else "the teacher"
    counted = all(each.network is not None or not each.in_step for each in planned)
    return name if counted else f"{name}, as far as known"


def _feature_rows(config: ConfigDict, features: Features | None) -> list[list[str]]:
    if features is not None:
        return [["features", "; ".join(map(str, features.pairs))]]
    pairs = len(config.distill.features)
    words = f"{pairs} pair(s), not counted here: the teacher is not known yet"
    return [["features", words]] if pairs else []


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
