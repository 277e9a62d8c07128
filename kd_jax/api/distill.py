"""`kd_jax.distill`: train a student under a teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax import recipes
from kd_jax.api import data as data_lib
from kd_jax.api import options, progress
from kd_jax.api.run import Run
from kd_jax.api.teachers import TeacherSpec
from kd_jax.api.teachers import teacher as as_teacher
from kd_jax.config import checks, overrides
from kd_jax.models import zoo
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime import signals
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.training.callbacks import Callback
from kd_jax.training.given import Given


def distill(
    teacher: Any,
    student: Any = None,
    data: Any = None,
    *,
    workdir: str | Path,
    val: Any = None,
    test: Any = None,
    unlabelled: Any = None,
    class_names: Sequence[str] | None = None,
    config: ConfigDict | str | Path | None = None,
    recipe: str | None = None,
    loss: Callable[..., Any] | None = None,
    callbacks: Sequence[Callback] | Callback = (),
    progress_line: bool = True,
    **fields: Any,
) -> Run:
    """Train a student under a teacher, or go on with a run that was stopped.

    The same call resumes a run: its directory holds checkpoints, and what changed since is refused
    by name. JAX's devices are taken as they are where it runs already; otherwise there is one a
    core on CPU.

    Args:
      teacher: what `kd_jax.teacher` returns or takes; a list of them is an ensemble; None: none,
        for a recipe that learns from labels alone, or with `replay=`.
      student: a name of the zoo (`python -m kd_jax.models`), or a Linen or NNX module from
        `[n, H, W, C]` to `[n, classes]`; None: that of the config, `mobilenet_v3_small` by default.
      data: a name of tfds, `digits`, a folder of images (a tenth of its train is held out as
        validation, unless the config or `val_examples` says otherwise), or arrays: `images`, or
        `(images, labels)`, uint8 `[N, H, W, 3]` and whole numbers `[N]` or None. Without labels
        there is agreement with the teacher and no accuracy. None: that of the config, `cifar100` by
        default.
      workdir: directory of this run and no other; made when missing.
      val, test: arrays as `data`, beside arrays; None: a tenth is held out.
      unlabelled: further images to train on, which only the teacher labels.
      class_names: of the data set, in the order of its labels.
      config: an experiment to begin with, or `FILE[:ARGUMENT]` of one.
      recipe: a name of `kd_jax.recipes` to begin with, instead, or several joined by `+`; None:
        `funmatch`.
      loss: `loss(teacher_logits, student_logits)` or `(..., labels)`, a pure function of JAX arrays
        that returns one number for each example; None: `distill.loss` of the config.
      callbacks: see `kd_jax.Callback`.
      progress_line: tell on stderr how the run goes on, in one line on a terminal.
      fields: any field of the config by keyword, `temperature=2` or `mixup__kind="none"`; `epochs`
        and `steps` are short for `total_epochs` and `total_steps`.

    Returns:
      the run, finished; or stopped, if a callback asked for it.

    Raises:
      UserError: an input is not as it must be, in one sentence.
    """
    experiment = _begin(config, recipe)
    teachers = _as_teachers(teacher)
    callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UserError(
                f"callbacks= has a {type(callback).__name__}: expected objects of kd_jax.Callback"
            )
    given: dict[str, Any] = {"callbacks": tuple(callbacks), "loss": loss}
    _set_teachers(experiment, teachers, given)
    options.apply(experiment, fields)  # again below, over what the data set says
    classes = len(class_names) if class_names is not None else None
    dataset = data_lib.resolve(
        data,
        val,
        test,
        unlabelled,
        classes,
        lambda shape: _classes_of(teachers, shape, experiment),
    )
    given |= {"source": dataset.source, "validation": dataset.validation}
    if class_names is not None:
        given["class_names"] = tuple(class_names)
    _set_student(experiment, student, given)
    if loss is not None:
        count = _count_arguments(loss)
        experiment.distill.loss = "python" if count == 2 else "python_with_labels"
    if config is None:  # or it says what is held out
        for path, value in dataset.defaults.items():
            options.set_field(experiment, path, value)
    for path, value in dataset.fields.items():
        options.set_field(experiment, path, value)
    options.apply(experiment, fields)
    experiment.lock()
    with progress.shown(progress_line):
        from kd_jax.training.train import train

        try:
            train(experiment, workdir, signals.StopRequest(), Given(**given))
        except signals.StoppedError as stopped:
            logger.info("%s", stopped)
    return Run(workdir, given.get("student"))


def _begin(config: ConfigDict | str | Path | None, recipe: str | None) -> ConfigDict:
    """Return the experiment to begin with."""
    if config is not None and recipe is not None:
        raise UserError("config= and recipe= are both given: expected one of them")
    if isinstance(config, str | Path):
        experiment = overrides.load(str(config)).copy_and_resolve_references()
    elif config is not None:
        experiment = config.copy_and_resolve_references()
    else:
        experiment = recipes.apply(str(recipe or "funmatch"))
    experiment.unlock()
    return experiment


def _as_teachers(teacher: Any) -> list[TeacherSpec]:
    """Return the teachers that a caller gave."""
    if teacher is None:
        return []
    several = teacher if isinstance(teacher, list | tuple) else [teacher]
    return [each if isinstance(each, TeacherSpec) else as_teacher(each) for each in several]


def _set_teachers(
    experiment: ConfigDict, teachers: Sequence[TeacherSpec], given: dict[str, Any]
) -> None:
    """Name the teachers in the config, and put the objects beside it."""
    if not teachers:
        return
    names = [each.weights for each in teachers]
    experiment.teacher.arch = "" if teachers[0].network is not None else experiment.teacher.arch
    experiment.teacher.weights = names[0]
    experiment.teacher.ensemble = tuple(names[1:])
    given["teachers"] = {each.weights: each.network for each in teachers if each.network}
    if len(set(names)) < len(names):
        raise UserError(
            f"two teachers are called {names[0]}: give each a name=, and each network once"
        )
    own = ("normalisation", "own")  # what an object says by itself, beside others that do not
    wanted = [dict(item for item in each.fields.items() if item != own) for each in teachers]
    if any(own in each.fields.items() for each in teachers):
        experiment.teacher.normalisation = "own"
    for each in wanted:
        if each != wanted[0]:
            raise UserError(
                f"the teachers have different options ({wanted[0]} and {each}): those of several "
                "teachers must be the same; give normalisation as (mean, std) of each object"
            )
    for name, value in (wanted[0] if wanted else {}).items():
        options.set_field(experiment, f"teacher.{name}", value)


def _classes_of(
    teachers: Sequence[TeacherSpec], image_shape: tuple[int, int, int], experiment: ConfigDict
) -> int | None:
    """Return how many classes the first teacher knows; None if only its weights would tell."""
    from kd_jax.teachers import foreign
    from kd_jax.weights import saved_network

    if not teachers:
        return None
    network, place = teachers[0].network, Path(teachers[0].weights)
    if network is not None:
        checks.check(experiment)
        devices_lib.prepare(experiment.num_devices, experiment.batch_size // experiment.accumulate)
        size = int(teachers[0].fields.get("input_size", 0))
        return foreign.count_outputs(network, image_shape, size)
    if (place / saved_network.CARD_FILE).exists():
        return saved_network.load_card(place).num_classes
    return None


def _set_student(experiment: ConfigDict, student: Any, given: dict[str, Any]) -> None:
    """Name the student in the config; a module of the user's is put beside it."""
    if student is None:
        return
    if isinstance(student, str):
        zoo.check_arch(student)
        experiment.student.arch = student
        return
    experiment.student.arch = f"{zoo.PYTHON}{type(student).__name__}"
    given["student"] = student


def _count_arguments(loss: Callable[..., Any]) -> int:
    """Return with how many arguments a loss is called: 2, or 3 with the labels.

    Raises:
      UserError: it takes another number.
    """
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        raise UserError(
            f"loss= is {loss!r}: expected a function of (teacher_logits, student_logits)"
        ) from None
    positional = [
        each
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    required = [each for each in positional if each.default is each.empty]
    if len(required) == 3 or (len(positional) > 2 and positional[2].name == "labels"):
        return 3
    if len(required) <= 2 <= len(positional):
        return 2
    raise UserError(
        f"loss= takes {signature}: expected (teacher_logits, student_logits), or "
        "(teacher_logits, student_logits, labels)"
    )
