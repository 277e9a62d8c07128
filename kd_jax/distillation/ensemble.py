"""One or several teachers: their logits, and the targets that a student matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax.data.sampler import Array
from kd_jax.distillation import losses
from kd_jax.models import Network, Variables
from kd_jax.models.function_network import FunctionNetwork


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Frozen networks and their weights in the target.

    Attributes:
      networks: at least one, each with its own normalisation and dtype; None for one that does
        not run in JAX. Then the logits come from elsewhere and `logits` is not called.
      shares: weights of the networks, positive, with sum 1.
      combine: `probabilities`: one target, the mean of the softened predictions (of the logits, for
        a loss on logits). `losses`: one target for each network, and the mean of their losses. For
        the forward KL both have the same gradient, since the cross-entropy is linear in the target;
        for the squared error too. (big_vision sums the KLs. That equals `losses` with the learning
        rate times the number of teachers; Adam's updates do not depend on such a factor.)
    """

    networks: tuple[Network | FunctionNetwork | None, ...]
    shares: tuple[float, ...]
    combine: str

    def logits(self, variables: Sequence[Variables], pixels: jax.Array) -> jax.Array:
        """Return every network's logits, float32 `[networks, n, classes]`, in eval mode.

        Args:
          variables: of each network.
          pixels: float32 `[n, H, W, C]` in [0, 1].
        """
        pairs = zip(self.networks, variables, strict=True)
        logits = []
        for network, each in pairs:
            assert network is not None
            logits.append(network.logits(each, pixels))
        return jnp.stack(logits)

    def targets(
        self, logits: jax.Array, loss: str, temperature: float
    ) -> tuple[tuple[jax.Array, ...], tuple[float, ...]]:
        """Return the logits `[n, classes]` of each target, and the weight of each in the loss.

        Args:
          logits: `[networks, n, classes]`, from `logits`.
          loss: a choice of `config.distill.loss`; some have no temperature.
          temperature: T > 0.
        """
        if len(self.shares) == 1 or self.combine == "losses":
            return tuple(logits), self.shares
        if loss in losses.ON_LOGITS:
            return (losses.mean_of_logits(logits, jnp.asarray(self.shares)),), (1.0,)
        return (self.mean(logits, 1.0 if loss in losses.ON_CHOICE else temperature),), (1.0,)

    def mean(self, logits: Array, temperature: float = 1.0) -> jax.Array:
        """Return logits `[n, classes]` of the ensemble, see `losses.mean_of_probabilities`."""
        if len(self.shares) == 1:
            return jnp.asarray(logits[0])
        return losses.mean_of_probabilities(
            jnp.asarray(logits), jnp.asarray(self.shares), temperature
        )
