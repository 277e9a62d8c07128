"""Function-matching knowledge distillation of image classifiers in JAX.

`kd_jax.distill` trains a student under a teacher, see `kd_jax.api`. The names in `__all__` are the
public surface, and stay.
"""

from typing import TYPE_CHECKING, Any

from kd_jax.runtime import processor as _processor
from kd_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from kd_jax.api.distill import distill as distill
    from kd_jax.api.run import Run as Run
    from kd_jax.api.run import load as load
    from kd_jax.api.teachers import teacher as teacher
    from kd_jax.training.callbacks import Callback as Callback
    from kd_jax.training.callbacks import MetricSink as MetricSink
    from kd_jax.training.callbacks import StopTraining as StopTraining

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "MetricSink",
    "Run",
    "StopTraining",
    "UserError",
    "__version__",
    "distill",
    "load",
    "teacher",
]

_MODULES = {
    "Callback": "kd_jax.training.callbacks",
    "MetricSink": "kd_jax.training.callbacks",
    "Run": "kd_jax.api.run",
    "StopTraining": "kd_jax.training.callbacks",
    "distill": "kd_jax.api.distill",
    "load": "kd_jax.api.run",
    "teacher": "kd_jax.api.teachers",
}

_processor.apply_limit()  # must run before JAX is imported; the package itself imports none


def __getattr__(name: str) -> Any:
    """Return a public name, whose module is imported at first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
