"""Read a traced program (a jaxpr): all its equations, and the multiply-adds of one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def equations(jaxpr: Any) -> Iterator[tuple[Any, int]]:
    """Yield every equation of a jaxpr and of the programs inside it, and how often it runs.

    The number of runs is the product of the lengths of the scans around an equation. The body of a
    `while` loop counts once, because its number of iterations is not known. The branches of a
    `cond` are left out.
    """
    for equation in jaxpr.eqns:
        yield equation, 1
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                for inner_equation, repeats in equations(inner):
                    yield inner_equation, length * repeats


def multiply_adds(equation: Any) -> int:
    """Return the multiply-adds of a convolution or matrix product; 0 for any other equation.

    Padding counts as if it were pixels, as is usual in published tables.
    """
    name = equation.primitive.name
    if name not in ("conv_general_dilated", "dot_general"):
        return 0
    left, right = (value.aval for value in equation.invars[:2])
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(left.shape[axis] for axis in contracted)
    else:  # every axis of the kernel but that of the output's channels is summed over
        channels_out = equation.params["dimension_numbers"].rhs_spec[0]
        depth = right.size // right.shape[channels_out]
    return equation.outvars[0].aval.size * depth
