"""Function-matching knowledge distillation of image classifiers in JAX."""

__version__ = "0.1.0"

from kd_jax.runtime import processor as _processor

_processor.apply_limit()  # must run before JAX is imported; the package itself imports none
