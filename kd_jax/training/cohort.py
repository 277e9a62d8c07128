"""Which experiments may train as one cohort: one teacher pass and one view for all of them.

The teacher is most of the cost of distillation. Runs that look at the same batches under the same
teacher can share its pass: `train.train_together` trains them, each in its own workdir, and each
gets the result that it would have alone, to float tolerance. The fields that members may differ in
are `config.COHORT_MUTABLE`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.runtime.errors import UserError


def key(config: ConfigDict) -> str | None:
    """Return what must be equal for two experiments to train together; None: it trains alone.

    Experiments train alone if they may stop early, or if they ask no teacher.
    """
    if config.patience or config.distill.label_weight == 1 or not config.teacher.weights:
        return None
    return json.dumps(_shared(config))


def check(configs: Sequence[ConfigDict]) -> None:
    """Raise `UserError` unless these experiments may train together; one always may."""
    first = _shared(configs[0])
    for config in configs[1:]:
        other = _shared(config)
        different = [name for name in first if first[name] != other[name]]
        if different or key(config) is None:
            name = different[0] if different else "patience or distill.label_weight"
            raise UserError(
                f"these runs cannot train together: config.{name} is {first.get(name)!r} in one "
                f"and {other.get(name)!r} in another; expected runs that differ in "
                f"{', '.join(config_lib.in_groups(config_lib.COHORT_MUTABLE))} alone"
            )


def _shared(config: ConfigDict) -> dict[str, object]:
    """Return the fields that members share, by path."""
    return {
        path: value
        for path, value in config_lib.flatten(config).items()
        if path not in config_lib.COHORT_MUTABLE
    }
