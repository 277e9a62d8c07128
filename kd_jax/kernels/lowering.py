"""How layers are lowered where they are traced: for the CPU, or plainly; trained, or frozen."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("lowering", default=None)
_frozen: contextvars.ContextVar[bool] = contextvars.ContextVar("frozen", default=False)


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Trace under a given lowering, `"cpu"` or `"plain"`, whatever the backend is.

    For tests, benchmarks, and for counting operations on a program of plain convolutions.
    """
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Trace layers whose gradient is not needed: some have a faster form then."""
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


def is_frozen() -> bool:
    """Return whether layers are traced in a network that is `frozen`."""
    return _frozen.get()


def current() -> str:
    """Return the lowering that layers are traced under now, `"cpu"` or `"plain"`."""
    return _chosen.get() or ("cpu" if jax.default_backend() == "cpu" else "plain")
