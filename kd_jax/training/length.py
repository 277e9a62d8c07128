"""A run that is to be longer, or shorter, than it was planned.

It may be, if the steps that it has made are those of a run that was planned so from the start: if
the learning rate, and the weight of the distillation loss, of each of them are the same numbers,
and if rounding to int8's numbers begins after them or at the same step.
That holds under the schedule `constant`, under `wsd` before its decay and under `step` before its
first drop. Under the others every step's learning rate depends on the length.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import sampler
from kd_jax.distillation import warmup
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.training import optimizer as optimizer_lib
from kd_jax.training import workdir
from kd_jax.weights import saved_network

# Schedules under which every step's learning rate depends on the length.
_SHAPED_BY_LENGTH = ("cosine", "cosine_by_epoch", "linear")
# The result is moved last: after a kill in between, the next start moves the rest.
_OF_A_FINISHED_RUN = (saved_network.CARD_FILE, saved_network.ARRAYS_FILE, workdir.RESULT_FILE)


def total_steps(config: ConfigDict, examples: int) -> int:
    """Return the length of a run on so many training examples, in steps."""
    return config.total_steps or sampler.steps_in(config.total_epochs, config.batch_size, examples)


def in_words(config: ConfigDict, examples: int) -> str:
    """Say how often a run looks at its training images, and why that is no whole number.

    Args:
      config: of the run.
      examples: of the training set.
    """
    steps, batch = total_steps(config, examples), config.batch_size
    if config.total_steps:
        return f"{steps * batch / examples:,.2f} epochs of {examples} images"
    is_exact = math.isclose(steps * batch, config.total_epochs * examples)
    why = "" if is_exact else f", rounded up to whole steps of {batch}"
    return f"{config.total_epochs:.6g} epochs of {examples} images{why}"


def warmup_steps(config: ConfigDict, examples: int) -> int:
    """Return the steps of warm-up that a run asks for; of a short run fewer are used."""
    return round(config.warmup_epochs * examples / config.batch_size)


def quantize_from(config: ConfigDict, steps: int) -> int:
    """Return how many updates of a run of `steps` are made before its student is quantised."""
    options = config.student
    is_quantized = options.quantize != "none"
    return steps - is_quantized * max(1, round(options.quantize_share * steps))


def learning_rates(config: ConfigDict, examples: int) -> np.ndarray:
    """Return the learning rate of each step of a run, float32 `[steps]`, the first one first."""
    return config.learning_rate * _factors(config, examples, total_steps(config, examples))[0]


def check_schedule(place: Path, config: ConfigDict) -> None:
    """Raise `UserError` if a run is to have another length under a schedule that forbids it.

    For what depends on the data, see `check_steps_made`.

    Args:
      place: its workdir.
      config: of this start; `workdir.check` has found that it differs in length alone.
    """
    if not (place / workdir.CONFIG_FILE).exists():
        return
    before, name = workdir.load_config(place), config.schedule.name
    if bool(before.total_steps) != bool(config.total_steps):
        return  # whether steps and epochs are as long is not known before the data are
    if _is_same(before, config) or name not in _SHAPED_BY_LENGTH or not workdir.steps_made(place):
        return
    raise UserError(
        f"the run in {place} was planned for {_words(before)} and is now to have {_words(config)}, "
        f"but under config.schedule.name={name} the length decides the learning rate of every "
        f"step, so this would be another training: {_train_on(place)}; the schedule constant may "
        "be lengthened, and wsd before its decay"
    )


def check_steps_made(place: Path, config: ConfigDict, examples: int) -> None:
    """Raise `UserError` if a run was begun under another length, and its steps are other ones.

    Args:
      place: its workdir.
      config: of this start; `workdir.check` has found that it differs in length alone.
      examples: of the training set.
    """
    if not (place / workdir.CONFIG_FILE).exists():
        return
    before = workdir.load_config(place)
    done = workdir.steps_made(place)
    old, new = total_steps(before, examples), total_steps(config, examples)
    if old == new or done == 0:
        return
    refusal = f"the run in {place} was planned for {old} steps and has made {done}"
    if new < done:
        raise UserError(f"{refusal}, so it cannot end after {new}: expected at least {done}")
    if config.patience and done >= old:
        raise UserError(
            f"{refusal}, and with config.patience={config.patience} it would count a validation "
            f"that a run of {new} steps does not make: {_train_on(place)}"
        )
    begins, would_begin = quantize_from(before, old), quantize_from(config, new)
    if begins != would_begin and min(begins, would_begin) < done:
        raise UserError(
            f"{refusal}; it computes with int8's numbers from step {begins} on, and a run of "
            f"{new} from step {would_begin} on, so this would be another training: "
            f"{_train_on(place)}"
        )
    for was, would_be in zip(
        _factors(before, examples, done), _factors(config, examples, done), strict=True
    ):
        differ = np.flatnonzero(was != would_be)
        if len(differ):
            step = int(differ[0])
            raise UserError(
                f"{refusal}; of a run of {new}, step {step + 1} has {would_be[step]!s} of the "
                f"peak under config.schedule.name={config.schedule.name} with its warm-up, and it "
                f"had {was[step]!s}, so this would be another training: "
                f"{_train_on(place)}"
            )
    logger.info(
        "the run in %s was planned for %d steps and goes on to %d: the %d that it has made are "
        "the same in both",
        place, old, new, done,
    )  # fmt: skip


def set_result_aside(place: Path, config: ConfigDict, examples: int) -> None:
    """Keep the result and the student of a finished run whose length is now another one.

    They are moved to `finished_at_<step>/`: what lies in the workdir itself is of the new length.
    """
    if not (place / workdir.RESULT_FILE).exists():
        return
    if total_steps(workdir.load_config(place), examples) == total_steps(config, examples):
        return
    aside = place / f"finished_at_{workdir.steps_made(place)}"
    aside.mkdir(exist_ok=True)
    for name in _OF_A_FINISHED_RUN:
        if (place / name).exists():
            os.replace(place / name, aside / name)
    logger.info("the result and the student of the shorter run are kept in %s", aside)


def _is_same(before: ConfigDict, config: ConfigDict) -> bool:
    if before.total_steps and before.total_steps == config.total_steps:
        return True  # then the epochs are not read
    return all(before[name] == config[name] for name in workdir.LENGTH_FIELDS)


def _words(config: ConfigDict) -> str:
    return (
        f"{config.total_steps} steps" if config.total_steps else f"{config.total_epochs:g} epochs"
    )


def _train_on(place: Path) -> str:
    """Return what to do instead of lengthening a run."""
    first = ""
    if not (place / workdir.RESULT_FILE).exists():
        first = "let it end as planned, then "
    return f"{first}train its student on with config.student.weights={place} in a new --workdir"


def _factors(config: ConfigDict, examples: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return of the first steps the factors of the learning rate and of the distillation loss."""
    schedule = optimizer_lib.relative_schedule(
        total_steps(config, examples),
        warmup_steps(config, examples),
        config.schedule,
        examples / config.batch_size,
    )

    def both(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = warmup.distillation_factor(config, step, examples)
        return schedule(step), jnp.broadcast_to(jnp.asarray(loss, jnp.float32), step.shape)

    learning_rate, loss = jax.jit(both)(np.arange(steps, dtype=np.int32))
    return np.asarray(learning_rate), np.asarray(loss)
