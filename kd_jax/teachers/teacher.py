"""The teachers of a run: networks that answer in the step, on the host, or from a recording."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kd_jax import models
from kd_jax.distillation.ensemble import Ensemble
from kd_jax.models.function_network import FunctionNetwork
from kd_jax.models.preprocessing import Preprocessing
from kd_jax.runtime.errors import UserError, in_short
from kd_jax.weights import saved_network

_LONGEST = 300  # characters of another error that are shown


@dataclasses.dataclass(frozen=True)
class HostNetwork:
    """A network that does not run in JAX.

    Attributes:
      name: for error sentences.
      call: `call(images) -> logits [n, outputs]`, NumPy arrays; `images` are what `preprocessing`
        returns, float32 `[n, size, size, C]`.
      preprocessing: of the pixels; computed by JAX, before `call`.
      outputs: which outputs are the classes of the data set, in the order of its labels; None: all.
    """

    name: str
    call: Callable[[np.ndarray], Any]
    preprocessing: Preprocessing
    outputs: tuple[int, ...] | None = None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits `[n, classes]`.

        Raises:
          UserError: the network fails, or what it returns are no logits.
        """
        try:
            logits = np.asarray(self.call(images))
        except UserError:
            raise
        except Exception as error:  # whatever another library's network raises
            text = in_short(error, _LONGEST)
            raise UserError(
                f"the teacher {self.name} fails with {type(error).__name__}: {text}; when it is "
                "mended the same command resumes"
            ) from error
        if logits.ndim != 2 or len(logits) != len(images) or logits.dtype.kind != "f":
            raise UserError(
                f"the teacher {self.name} returns {logits.dtype} {logits.shape} for "
                f"{len(images)} images: expected logits, floats of shape ({len(images)}, classes)"
            )
        logits = logits.astype(np.float32, copy=False)
        if self.outputs is not None:
            logits = logits[:, np.asarray(self.outputs)]
        if not np.isfinite(logits).all():
            count = int((~np.isfinite(logits).all(axis=1)).sum())
            raise UserError(
                f"the teacher {self.name} returns logits that are not finite for {count} of "
                f"{len(images)} images: expected numbers; look at its weights and its normalisation"
            )
        return logits


@dataclasses.dataclass(frozen=True)
class ForeignNetwork:
    """A network from outside the zoo, before it is fitted to a data set.

    Attributes:
      name: of its kind and its maker, such as `torch:package.module:factory`.
      source: file of its weights, or where else it comes from.
      digest: hex sha256 of its arrays and its code.
      call: see `HostNetwork.call`; None for one that runs in JAX.
      apply: see `FunctionNetwork.apply`; None for one that runs on the host.
      variables: of `apply`.
      mean, std: of pixels in [0, 1], in the order red, green, blue; None if it does not say.
      channels: `rgb` or `bgr`.
      input_size: height and width of its images; 0: any.
      class_names: of its outputs; None if it does not say.
      claimed_top1: in percent, on the test split of the data; None without a claim.
    """

    name: str
    source: str
    digest: str
    call: Callable[[np.ndarray], Any] | None = None
    apply: Callable[[Any, jax.Array], jax.Array] | None = None
    variables: Any = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: str = "rgb"
    input_size: int = 0
    class_names: tuple[str, ...] | None = None
    claimed_top1: float | None = None


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network.

    Attributes:
      card: what is known of it.
      network: what answers in the step; None where something else does.
      variables: of `network`.
      host: what answers on the host; None where something else does.
      foreign: what a network from outside the zoo was made of; None for those of the zoo.
    """

    card: saved_network.ModelCard
    network: models.Network | FunctionNetwork | None
    variables: Any = None
    host: HostNetwork | None = None
    foreign: ForeignNetwork | None = None


@dataclasses.dataclass(frozen=True)
class Teachers:
    """All teachers of a run, and how their outputs are combined."""

    members: tuple[Teacher, ...]
    ensemble: Ensemble

    @property
    def variables(self) -> tuple[Any, ...]:
        """The variables of each member; None for those that do not run in JAX."""
        return tuple(member.variables for member in self.members)

    @property
    def arch(self) -> str:
        """The members' architectures, joined by `+`."""
        return "+".join(member.card.arch for member in self.members)

    @property
    def sha256(self) -> str:
        """Digest of the weights; of several members, the digest of their digests."""
        hashes = [member.card.sha256 for member in self.members]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )

    @property
    def identity(self) -> str:
        """Digest of everything that the logits depend on: arrays, architectures, normalisations."""
        cards = [member.card for member in self.members]
        parts = [(card.arrays_sha256, card.arch, card.mean, card.std) for card in cards]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def is_live(self) -> bool:
        """Whether all of them can answer in the step."""
        return all(member.network is not None for member in self.members)

    @property
    def is_recorded(self) -> bool:
        """Whether there is nobody to ask, and only a recording of their answers."""
        return any(member.network is None and member.host is None for member in self.members)

    def ask(self, variables: Sequence[Any], pixels: jax.Array) -> tuple[jax.Array, ...]:
        """Return what `answer` needs: of each member its logits, or its input on the host.

        Runs on a device.

        Args:
          variables: of each member.
          pixels: float32 `[n, H, W, C]` in [0, 1].
        """
        parts = []
        for member, tree in zip(self.members, variables, strict=True):
            if member.network is not None:
                parts.append(member.network.logits(tree, pixels))
            else:
                assert member.host is not None
                parts.append(member.host.preprocessing(pixels))
        return tuple(parts)

    def answer(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 logits `[n, teachers, classes]`.

        Args:
          parts: of each member, what `ask` returned for it, in host memory.

        Raises:
          UserError: see `HostNetwork.logits`.
        """
        logits = [
            part if member.host is None else member.host.logits(np.asarray(part))
            for member, part in zip(self.members, parts, strict=True)
        ]
        return np.stack(logits, axis=1)


def combine(members: Sequence[Teacher], shares: Sequence[float] | None, how: str) -> Teachers:
    """Return the teachers of a run.

    Args:
      members: at least one.
      shares: weight of each in the target; empty or None: equal.
      how: `config.teacher.combine`.
    """
    weights = shares or (1,) * len(members)
    ensemble = Ensemble(
        networks=tuple(member.network for member in members),
        shares=tuple(weight / sum(weights) for weight in weights),
        combine=how,
    )
    return Teachers(tuple(members), ensemble)
