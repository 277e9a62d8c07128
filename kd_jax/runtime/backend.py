"""Whether JAX finds the devices that it is told to use."""

from __future__ import annotations

import os
import sys

_LONGEST = 160
_ADVICE = "(set JAX_PLATFORMS"  # with which JAX ends; ours says more
_NEEDS = {
    "cuda": "a GPU of NVIDIA's and requirements-cuda.txt",
    "tpu": "a TPU and requirements-tpu.txt",
}


def complaint() -> str | None:
    """Return in one sentence that JAX finds no device of the platforms asked for.

    None if it finds one, or if nobody asked. JAX looks for devices here, unless it has before.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    if not asked or "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter for CUDA, and without a word
        return explain(asked, str(error))
    return None


def explain(asked: str, reason: str) -> str:
    """Return the sentence for a value of `JAX_PLATFORMS` and the text of JAX's error."""
    reason = " ".join(reason.partition(_ADVICE)[0].split())
    reason = reason if len(reason) <= _LONGEST else reason[: _LONGEST - 3] + "..."
    needs = "; ".join(f"{name} needs {what}" for name, what in _NEEDS.items())
    return (
        f"JAX_PLATFORMS={asked} asks for devices that JAX does not find here"
        f"{f' ({reason})' if reason else ''}: expected JAX_PLATFORMS=cpu, or unset for what there "
        f"is; {needs}"
    )
