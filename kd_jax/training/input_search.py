"""What is a teacher's input? Try the usual ones, and name one only where it is clear.

A teacher under a wrong normalisation, with red and blue exchanged, or with images cut otherwise
than in its training, still answers, only worse: the commonest silent fault of distillation. Under
each candidate the teacher is asked about the same images with labels, so the comparison is paired.

Normalisations and orders of channels are tried in all combinations. Ways to its input size, which
only a teacher with a size of its own has, are tried under what is used now and under the best of
these, so that the search stays quick.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.data import catalog
from kd_jax.distillation import augment
from kd_jax.models.function_network import FunctionNetwork
from kd_jax.models.preprocessing import Preprocessing
from kd_jax.runtime.console import logger
from kd_jax.teachers.teacher import Teacher, combine

_MOST_IMAGES = 2000
_LEAST_IMAGES = 100
_BATCH = 250
_STANDARD_ERRORS = 3.0
# Ways to the input size (`Preprocessing.crop_fraction`): the whole view, its centre with the short
# side at the full size (another image only where it is no square), and the usual part of it.
_CROPS = (0.0, 1.0, 0.875)

_Ask = Callable[[tuple[float, ...], tuple[float, ...], bool], np.ndarray]


class Candidate(NamedTuple):
    """A normalisation, an order of channels and a crop, and how a teacher does under them.

    Attributes:
      normalisation: `now`, or a name in `catalog.NORMALISATIONS`.
      channels: `rgb` or `bgr`.
      top1: percent.
      is_better: than what is used now, by three standard errors of the paired difference or more.
      crop_fraction: `config.teacher.crop_fraction`.
    """

    normalisation: str
    channels: str
    top1: float
    is_better: bool
    crop_fraction: float = 0.0


def search(member: Teacher, images: np.ndarray, labels: np.ndarray) -> list[Candidate]:
    """Return what is used now, then every candidate, the best first.

    Args:
      member: the teacher.
      images: uint8 `[N, H, W, 3]`; the first 2,000 are looked at.
      labels: int `[N]`.
    """
    images, labels = images[:_MOST_IMAGES], labels[:_MOST_IMAGES]
    own, crop = _channels_of(member), _crop_of(member)
    ask = _make_ask(member, images)
    correct_now = ask(member.card.mean, member.card.std, False) == labels

    def candidate(name: str, channels: str, ask: _Ask, crop: float) -> Candidate:
        mean, std = catalog.NORMALISATIONS.get(name, (member.card.mean, member.card.std))
        correct = ask(mean, std, channels != own) == labels
        better = _is_better(correct, correct_now)
        return Candidate(name, channels, _percent(correct), better, crop)

    candidates = [
        candidate(name, channels, ask, crop)
        for name, (mean, std) in catalog.NORMALISATIONS.items()
        for channels in (("rgb", "bgr") if member.foreign else (own,))  # the zoo has no other order
        if (mean, std, channels) != (member.card.mean, member.card.std, own)
    ]
    best = max(candidates, key=lambda each: each.top1)
    for other, other_crop in _cropped_otherwise(member, images.shape[1:3]):
        ask = _make_ask(other, images)
        candidates += [candidate("now", own, ask, other_crop),
                       candidate(best.normalisation, best.channels, ask, other_crop)]  # fmt: skip
    candidates.sort(key=lambda candidate: -candidate.top1)
    return [Candidate("now", own, _percent(correct_now), False, crop), *candidates]


def advise(member: Teacher, images: np.ndarray, labels: np.ndarray) -> tuple[str, list[Candidate]]:
    """Search, log every candidate, and return what to do: a sentence, empty if none is better.

    Arguments as `search`; of fewer than 100 images nothing can be told, and none is tried.
    """
    if len(labels) < _LEAST_IMAGES:
        return "", []
    candidates = search(member, images, labels)
    words = ", ".join(
        f"{each.top1:.2f} under {each.normalisation} {each.channels}"
        + (f" crop {each.crop_fraction:g}" if each.crop_fraction else "")
        for each in candidates
    )
    count = min(len(labels), _MOST_IMAGES)
    logger.info("the teacher %s on %d test images: %s", member.card.arch, count, words)
    now, best = candidates[0], candidates[1]
    if not best.is_better:
        return "", candidates
    options = []
    if best.normalisation != "now":
        options.append(f"config.teacher.normalisation={best.normalisation}")
    if best.channels != now.channels:
        options.append(f"config.teacher.channels={best.channels}")
    if best.crop_fraction != now.crop_fraction:
        options.append(f"config.teacher.crop_fraction={best.crop_fraction:g}")
    return (
        f"the teacher {member.card.arch} reaches {now.top1:.2f} % of {count} test images as its "
        f"input is made now, and {best.top1:.2f} % under the normalisation {best.normalisation}, "
        f"channels {best.channels}, crop {best.crop_fraction:g}: say {' and '.join(options)}"
    ), candidates


def _make_ask(member: Teacher, images: np.ndarray) -> _Ask:
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


def _preprocessing_of(member: Teacher) -> Preprocessing | None:
    """Return what a network from outside the zoo does to the view; None for those of the zoo."""
    if member.host is not None:
        return member.host.preprocessing
    return member.network.preprocessing if isinstance(member.network, FunctionNetwork) else None


def _channels_of(member: Teacher) -> str:
    preprocessing = _preprocessing_of(member)
    return preprocessing.channels if preprocessing else "rgb"


def _crop_of(member: Teacher) -> float:
    preprocessing = _preprocessing_of(member)
    return preprocessing.crop_fraction if preprocessing else 0.0


def _cropped_otherwise(member: Teacher, sides: tuple[int, ...]) -> Iterator[tuple[Teacher, float]]:
    """Give a teacher with every other way from images of these sides to its input size."""
    preprocessing = _preprocessing_of(member)
    if preprocessing is None or set(sides) <= {preprocessing.input_size or sides[0]}:
        return
    for crop in _CROPS:
        is_same = crop == 1.0 and len(set(sides)) == 1  # as 0, of a square
        if crop == preprocessing.crop_fraction or is_same:
            continue
        other = dataclasses.replace(preprocessing, crop_fraction=crop)
        if member.host is not None:
            host = dataclasses.replace(member.host, preprocessing=other)
            yield dataclasses.replace(member, host=host), crop
        else:
            assert isinstance(member.network, FunctionNetwork)
            network = dataclasses.replace(member.network, preprocessing=other)
            yield dataclasses.replace(member, network=network), crop


def _percent(correct: np.ndarray) -> float:
    return round(100.0 * float(correct.mean()), 2)


def _is_better(correct: np.ndarray, correct_now: np.ndarray) -> bool:
    gain = correct.astype(float) - correct_now
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
    return float(gain.mean()) > _STANDARD_ERRORS * error
