"""Measure a run's student, and its teacher, on the splits of its data set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kd_jax import fidelity, models, parallel, steps
from kd_jax.experiment import Experiment

_MOST_IN_FLIGHT = 2  # batches dispatched and not yet finished, as in the loop


class Predictor:
    """Logits of whole splits, over all devices; compiled once."""

    def __init__(
        self,
        logits_of: Callable[[Any, jax.Array], jax.Array],
        devices: list[jax.Device],
        batch_size: int,
    ):
        """Wrap `logits_of(variables, pixels)`, which gives `[..., n, classes]`."""
        self._devices, self._batch_size = devices, batch_size
        predict = steps.make_predict_step(logits_of)

        def resident(variables: Any, images: jax.Array, index: jax.Array, share: Any) -> jax.Array:
            others = None if share is None else images[(index + 1) % len(images)]
            return predict(variables, images[index], others, share)

        self._resident = parallel.pmap(resident, devices, (False, False, True, False))
        self._streamed = parallel.pmap(predict, devices, (False, True, True, False))

    def logits(
        self, variables: Any, images: jax.Array | np.ndarray, share: float | None = None
    ) -> np.ndarray:
        """Return float32 `[..., N, classes]` for all N images, each looked at exactly once.

        Args:
          variables: replicated over the devices.
          images: uint8 `[N, H, W, C]`, replicated; or in host memory, and brought over in parts.
          share: None, or how much of each image is itself and not the image after it.
        """
        mixture = None if share is None else np.float32(share)
        count, batch = len(images), self._batch_size
        parts: list[Any] = []
        for first in range(0, count, batch):
            # On CPU each batch in flight holds a thread while it waits for the other devices: with
            # a small batch there are so many that none is left, and XLA ends the process.
            if len(parts) >= _MOST_IN_FLIGHT:
                jax.block_until_ready(parts[-_MOST_IN_FLIGHT])
            # The last batch is filled up with the last example; those logits are cut off below.
            index = np.minimum(np.arange(first, first + batch, dtype=np.int32), count - 1)
            cut = parallel.shard(index, self._devices)
            if isinstance(images, np.ndarray):
                others = None if share is None else images[(cut + 1) % count]
                parts.append(self._streamed(variables, images[cut], others, mixture))
            else:
                parts.append(self._resident(variables, images, cut, mixture))
        return np.concatenate([np.asarray(part) for part in parts], axis=-2)[..., :count, :]


class Judge:
    """Looks at whole splits in eval mode, without augmentation.

    The view is fixed, so the teachers' logits are computed once a split, when they are first
    needed.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        batch_size = experiment.config.batch_size // experiment.config.accumulate
        self._student = Predictor(experiment.student.logits, experiment.devices, batch_size)
        self._images: dict[str, jax.Array | np.ndarray] = {}
        if experiment.teachers is not None:
            logits_of = experiment.teachers.ensemble.logits
            self._teachers = Predictor(logits_of, experiment.devices, batch_size)
        self.members_logits = functools.cache(self._members_logits)

    @functools.cached_property
    def teacher_variables(self) -> tuple[models.Variables, ...]:
        """Every teacher's variables, placed on every device once; empty without a teacher."""
        its_teachers = self._experiment.teachers
        variables = its_teachers.variables if its_teachers else ()
        return parallel.replicate(variables, self._experiment.devices)

    def images(self, split: str) -> jax.Array | np.ndarray:
        """Return a split's images, uint8 `[N, H, W, C]`, placed on every device once.

        In host memory as they are, where the training set is streamed.
        """
        if split not in self._images:
            images = self._experiment.dataset.split(split).images
            if self._experiment.resident:
                images = parallel.replicate(images, self._experiment.devices)
            self._images[split] = images
        return self._images[split]

    def _members_logits(self, split: str) -> np.ndarray:
        """Return every teacher's logits, float32 `[teachers, N, classes]`."""
        return self._teachers.logits(self.teacher_variables, self.images(split))

    def teacher_logits(self, split: str) -> np.ndarray | None:
        """Return what the teachers say together, float32 `[N, classes]`; None without any."""
        if self._experiment.teachers is None:
            return None
        return np.asarray(self._experiment.teachers.ensemble.mean(self.members_logits(split)))

    def some_members_logits(self, split: str, count: int) -> np.ndarray:
        """Return `members_logits` of a split's first images, computed now."""
        return self._teachers.logits(self.teacher_variables, self.images(split)[:count])

    def student_logits(self, variables: Any, split: str, share: float | None = None) -> np.ndarray:
        """Return the student's logits, float32 `[N, classes]`, see `Predictor.logits`.

        Args:
          variables: `params` and `batch_stats`, replicated over the devices.
          split: `train`, `val` or `test`.
          share: of each image in its mixture with the next; None: no mixture.
        """
        return self._student.logits(variables, self.images(split), share)

    def teacher_logits_of_mixtures(self, split: str, share: float) -> np.ndarray:
        """Return `teacher_logits` of mixtures of each image with the next."""
        assert self._experiment.teachers is not None
        images = self.images(split)
        members = self._teachers.logits(self.teacher_variables, images, share)
        return np.asarray(self._experiment.teachers.ensemble.mean(members))

    def measure_student(self, variables: Any, split: str) -> dict[str, float]:
        """Return `fidelity.summary` of the student on a split, beside its teacher if it has one.

        Arguments as `student_logits`.
        """
        labels = self._experiment.dataset.split(split).labels
        logits = self.student_logits(variables, split)
        return fidelity.summary(logits, labels, self.teacher_logits(split))
