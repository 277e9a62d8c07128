"""After which steps a run logs, validates and saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kd_jax.data import sampler
from kd_jax.training import dispatch, teacher_source
from kd_jax.training.setup import RunSetup


@dataclasses.dataclass(frozen=True)
class Cadence:
    """The steps of a run after which the loop has something to do.

    Steps are counted as updates made: step 1 is the end of the first.

    Attributes:
      total_steps: of the whole run.
      log_every, save_every: steps.
      validation_steps: the end of every `eval_every_epochs` epochs, and the last step.
      steps_per_call: steps that the devices make before they return to Python.
      quantize_from: `RunSetup.quantize_from`: no call goes on beyond it.
    """

    total_steps: int
    log_every: int
    save_every: int
    validation_steps: frozenset[int]
    steps_per_call: int
    quantize_from: int | None = None

    @classmethod
    def of(cls, run: RunSetup) -> Cadence:
        """Return the cadence that a run's config asks for."""
        config, examples = run.config, len(run.dataset.train)
        epochs = run.total_steps * config.batch_size / examples
        validations = int(epochs / config.eval_every_epochs)
        return cls(
            total_steps=run.total_steps,
            log_every=config.log_every_steps,
            save_every=config.checkpoint_every_steps,
            validation_steps=frozenset(
                sampler.steps_in(k * config.eval_every_epochs, config.batch_size, examples)
                for k in range(1, validations + 1)
            )
            | {run.total_steps},
            quantize_from=run.quantize_from,
            # Where the teacher answers between the steps there is something to do after each.
            steps_per_call=config.steps_per_call if teacher_source.is_live(run) else 1,
        )

    def should_log(self, step: int) -> bool:
        """Return whether the metrics of training are logged after this step."""
        return step % self.log_every == 0 or step == self.total_steps

    def should_validate(self, step: int) -> bool:
        """Return whether validation is measured after this step."""
        return step in self.validation_steps

    def should_save(self, step: int) -> bool:
        """Return whether a checkpoint is written after this step: with each validation too."""
        return step % self.save_every == 0 or self.should_validate(step)

    def validations_in(self, start: int, end: int) -> int:
        """Return how many validations come after step `start` and up to step `end`."""
        return sum(start < step <= end for step in self.validation_steps)

    def saves_in(self, start: int, end: int) -> int:
        """Return how many checkpoints come after step `start` and up to step `end`."""
        regular = end // self.save_every - start // self.save_every
        return regular + sum(
            start < step <= end and step % self.save_every != 0 for step in self.validation_steps
        )

    def call_sizes(self, start: int, end: int) -> frozenset[int]:
        """Return in how many steps at a time the calls are: each size is a program of its own."""
        if self.steps_per_call == 1:
            return frozenset({1} if start < end else ())
        sizes = set()
        for call in self.calls(start, end):
            sizes.add(len(call))
            if len(sizes) == 2:  # there are no others
                break
        return frozenset(sizes)

    def programs(self, start: int, end: int) -> int:
        """Return how many programs the calls from step `start` to `end` are."""
        middle = self.quantize_from
        if middle is None or not start < middle < end:
            return len(self.call_sizes(start, end))
        return len(self.call_sizes(start, middle)) + len(self.call_sizes(middle, end))

    def calls(self, start: int, end: int) -> Iterator[range]:
        """Return the calls from step `start` to `end`; each ends where there is work to do."""
        steps = range(start + 1, end + 1)
        stops = (
            step
            for step in steps
            if self.should_log(step) or self.should_save(step) or step == self.quantize_from
        )
        return dispatch.calls(start, end, self.steps_per_call, stops)
