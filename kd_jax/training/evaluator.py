"""Measure a run's student, and its teacher, on the splits of its data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import models
from kd_jax.distillation import augment
from kd_jax.metrics import fidelity
from kd_jax.models import quantize
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import DivergedError, UserError
from kd_jax.training.setup import RunSetup
from kd_jax.training.teacher_source import ask_about

_MOST_IN_FLIGHT = 2  # batches dispatched and not yet finished, as in the loop


def make_predict_step(
    logits_of: Callable[[Any, jax.Array], jax.Array],
) -> Callable[..., jax.Array]:
    """Return the per-device step `(variables, images, partners, lam) -> logits` in eval mode.

    `logits_of(variables, pixels)` gives `[..., n, classes]`. `images` is this device's part of the
    images to look at, uint8 `[n, H, W, C]`. `lam` is None, or the weight of each in its
    mixture with the image of `partners`. The logits returned are those of all devices, float32
    `[..., global n, classes]`.
    """

    def predict(
        variables: Any, images: jax.Array, partners: jax.Array | None, lam: jax.Array | None
    ) -> jax.Array:
        pixels = augment.to_pixels(images)
        if lam is not None:
            assert partners is not None
            pixels = augment.mix(pixels, augment.to_pixels(partners), lam)
        logits = logits_of(variables, pixels)
        return jax.lax.all_gather(logits, devices_lib.AXIS, axis=logits.ndim - 2, tiled=True)

    return predict


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
        predict = make_predict_step(logits_of)

        def resident(variables: Any, images: jax.Array, index: jax.Array, lam: Any) -> jax.Array:
            partners = (
                None if lam is None else images[jnp.asarray(fidelity.partners(len(images)))[index]]
            )
            return predict(variables, images[index], partners, lam)

        self._resident = devices_lib.pmap(resident, devices, (False, False, True, False))
        self._streamed = devices_lib.pmap(predict, devices, (False, True, True, False))
        self._prepared: set[tuple[int, ...]] = set()  # shapes of all images

    def prepare(self, variables: Any, images: jax.Array | np.ndarray) -> None:
        """Compile for these images, if that was not done: by asking about the first batch."""
        if images.shape not in self._prepared:
            self._prepared.add(images.shape)
            jax.block_until_ready(self._part(variables, images, 0, None))

    def logits(
        self, variables: Any, images: jax.Array | np.ndarray, lam: float | None = None
    ) -> np.ndarray:
        """Return float32 `[..., N, classes]` for all N images, each looked at exactly once.

        Args:
          variables: replicated over the devices.
          images: uint8 `[N, H, W, C]`, replicated; or in host memory, and brought over in parts.
          lam: weight of each image in its mixture with its partner, see `fidelity.partners`; None:
            no mixture.
        """
        mixture = None if lam is None else np.float32(lam)
        count = len(images)
        parts: list[Any] = []
        for first in range(0, count, self._batch_size):
            # On CPU each batch in flight holds a thread while it waits for the other devices: with
            # a small batch there are so many that none is left, and XLA ends the process.
            if len(parts) >= _MOST_IN_FLIGHT:
                jax.block_until_ready(parts[-_MOST_IN_FLIGHT])
            parts.append(self._part(variables, images, first, mixture))
        return np.concatenate([np.asarray(part) for part in parts], axis=-2)[..., :count, :]

    def _part(
        self, variables: Any, images: jax.Array | np.ndarray, first: int, lam: np.float32 | None
    ) -> jax.Array:
        """Return the logits of one batch, from its first image on."""
        count, batch = len(images), self._batch_size
        # The last batch is filled up with the last example; its logits are cut off by `logits`.
        index = np.minimum(np.arange(first, first + batch, dtype=np.int32), count - 1)
        cut = devices_lib.shard(index, self._devices)
        if isinstance(images, np.ndarray):
            others = None if lam is None else images[fidelity.partners(count)[cut]]
            return self._streamed(variables, images[cut], others, lam)
        return self._resident(variables, images, cut, lam)


class _Common:
    """What evaluators of one data set and the same teachers share."""

    def __init__(self, run: RunSetup, batch_size: int):
        self._run = run
        self._batch_size = batch_size
        if run.teachers is not None and run.teachers.is_live:
            logits_of = run.teachers.ensemble.logits
            self._teachers = Predictor(logits_of, run.devices, batch_size)
        self.images = functools.cache(self._images)
        self.members_logits = functools.cache(self._members_logits)
        self.consensus = functools.cache(self._consensus)

    @functools.cached_property
    def teacher_variables(self) -> tuple[models.Variables, ...]:
        teachers = self._run.teachers
        variables = teachers.variables if teachers else ()
        return devices_lib.replicate(variables, self._run.devices)

    def _members_logits(self, split: str) -> np.ndarray:
        recording = self._run.recording
        if recording is not None and split in ("val", "test"):
            return recording.clean_logits(split)
        return self.ask(self.images(split))

    def ask(self, images: jax.Array | np.ndarray, lam: float | None = None) -> np.ndarray:
        teachers = self._run.teachers
        assert teachers is not None
        if not teachers.is_live:
            variables = jax.device_put(teachers.variables, self._run.devices[0])
            return ask_about(teachers, variables, images, self._batch_size, lam)
        logits = self._teachers.logits(self.teacher_variables, images, lam)
        for member, member_logits in zip(teachers.members, logits, strict=True):
            try:
                fidelity.check_finite(member_logits, f"the teacher {member.card.arch}'s")
            except DivergedError as error:
                raise UserError(
                    f"{error}, those of {member.card.source}: a weight of it is damaged, or too "
                    "large for config.teacher.dtype; take another file, or float32"
                ) from None
        return logits

    def _images(self, split: str) -> jax.Array | np.ndarray:
        images = self._run.dataset.split(split).images
        if self._run.resident:
            return devices_lib.replicate(images, self._run.devices)
        return images

    def _consensus(self, split: str) -> np.ndarray | None:
        if self._run.teachers is None:
            return None
        return np.asarray(self._run.teachers.ensemble.mean(self.members_logits(split)))


class Evaluator:
    """Looks at whole splits in eval mode, without augmentation.

    The view is fixed, so the teachers' logits are computed once a split, when they are first
    needed.
    """

    def __init__(self, run: RunSetup, shared: Evaluator | None = None):
        """Begin.

        Args:
          run: whose student is measured.
          shared: the evaluator of another with the same data and the same teachers, with whom this
            one shares what is placed on the devices and what the teachers said.
        """
        self._run = run
        batch_size = run.config.batch_size // run.config.accumulate

        @functools.cache
        def student_of(quantized: bool) -> Predictor:
            network = dataclasses.replace(run.student, quantized=quantized)
            return Predictor(network.logits, run.devices, batch_size)

        self._student_of = student_of
        self._common: _Common = shared._common if shared else _Common(run, batch_size)

    @property
    def teacher_variables(self) -> tuple[models.Variables, ...]:
        """Every teacher's variables, placed on every device once; empty without a teacher."""
        return self._common.teacher_variables

    def images(self, split: str) -> jax.Array | np.ndarray:
        """Return a split's images, uint8 `[N, H, W, C]`, placed on every device once.

        In host memory as they are, where the training set is streamed.
        """
        return self._common.images(split)

    def members_logits(self, split: str) -> np.ndarray:
        """Return every teacher's logits, float32 `[teachers, N, classes]`."""
        return self._common.members_logits(split)

    def teacher_logits(self, split: str) -> np.ndarray | None:
        """Return what the teachers say together, float32 `[N, classes]`; None without any."""
        return self._common.consensus(split)

    def some_members_logits(self, split: str, count: int) -> np.ndarray:
        """Return `members_logits` of a split's first images, computed now."""
        return self._common.ask(self.images(split)[:count])

    def prepare(self, variables: Any, split: str) -> None:
        """Do what only the first measuring of a split has to: compile, and ask the teachers.

        So the time of `measure_student` is that of each later one.

        Args:
          variables: as for `student_logits`.
          split: `train`, `val` or `test`.
        """
        self._student_of(quantize.have_ranges(variables)).prepare(variables, self.images(split))
        self.teacher_logits(split)

    def student_logits(self, variables: Any, split: str, lam: float | None = None) -> np.ndarray:
        """Return the student's logits, float32 `[N, classes]`, see `Predictor.logits`.

        Args:
          variables: `params` and `batch_stats`, replicated over the devices; a student that has
            been trained with int8's numbers is measured with them.
          split: `train`, `val` or `test`.
          lam: weight of each image in its mixture with its partner, see `fidelity.partners`; None:
            no mixture.

        Raises:
          DivergedError: not all are finite.
        """
        student = self._student_of(quantize.have_ranges(variables))
        logits = student.logits(variables, self.images(split), lam)
        fidelity.check_finite(logits, f"on the {split} split the student's")
        return logits

    def teacher_logits_of_mixtures(self, split: str, lam: float) -> np.ndarray:
        """Return `teacher_logits` of mixtures of each image with its partner."""
        assert self._run.teachers is not None
        members = self._common.ask(self.images(split), lam)
        return np.asarray(self._run.teachers.ensemble.mean(members))

    def measure_student(self, variables: Any, split: str) -> dict[str, float]:
        """Return `fidelity.summary` of the student on a split, beside its teacher if it has one.

        Arguments and errors as `student_logits`.
        """
        labels = self._run.dataset.split(split).known_labels
        logits = self.student_logits(variables, split)
        return fidelity.summary(logits, labels, self.teacher_logits(split))
