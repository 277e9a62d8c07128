"""Tell whether a user's code is the one of before: a digest of its source."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from kd_jax.runtime.errors import UserError


def of_function(function: Callable[..., Any]) -> str:
    """Return the hex sha256 of a function: its source, its defaults and what it closes over."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # made at a prompt, or no plain function
        code = getattr(function, "__code__", None)
        text = repr((code.co_code, code.co_consts)) if code else type(function).__qualname__
    defaults = getattr(function, "__defaults__", None)
    cells = getattr(function, "__closure__", None) or ()
    parts = [text, repr(defaults), *(repr(cell.cell_contents) for cell in cells)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def count_arguments(function: Callable[..., Any]) -> int:
    """Return with how many arguments a loss is called: 2, or 3 with the labels.

    Raises:
      UserError: it takes another number.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise UserError(
            f"loss= is {function!r}: expected a function of (teacher_logits, student_logits)"
        ) from None
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    raise UserError(
        f"loss= takes {signature}: expected (teacher_logits, student_logits), or "
        "(teacher_logits, student_logits, labels)"
    )
