"""Function-matching knowledge distillation of image classifiers in JAX."""

__version__ = "0.1.0"
