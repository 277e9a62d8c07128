"""Measure a run's student, and its teacher, on the splits of its data set."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from kd_jax import fidelity, models, parallel, steps
from kd_jax.experiment import Experiment


class Predictor:
    """Logits of whole splits, over all devices; compiled once a network."""

    def __init__(self, network: models.Network, devices: list[jax.Device], batch_size: int):
        self._devices, self._batch_size = devices, batch_size
        self._step = parallel.pmap(steps.make_predict_step(network), devices, (False, False, True))

    def logits(self, variables: models.Variables, images: jax.Array) -> np.ndarray:
        """Return float32 `[N, classes]` for all N images, each looked at exactly once.

        Args:
          variables: replicated over the devices.
          images: uint8 `[N, H, W, C]`, replicated.
        """
        count, batch = len(images), self._batch_size
        parts = []
        for first in range(0, count, batch):
            # The last batch is filled up with the last example; those logits are cut off below.
            index = np.minimum(np.arange(first, first + batch, dtype=np.int32), count - 1)
            parts.append(self._step(variables, images, parallel.shard(index, self._devices)))
        return np.concatenate([np.asarray(part) for part in parts])[:count]


class Judge:
    """Looks at whole splits in eval mode, without augmentation.

    The view is fixed, so the teacher's logits are computed once a split, when they are first
    needed.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        batch_size = experiment.config.batch_size
        self._student = Predictor(experiment.student, experiment.devices, batch_size)
        self._images: dict[str, jax.Array] = {}
        if experiment.teacher is not None:
            self._teacher = Predictor(experiment.teacher.network, experiment.devices, batch_size)
        self.teacher_logits = functools.cache(self._teacher_logits)

    @functools.cached_property
    def teacher_variables(self) -> models.Variables:
        """The teacher's variables, placed on every device once."""
        assert self._experiment.teacher is not None
        return parallel.replicate(self._experiment.teacher.variables, self._experiment.devices)

    def images(self, split: str) -> jax.Array:
        """Return a split's images, uint8 `[N, H, W, C]`, placed on every device once."""
        if split not in self._images:
            images = self._experiment.dataset.split(split).images
            self._images[split] = parallel.replicate(images, self._experiment.devices)
        return self._images[split]

    def _teacher_logits(self, split: str) -> np.ndarray | None:
        """Return float32 `[N, classes]`, or None where the run has no teacher."""
        if self._experiment.teacher is None:
            return None
        return self._teacher.logits(self.teacher_variables, self.images(split))

    def measure_teacher(self, split: str) -> dict[str, float]:
        """Return `fidelity.summary` of the teacher on a split."""
        logits = self.teacher_logits(split)
        assert logits is not None
        return fidelity.summary(logits, self._experiment.dataset.split(split).labels)

    def measure_student(self, variables: Any, split: str) -> dict[str, float]:
        """Return `fidelity.summary` of the student on a split, beside its teacher if it has one.

        Args:
          variables: `params` and `batch_stats`, replicated over the devices.
          split: `train`, `val` or `test`.
        """
        logits = self._student.logits(variables, self.images(split))
        labels = self._experiment.dataset.split(split).labels
        return fidelity.summary(logits, labels, self.teacher_logits(split))
