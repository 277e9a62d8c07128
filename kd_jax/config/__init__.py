"""The config of an experiment: every field, its default and its rules.

`python -m kd_jax.config` prints the fields. Imports no JAX.
"""

from kd_jax.config.schema import (
    COHORT_MUTABLE,
    MAY_BE_NONE,
    RESUME_MUTABLE,
    choices,
    default_config,
    differences,
    flatten,
    follow,
    from_json,
    get_field,
    in_groups,
    reads_labels,
    to_json,
    unread,
)

__all__ = [
    "COHORT_MUTABLE",
    "MAY_BE_NONE",
    "RESUME_MUTABLE",
    "choices",
    "default_config",
    "differences",
    "flatten",
    "follow",
    "from_json",
    "get_field",
    "in_groups",
    "reads_labels",
    "to_json",
    "unread",
]
