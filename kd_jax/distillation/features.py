"""Features: a student that matches what modules of its teacher return, besides the logits.

A pair names a module of each network. Both outputs are pooled to the same height and width, and
compared by one of two losses:

*mse* (Romero et al. 2015, FitNets): a linear projector of the student's channels to the teacher's,
a 1x1 convolution, is trained with the student and is no part of it; the mean squared difference.

*attention* (Zagoruyko and Komodakis 2017): the sum over channels of squares, a map of where a
network is active, scaled to length 1; the mean squared difference of the maps. No projector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from kd_jax.models import Network, capture
from kd_jax.runtime.errors import UserError

Projectors = dict[str, dict[str, Any]]
_LEAST = 1e-12  # added to a squared length, so that a map of zeros has a gradient


class Pair(NamedTuple):
    """Two modules that are compared.

    Attributes:
      teacher, student: their paths.
      teacher_shape, student_shape: of their outputs for one image, `[H, W, C]` or `[C]`.
    """

    teacher: str
    student: str
    teacher_shape: tuple[int, ...]
    student_shape: tuple[int, ...]

    def __str__(self) -> str:
        """Return the pair in words."""
        return (
            f"{self.student} {list(self.student_shape)} to the teacher's {self.teacher} "
            f"{list(self.teacher_shape)}"
        )


@dataclasses.dataclass(frozen=True)
class Features:
    """The pairs of a run, and how they are compared.

    Attributes:
      pairs: at least one.
      loss: `mse` or `attention`.
      weight: of the sum over pairs in the student's loss.
      optimizer: of the projectors, an optax chain.
    """

    pairs: tuple[Pair, ...]
    loss: str
    weight: float
    optimizer: optax.GradientTransformation

    @property
    def teacher_paths(self) -> tuple[str, ...]:
        """Of the teacher's modules."""
        return tuple(pair.teacher for pair in self.pairs)

    def first_projectors(self, seed: int) -> Projectors:
        """Return float32 projectors, `kernel` `[student, teacher]` and `bias`, by number of pair.

        Kernels are normal with variance 1 / student's channels; empty where the loss has none.
        """
        projectors: Projectors = {}
        for number, pair in enumerate(self.pairs if self.loss == "mse" else ()):
            shape = pair.student_shape[-1], pair.teacher_shape[-1]
            kernel = np.random.default_rng([seed, number]).standard_normal(shape)
            projectors[str(number)] = {
                "kernel": (kernel / np.sqrt(shape[0])).astype(np.float32),
                "bias": np.zeros(shape[1], np.float32),
            }
        return projectors

    def loss_of(
        self,
        projectors: Projectors,
        teacher: Mapping[str, jax.Array],
        student: Mapping[str, jax.Array],
    ) -> jax.Array:
        """Return the sum over pairs of the loss of each example, float32 `[n]`, not weighted.

        Args:
          projectors: of `first_projectors`.
          teacher, student: outputs by path, `[n, H, W, C]` or `[n, C]`.
        """
        losses = []
        for number, pair in enumerate(self.pairs):
            if pair.student not in student:
                raise UserError(
                    f"the student calls its module {pair.student} in eval mode alone: expected one "
                    "in config.distill.features that it calls in training"
                )
            target, ours = _as_maps(teacher[pair.teacher]), _as_maps(student[pair.student])
            sides = [min(pair) for pair in zip(target.shape[1:3], ours.shape[1:3], strict=True)]
            target, ours = (_pooled(each, *sides) for each in (target, ours))
            if self.loss == "mse":
                projector = projectors[str(number)]
                ours = ours @ projector["kernel"] + projector["bias"]
            else:
                target, ours = _attention(target), _attention(ours)
            losses.append(jnp.mean(jnp.square(ours - target), axis=(1, 2, 3)))
        return sum(losses[1:], losses[0])


def build(
    options: ConfigDict,
    teacher: capture.AnyNetwork,
    teacher_variables: Any,
    student: Network,
    image_shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
) -> Features:
    """Return the features of a run. Traces both networks, and computes nothing.

    Args:
      options: `config.distill`.
      teacher: runs in JAX.
      teacher_variables: of it.
      student: the network that is trained.
      image_shape: `(H, W, C)`.
      optimizer: of the projectors.

    Raises:
      UserError: a path is of no module, or the outputs cannot be compared.
    """
    theirs = capture.shapes(teacher, teacher_variables, image_shape)
    ours = capture.shapes(student, student.abstract_variables(image_shape), image_shape)
    pairs = []
    for teacher_path, student_path in options.features:
        one = capture.resolve(teacher_path, theirs, f"the teacher {teacher.arch}")
        two = capture.resolve(student_path, ours, f"the student {student.arch}")
        pair = Pair(one, two, theirs[one], ours[two])
        ranks = len(pair.teacher_shape), len(pair.student_shape)
        if not set(ranks) <= {1, 3}:
            raise UserError(
                f"config.distill.features compares {pair}: expected maps [H, W, C] or vectors [C]"
            )
        if options.feature_loss == "attention" and _smallest_map(pair) == 1:
            raise UserError(
                f"config.distill.features compares {pair}: expected maps of more than one pixel "
                "with config.distill.feature_loss=attention, or mse"
            )
        pairs.append(pair)
    return Features(tuple(pairs), options.feature_loss, options.feature_weight, optimizer)


def _smallest_map(pair: Pair) -> int:
    """Return the number of pixels that a pair is compared on."""
    if len(pair.teacher_shape) != 3 or len(pair.student_shape) != 3:
        return 1
    sides = zip(pair.teacher_shape[:2], pair.student_shape[:2], strict=True)
    return int(np.prod([min(each) for each in sides]))


def _as_maps(outputs: jax.Array) -> jax.Array:
    """Return float32 `[n, H, W, C]`; a vector is a map of one pixel."""
    outputs = outputs.astype(jnp.float32)
    return outputs if outputs.ndim == 4 else outputs[:, None, None, :]


def _pooled(maps: jax.Array, height: int, width: int) -> jax.Array:
    """Return the means of maps `[n, H, W, C]` over `height` by `width` windows."""
    if maps.shape[1:3] == (height, width):
        return maps
    rows, columns = _windows(maps.shape[1], height), _windows(maps.shape[2], width)
    return jnp.einsum("nhwc,ih,jw->nijc", maps, rows, columns)


def _windows(size: int, parts: int) -> np.ndarray:
    """Return the weights `[parts, size]` of means over nearly equal windows.

    As PyTorch's adaptive pooling: where `parts` does not divide `size`, windows overlap.
    """
    weights = np.zeros((parts, size), np.float32)
    for part in range(parts):
        first, end = part * size // parts, -(-(part + 1) * size // parts)
        weights[part, first:end] = 1 / (end - first)
    return weights


def _attention(maps: jax.Array) -> jax.Array:
    """Return the maps of squares `[n, H, W, 1]` of length 1."""
    energy = jnp.sum(jnp.square(maps), axis=-1, keepdims=True)
    length = jnp.sum(jnp.square(energy), axis=(1, 2, 3), keepdims=True)
    return energy * jax.lax.rsqrt(length + _LEAST)
