"""One teacher or several, as what the student is asked to match."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax.data.sampler import Array
from kd_jax.distill import losses
from kd_jax.models import Network, Variables


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Frozen networks and their shares.

    Attributes:
      networks: each with its own normalisation and dtype; at least one.
      shares: positive, one a network; they sum to 1.
      combine: `probabilities`, one target, the mean of the softened predictions (of the logits,
        for a loss on logits); or `losses`, a target a network, whose losses are averaged. For the
        forward KL both have one gradient, since the cross-entropy is linear in the target; so they
        have for the squared error. (big_vision sums the KLs: that is `losses` with the learning
        rate times the number of teachers, which Adam does not even see.)
    """

    networks: tuple[Network, ...]
    shares: tuple[float, ...]
    combine: str

    def logits(self, variables: Sequence[Variables], pixels: jax.Array) -> jax.Array:
        """Return every network's logits, float32 `[networks, n, classes]`, in eval mode.

        Args:
          variables: of each network.
          pixels: float32 `[n, H, W, C]` in [0, 1].
        """
        pairs = zip(self.networks, variables, strict=True)
        return jnp.stack([network.logits(own, pixels) for network, own in pairs])

    def targets(
        self, logits: jax.Array, loss: str, temperature: float
    ) -> tuple[tuple[jax.Array, ...], tuple[float, ...]]:
        """Return the logits `[n, classes]` to match, and their shares.

        Args:
          logits: as `logits` gives them.
          loss: a choice of `config.distill.loss`; not all of them have a temperature.
          temperature: T > 0.
        """
        if len(self.networks) == 1 or self.combine == "losses":
            return tuple(logits), self.shares
        if loss in losses.ON_LOGITS:
            return (losses.mean_of_logits(logits, jnp.asarray(self.shares)),), (1.0,)
        return (self.mean(logits, 1.0 if loss in losses.ON_CHOICE else temperature),), (1.0,)

    def mean(self, logits: Array, temperature: float = 1.0) -> jax.Array:
        """Return one `[n, classes]` for all networks, see `losses.mean_of_probabilities`."""
        if len(self.networks) == 1:
            return jnp.asarray(logits[0])
        return losses.mean_of_probabilities(
            jnp.asarray(logits), jnp.asarray(self.shares), temperature
        )
