"""The experiment's config: every field with its default, and what may be said about it."""

from kd_jax.config.schema import (
    MAY_BE_NONE,
    RESUME_MUTABLE,
    default_config,
    differences,
    flatten,
    from_json,
    get_field,
    to_json,
)

__all__ = [
    "MAY_BE_NONE",
    "RESUME_MUTABLE",
    "default_config",
    "differences",
    "flatten",
    "from_json",
    "get_field",
    "to_json",
]
