"""Which form each kind of layer takes on CPU, for each class of processor.

A layer can be computed in several forms that differ in rounding and in speed: as XLA's ordinary
convolution, as matrix products or sums that XLA compiles, or as a pass compiled from C++. The
fastest one depends on the processor. The table is static, so that a resumed run takes the same
forms and gives the same bits. `make guard` compares each chosen form with all others.
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
COMPILED = "compiled"  # a C++ pass of `native`
PATCHES = "patches"  # times the kernel as a matrix
MATMUL = "matrix product"
SHIFTED = "shifted sums"  # of k * k views, in one loop
ALONG_WIDTH = "Winograd along the width"

# The forms of each kind, fastest first. A layer takes the first that can compute it; PLAIN always
# can.
_DEFAULT: Mapping[str, tuple[str, ...]] = {
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
# Exceptions by class of processors. `sse` is x86 without AVX2: there our passes have vectors of
# four floats and no fused multiply-add, but the matrix products inside XLA use AVX.
_EXCEPTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
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
_chosen: dict[str, dict[str, tuple[str, ...]]] = {}  # kind -> form -> the possible forms


def choose(kind: str, possible: Collection[str]) -> str:
    """Return the form that a layer takes on this processor, and record it.

    Args:
      kind: of the layer.
      possible: the forms that can compute it, including `PLAIN`.
    """
    forced_form = _forced.get().get(kind, "")
    order = _EXCEPTIONS.get(processor.current().name, {}).get(kind, _DEFAULT[kind])
    form = next((name for name in (forced_form, *order) if name in possible), PLAIN)
    _chosen.setdefault(kind, {})[form] = tuple(possible)
    return form


def takes_compiled(kind: str, possible: bool) -> bool:
    """Tell whether a layer with a plain form and a compiled pass takes the pass.

    Args:
      kind: of the layer.
      possible: whether the pass can compute it.
    """
    return choose(kind, (PLAIN, COMPILED) if possible else (PLAIN,)) == COMPILED


@contextlib.contextmanager
def forced(forms: Mapping[str, str]) -> Iterator[None]:
    """Context in which layers take these forms, by kind, where possible (tests, benchmarks)."""
    token = _forced.set(forms)
    try:
        yield
    finally:
        _forced.reset(token)


def chosen() -> dict[str, list[str]]:
    """Return the forms that this process has chosen so far, by kind."""
    return {kind: sorted(forms) for kind, forms in sorted(_chosen.items())}


def describe() -> str:
    """Return one line with the class of the processor and the forms chosen so far."""
    kinds = (f"{kind}: {' or '.join(names)}" for kind, names in chosen().items())
    start = f"how layers are computed on this processor ({processor.describe()}): "
    return start + "; ".join(kinds)


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, dict[str, tuple[str, ...]]]]:
    """Context that yields the choices made in it: kind -> form -> the forms that were possible."""
    global _chosen
    before, _chosen = _chosen, {}
    try:
        yield _chosen
    finally:
        _chosen = before
