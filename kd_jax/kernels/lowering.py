"""The context that layers are traced in: lowering for CPU or plain, network trained or frozen.

Layers read it while they are traced, so that modules need no argument for it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("lowering", default=None)
_frozen: contextvars.ContextVar[bool] = contextvars.ContextVar("frozen", default=False)


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Context in which layers have this lowering, `"cpu"` or `"plain"`, on every backend.

    For tests, for benchmarks, and to count the operations of a program of plain convolutions.
    """
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Context for layers whose gradient is not needed: some have a faster form for that."""
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


def is_frozen() -> bool:
    """Tell whether layers are traced inside `frozen`."""
    return _frozen.get()


def current() -> str:
    """Return the lowering that layers are traced with now, `"cpu"` or `"plain"`."""
    return _chosen.get() or ("cpu" if jax.default_backend() == "cpu" else "plain")
