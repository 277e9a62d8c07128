"""Which form each kind of layer takes on CPU, for each class of processor.

A layer can be computed in several ways that differ in rounding and in speed: as XLA's ordinary
convolution, as matrix products or sums that XLA makes of it, or in a pass compiled from C++. Which
one is fastest depends on the processor. The table is static: a run that goes on takes the same
forms, and with them the same bits. `make guard` compares what is chosen with every other form.
"""

from __future__ import annotations

import contextlib
import contextvars
import types
from collections.abc import Collection, Iterator, Mapping

from kd_jax.runtime import processor

# Kinds of layers.
FROZEN_STEM = "first convolution, frozen"
FROZEN_3X3 = "3x3 convolution, frozen"
FROZEN_3X3_NARROW = "3x3 convolution of few channels, frozen"
FROZEN_BLOCK = "inverted residual, frozen"
STEM = "first convolution"
POINTWISE = "1x1 convolution"
DEPTHWISE = "depthwise convolution"
SMALL_MAP = "convolution of a map smaller than its kernel"
BATCH_NORM = "batch norm"

# Forms.
PLAIN = "plain"  # XLA's or Flax's own
COMPILED = "compiled"  # a pass of `native`
PATCHES = "patches"  # times a matrix
MATMUL = "matrix product"
SHIFTED = "shifted sums"  # k * k of them, in one loop
ALONG_WIDTH = "Winograd along the width"

# The first that can be taken, from the fastest on; PLAIN always can.
_USUAL: Mapping[str, tuple[str, ...]] = {
    FROZEN_STEM: (COMPILED, PATCHES),
    FROZEN_3X3: (COMPILED, ALONG_WIDTH),
    FROZEN_3X3_NARROW: (COMPILED, PLAIN, ALONG_WIDTH),
    FROZEN_BLOCK: (COMPILED,),
    STEM: (PATCHES,),
    POINTWISE: (MATMUL,),
    DEPTHWISE: (COMPILED, SHIFTED),
    SMALL_MAP: (PATCHES,),
    BATCH_NORM: (COMPILED,),
}
# What a class of processors does otherwise. `sse` is x86 without AVX2: our passes have vectors of
# four and no fused multiply-add there, while the matrix products inside XLA have AVX.
_OTHERWISE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sse": {
        FROZEN_STEM: (PATCHES,),
        FROZEN_3X3: (ALONG_WIDTH, COMPILED),
        FROZEN_3X3_NARROW: (COMPILED, ALONG_WIDTH),
        FROZEN_BLOCK: (PLAIN,),
    },
}

_NONE_FORCED: Mapping[str, str] = types.MappingProxyType({})
_forced: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "forced", default=_NONE_FORCED
)
_seen: dict[str, dict[str, tuple[str, ...]]] = {}


def choose(kind: str, possible: Collection[str]) -> str:
    """Return the form that a layer takes on this processor.

    Args:
      kind: of the layer.
      possible: the forms that can compute it, `PLAIN` among them.
    """
    wanted = _forced.get().get(kind, "")
    order = _OTHERWISE.get(processor.current().name, {}).get(kind, _USUAL[kind])
    form = next((name for name in (wanted, *order) if name in possible), PLAIN)
    _seen.setdefault(kind, {})[form] = tuple(possible)
    return form


def compiles(kind: str, can: bool) -> bool:
    """Tell whether a layer that has the plain form and a compiled pass takes the pass.

    Args:
      kind: of the layer.
      can: whether the pass can compute it.
    """
    return choose(kind, (PLAIN, COMPILED) if can else (PLAIN,)) == COMPILED


@contextlib.contextmanager
def forced(forms: Mapping[str, str]) -> Iterator[None]:
    """Trace with given forms, kind by kind, where a layer can take them (for tests, benchmarks)."""
    token = _forced.set(forms)
    try:
        yield
    finally:
        _forced.reset(token)


def taken() -> dict[str, list[str]]:
    """Return the forms that this process has chosen so far, kind by kind."""
    return {kind: sorted(forms) for kind, forms in sorted(_seen.items())}


def describe() -> str:
    """Return the class of the processor and the forms that were chosen so far, for people."""
    kinds = (f"{kind}: {' or '.join(names)}" for kind, names in taken().items())
    return f"processor class {processor.describe()}; " + "; ".join(kinds)


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, dict[str, tuple[str, ...]]]]:
    """Yield what is chosen inside: kind to form to the forms that were possible there."""
    global _seen
    before, _seen = _seen, {}
    try:
        yield _seen
    finally:
        _seen = before
