"""How long the first call of a step takes: what earlier ones took on this machine, and this one.

The times are kept beside the compilation cache, which is this machine's. JAX keys its cache by the
traced program, so before tracing nobody can know whether a program is in it: what is said before
the first call is what was seen before, and what is said after it is what happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from kd_jax import config as config_lib
from kd_jax.runtime import atomic_files, processes
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.training import teacher_source
from kd_jax.training.setup import RunSetup
from kd_jax.training.time_left import duration

_MOST_KEPT = 500  # programs whose times are remembered
_NOT_COMPILED = (set(config_lib.RESUME_MUTABLE) | {"seed", "student.init_seed"}) - {
    "log_every_steps"
}
_HIT = "/jax/compilation_cache/cache_hits"
_COMPILED = "/jax/core/compile/backend_compile_duration"


class FirstCall:
    """The first call of a program of the step."""

    def __init__(
        self,
        runs: list[RunSetup],
        steps: int,
        place: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
        *,
        quantized: bool = False,
    ):
        """Begin.

        Args:
          runs: that train in it.
          steps: that it makes.
          place: of the times; None: beside JAX's compilation cache, if there is one.
          clock: gives seconds.
          quantized: whether they are made with int8's numbers, which is another program.
        """
        self._place, self._clock = place or _beside_the_cache(), clock
        self._kind, self._program = _kind_of(runs, steps), _program_of(runs, steps, quantized)
        self.seconds = 0.0
        self.from_cache = False

    def expectation(self) -> str:
        """Return what is about to happen, as far as earlier starts on this machine tell."""
        if self._place is None:
            return "compiling the step (there is no compilation cache: each start does)"
        times = _read(self._place)
        same = times.get(self._program, {})
        alike = [entry for entry in times.values() if entry["kind"] == self._kind]
        loaded = same.get("loaded") or _newest(alike, "loaded")
        compiled = same.get("compiled") or _newest(alike, "compiled")
        if same and loaded:
            return f"loading the step from the compilation cache (about {duration(loaded)})"
        if not compiled:
            return "compiling the step (later starts take it from the cache)"
        if same:
            took = f"compiling took {duration(compiled)}"
            return f"loading the step from the compilation cache ({took})"
        later = f"take {duration(loaded)}" if loaded else "take less"
        return f"compiling the step (about {duration(compiled)}; later starts {later})"

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Context of the call, which is to wait for the devices; says what it was, and keeps it."""
        logger.info("%s", self.expectation())
        began = self._clock()
        with _Compilations() as seen:
            yield
        self.seconds, self.from_cache = self._clock() - began, seen.mostly_loaded
        logger.info(
            "the first call of the step took %s: %s",
            duration(self.seconds),
            "loaded from the compilation cache" if self.from_cache else "compiled",
        )
        if self._place is not None and processes.is_first():
            self._keep()

    def _keep(self) -> None:
        assert self._place is not None
        times = _read(self._place)
        entry = times.pop(self._program, {"kind": self._kind})
        entry["loaded" if self.from_cache else "compiled"] = round(self.seconds, 1)
        kept = [*times.items(), (self._program, entry)][-_MOST_KEPT:]  # the newest is the last
        with contextlib.suppress(OSError, UserError):  # nobody needs it
            atomic_files.write_json(self._place, dict(kept))


class _Compilations:
    """Context that hears from JAX what is compiled in this process, and what comes from its cache.

    Attributes:
      loaded: seconds that compiling took, of what came from the cache, when it was compiled.
      compiled: seconds of what was compiled now.
    """

    def __init__(self) -> None:
        self.loaded = self.compiled = 0.0
        self._is_hit = False

    @property
    def mostly_loaded(self) -> bool:
        return self.loaded > self.compiled

    def __enter__(self) -> _Compilations:
        jax.monitoring.register_event_listener(self._hear)
        jax.monitoring.register_event_duration_secs_listener(self._hear_duration)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(AssertionError):  # somebody has cleared the listeners
            jax.monitoring.unregister_event_listener(self._hear)
            jax.monitoring.unregister_event_duration_listener(self._hear_duration)

    def _hear(self, event: str, **_: Any) -> None:
        self._is_hit = self._is_hit or event == _HIT

    def _hear_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("/compile_time_saved_sec"):
            self.loaded += max(duration_secs, 0.0)
        if event == _COMPILED:  # ends both a compilation and a retrieval
            if not self._is_hit:
                self.compiled += duration_secs
            else:
                self.loaded += duration_secs
            self._is_hit = False


def _beside_the_cache() -> Path | None:
    """Return where the times are kept; None where programs are not."""
    place = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if not place or not enabled or "://" in place:
        return None
    return Path(place).with_name(f"{Path(place).name}-times.json")


def _read(place: Path) -> dict[str, dict[str, Any]]:
    try:
        times = atomic_files.read_json(place)
    except (OSError, UserError):  # damaged: nobody needs it
        return {}
    entries = times.items() if isinstance(times, dict) else ()
    return {name: each for name, each in entries if isinstance(each, dict) and "kind" in each}


def _newest(entries: list[dict[str, Any]], name: str) -> float | None:
    return next((each[name] for each in reversed(entries) if each.get(name)), None)


def _kind_of(runs: list[RunSetup], steps: int) -> str:
    """Return which programs take about as long to compile as this one."""
    first = runs[0]
    teacher = first.teachers.arch if first.teachers else "none"
    students = "+".join(sorted(run.config.student.arch for run in runs))
    device = first.devices[0]
    answers = "live" if teacher_source.is_live(first) else "given"  # to the program of the step
    return (
        f"{students} of {teacher}, {answers}, {'1 step' if steps == 1 else 'several steps'}, "
        f"{len(first.devices)} {device.platform} {device.device_kind}"
    )


def _program_of(runs: list[RunSetup], steps: int, quantized: bool) -> str:
    """Return what tells a program from others, before it is traced."""
    first = runs[0]
    what = {
        "configs": [
            {
                path: value
                for path, value in config_lib.flatten(run.config).items()
                if path not in _NOT_COMPILED
            }
            for run in runs
        ],
        "steps": steps,
        "is_quantized": quantized,
        "kind": _kind_of(runs, steps),
        "processes": processes.count(),
        "data": (len(first.dataset.train), first.dataset.image_shape, first.resident),
        "code": [run.code for run in runs],
        "jax": jax.__version__,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
