"""Which normalisation is a teacher's? Try the usual ones, and name one only where it is clear.

A teacher under a wrong normalisation, or with red and blue exchanged, still answers, only worse:
the commonest silent fault of distillation. Under each candidate the teacher is asked about the same
images with labels, so the comparison is paired.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.data import catalog
from kd_jax.distillation import augment
from kd_jax.models.function_network import FunctionNetwork
from kd_jax.runtime.console import logger
from kd_jax.teachers.teacher import Teacher, combine

_MOST_IMAGES = 2000
_LEAST_IMAGES = 100
_BATCH = 250
_STANDARD_ERRORS = 3.0


class Candidate(NamedTuple):
    """A normalisation and an order of channels, and how a teacher does under them.

    Attributes:
      normalisation: `now`, or a name in `catalog.NORMALISATIONS`.
      channels: `rgb` or `bgr`.
      top1: percent.
      is_better: than what is used now, by three standard errors of the paired difference or more.
    """

    normalisation: str
    channels: str
    top1: float
    is_better: bool


def search(member: Teacher, images: np.ndarray, labels: np.ndarray) -> list[Candidate]:
    """Return what is used now, then every candidate, the best first.

    Args:
      member: the teacher.
      images: uint8 `[N, H, W, 3]`; the first 2,000 are looked at.
      labels: int `[N]`.
    """
    images, labels = images[:_MOST_IMAGES], labels[:_MOST_IMAGES]
    own = _channels_of(member)
    ask = _make_ask(member, images)
    correct_now = ask(member.card.mean, member.card.std, False) == labels
    candidates = []
    for name, (mean, std) in catalog.NORMALISATIONS.items():
        for channels in ("rgb", "bgr") if member.foreign else (own,):  # the zoo has no other order
            if (mean, std, channels) == (member.card.mean, member.card.std, own):
                continue
            correct = ask(mean, std, channels != own) == labels
            candidates.append(
                Candidate(name, channels, _percent(correct), _is_better(correct, correct_now))
            )
    candidates.sort(key=lambda candidate: -candidate.top1)
    return [Candidate("now", own, _percent(correct_now), False), *candidates]


def advise(member: Teacher, images: np.ndarray, labels: np.ndarray) -> tuple[str, list[Candidate]]:
    """Search, log every candidate, and return what to do: a sentence, empty if none is better.

    Arguments as `search`; of fewer than 100 images nothing can be told, and none is tried.
    """
    if len(labels) < _LEAST_IMAGES:
        return "", []
    candidates = search(member, images, labels)
    words = ", ".join(
        f"{each.top1:.2f} under {each.normalisation} {each.channels}" for each in candidates
    )
    count = min(len(labels), _MOST_IMAGES)
    logger.info("the teacher %s on %d test images: %s", member.card.arch, count, words)
    now, best = candidates[0], candidates[1]
    if not best.is_better:
        return "", candidates
    options = f"config.teacher.normalisation={best.normalisation}"
    if best.channels != now.channels:
        options += f" and config.teacher.channels={best.channels}"
    return (
        f"the teacher {member.card.arch} reaches {now.top1:.2f} % of {count} test images as its "
        f"pixels are normalised now, and {best.top1:.2f} % under {best.normalisation}, channels "
        f"{best.channels}: say {options}"
    ), candidates


def _make_ask(member: Teacher, images: np.ndarray) -> Any:
    """Return `(mean, std, exchanges channels) -> classes [N]`; compiled once for all candidates."""
    teachers = combine([member], None, "probabilities")
    own_mean, own_std = jnp.asarray(member.card.mean), jnp.asarray(member.card.std)
    variables = jax.device_put(teachers.variables)

    @jax.jit
    def question(
        variables: Any, images: jax.Array, mean: jax.Array, std: jax.Array, exchanges: jax.Array
    ) -> Any:
        wanted = (augment.to_pixels(images) - mean) / std
        wanted = jnp.where(exchanges, wanted[..., ::-1], wanted)
        # Pixels that the network's own normalisation turns into what is wanted.
        return teachers.ask(variables, wanted * own_std + own_mean)

    def ask(mean: tuple[float, ...], std: tuple[float, ...], exchanges: bool) -> np.ndarray:
        classes = []
        for first in range(0, len(images), _BATCH):
            index = np.minimum(np.arange(first, first + _BATCH), len(images) - 1)
            parts = question(
                variables, images[index], jnp.asarray(mean), jnp.asarray(std), exchanges
            )
            logits = teachers.answer([np.asarray(part) for part in parts])[:, 0]
            classes.append(logits.argmax(axis=-1))
        return np.concatenate(classes)[: len(images)]

    return ask


def _channels_of(member: Teacher) -> str:
    if member.host is not None:
        return member.host.preprocessing.channels
    if isinstance(member.network, FunctionNetwork):
        return member.network.preprocessing.channels
    return "rgb"


def _percent(correct: np.ndarray) -> float:
    return round(100.0 * float(correct.mean()), 2)


def _is_better(correct: np.ndarray, correct_now: np.ndarray) -> bool:
    gain = correct.astype(float) - correct_now
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
    return float(gain.mean()) > _STANDARD_ERRORS * error
