"""What the loop does for one run of a cohort: log, validate, save, and explain divergence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax

from kd_jax.distillation import state as state_lib
from kd_jax.runtime import devices, processes, text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import DivergedError, UserError
from kd_jax.training import metric_logger, time_left
from kd_jax.training.cadence import Cadence
from kd_jax.training.checkpoints import BEST_METRIC, DamagedError
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.listeners import Listeners
from kd_jax.training.metric_logger import MetricLogger, Throughput
from kd_jax.training.setup import RunSetup
from kd_jax.training.shared_checkpoints import SharedCheckpoints
from kd_jax.training.time_left import TimeLeft
from kd_jax.training.workdir import CHECKPOINTS


@dataclasses.dataclass(frozen=True)
class Member:
    """A run in the loop, alone or in a cohort.

    Attributes:
      run: its parts.
      evaluator: of its student.
      checkpoints: its own.
      workdir: its own.
    """

    run: RunSetup
    evaluator: Evaluator
    checkpoints: SharedCheckpoints
    workdir: Path

    def restore(self, state: state_lib.TrainState, step: int) -> state_lib.TrainState:
        """Return the state of a checkpoint on all devices.

        Args:
          state: of this run, for shapes and dtypes.
          step: of a checkpoint that there is.

        Raises:
          DamagedError: it does not hold the state that was saved.
        """
        return devices.replicate(self.checkpoints.restore(state, step), self.run.devices)


class MemberError(UserError):
    """A member of a cohort cannot go on; the others can, without it."""

    def __init__(self, message: str, workdir: Path):
        super().__init__(message)
        self.workdir = workdir


class MemberDivergedError(Exception):
    """A metric, or an answer in validation, of one member is not finite."""

    def __init__(self, message: str, member: Member):
        super().__init__(message)
        self.member = member


class Tracker:
    """Logs, validation and checkpoints of one member.

    Whatever is not finite raises `MemberDivergedError`.
    """

    def __init__(
        self,
        member: Member,
        cadence: Cadence,
        start: int,
        name: str,
        listeners: Listeners,
        work: TimeLeft,
    ):
        """Open the logs.

        Args:
          member: the run.
          cadence: of its validation.
          start: number of updates made.
          name: what its log lines begin with; empty for a run alone.
          listeners: to what is logged.
          work: to which validations and checkpoints are added.
        """
        self._listeners = listeners
        config, examples = member.run.config, len(member.run.dataset.train)
        self._member, self._cadence, self._name = member, cadence, name
        self._log = MetricLogger(member.workdir if processes.is_first() else None, start)
        self._work = work
        self._throughput = Throughput(
            self._log,
            config.batch_size,
            cadence.total_steps,
            examples,
            work,
            member.run.learning_rate,
            name,
            listeners.on_step,
        )

    @property
    def earlier_top1(self) -> list[float]:
        """Top-1 of the validations before this start, in percent; empty in other processes.

        Agreement with the teacher where there are no labels.
        """
        validations = [record for record in self._log.records if record["kind"] == "val"]
        return [record["top1" if "top1" in record else "agreement"] for record in validations]

    @property
    def images_per_second(self) -> float | None:
        """Rate of training alone; None if nothing was measured."""
        return self._throughput.images_per_second

    def begin_program(self) -> None:
        """Say that the steps from here are of another program."""
        self._throughput.begin_program()

    def start_timing(self, step: int) -> None:
        """Measure the rate from here: nothing is in flight."""
        self._throughput.start(step)

    def note(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keep metrics that may still be computed, for the next `flush`."""
        self._throughput.note(step, metrics)

    def flush(self) -> None:
        """Write the metrics that were noted last."""
        with self._told_of_divergence():
            self._throughput.flush()

    def stop_timing(self, step: int) -> None:
        """Write what is noted, and leave what follows out of the rate."""
        with self._told_of_divergence():
            self._throughput.stop(step)

    def check(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Require finite metrics of the step that is going to be saved."""
        with self._told_of_divergence():
            values = {name: float(value) for name, value in metrics.items()}
            metric_logger.check_finite(step, values)

    def save(self, step: int, state: state_lib.TrainState) -> float | None:
        """Save a checkpoint, validated first where the cadence says so.

        Returns:
          top-1 in percent (agreement where there are no labels), or None where validation was
          not measured.
        """
        metrics = None
        if self._cadence.should_validate(step):
            with self._told_of_divergence(f" at step {step}"):  # and it is not saved
                self._member.evaluator.prepare(state.variables, "val")  # what is done but once
                with self._work.measured(time_left.VALIDATION):
                    metrics = self._validate(step, state)
        with self._work.measured(time_left.CHECKPOINT):
            run = self._member.run
            # Of a run for int8 the best is one that computes with its numbers.
            may_be_best = not run.quantizes or run.is_quantized(step - 1)
            self._member.checkpoints.save(step, state, metrics if may_be_best else None)
        self._listeners.on_checkpoint(step, self._member.workdir / CHECKPOINTS / str(step))
        return metrics[BEST_METRIC] if metrics else None

    def wait(self) -> None:
        """Wait for the checkpoint that is being written."""
        self._member.checkpoints.wait()

    def close(self) -> None:
        """Write the logs out."""
        self._log.close()

    def _validate(self, step: int, state: state_lib.TrainState) -> dict[str, float]:
        measures = self._member.evaluator.measure_student(state.variables, "val")
        self._log.write("val", step, measures)
        words = [
            f"{word} {measures[name]:.2f} %"
            for name, word in (("top1", "top-1"), ("agreement", "agreement"))
            if name in measures
        ]
        of_few = text_tables.of_few(len(self._member.run.dataset.val))
        logger.info("%sstep %d  validation %s%s", self._name, step, ", ".join(words), of_few)
        self._listeners.on_evaluate(step, measures)
        if "top1" not in measures:  # no labels: the best is nearest to its teacher
            return {BEST_METRIC: measures["agreement"], "val_nll": measures["kl_to_teacher"]}
        return {BEST_METRIC: measures["top1"], "val_nll": measures["nll"]}

    @contextmanager
    def _told_of_divergence(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except DivergedError as error:
            raise MemberDivergedError(f"{error}{where}", self._member) from None


def explain_divergence(diverged: MemberDivergedError, state: state_lib.TrainState) -> MemberError:
    """Return the error that ends a diverged run: what happened, what is kept, what to try.

    Args:
      diverged: whose loss, or answer, is not finite.
      state: of that member, for the shapes of its checkpoints.
    """
    return MemberError(
        f"{diverged}: {_newest_checkpoint(diverged.member, state)}; try a lower "
        "config.learning_rate, config.optimizer.clip_norm=1, or a lower "
        "config.distill.temperature, with another --workdir",
        diverged.member.workdir,
    )


def _newest_checkpoint(member: Member, state: state_lib.TrainState) -> str:
    """Say what the newest checkpoint reaches on validation."""
    member.checkpoints.wait()
    step = member.checkpoints.latest_step()
    if step is None:
        return "no checkpoint had been saved yet"
    try:
        good = member.restore(state, step)
    except DamagedError as error:
        return f"the checkpoint of step {step} is damaged ({error})"
    try:
        measures = member.evaluator.measure_student(good.variables, "val")
    except DivergedError as error:
        return f"at the checkpoint of step {step}, which is kept, {error} too"
    reached = measures.get("top1", measures.get("agreement", 0.0))
    of_few = text_tables.of_few(len(member.run.dataset.val))
    return (
        f"the checkpoint of step {step} is kept, it reaches {reached:.2f} %{of_few} on validation"
    )
