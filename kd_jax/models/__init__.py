"""The networks: `models.build(name, ...)` gives a `Network`; `models.zoo` has the names.

Nothing here imports JAX before a name of `models.network` is used, so that commands can read the
zoo at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_jax.models.network import Network as Network
    from kd_jax.models.network import Variables as Variables
    from kd_jax.models.network import abstract_variables as abstract_variables
    from kd_jax.models.network import both_collections as both_collections
    from kd_jax.models.network import build as build
    from kd_jax.models.network import check_norms as check_norms
    from kd_jax.models.network import count_madds as count_madds
    from kd_jax.models.network import count_params as count_params
    from kd_jax.models.network import flat_shapes as flat_shapes

__all__ = [
    "Network",
    "Variables",
    "abstract_variables",
    "both_collections",
    "build",
    "check_norms",
    "count_madds",
    "count_params",
    "flat_shapes",
]


def __getattr__(name: str) -> Any:
    """Return a public name of `models.network`, which is imported at first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kd_jax.models import network

    return getattr(network, name)
