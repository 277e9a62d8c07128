"""Several processes that train one run together: how they find each other, agree, and end.

JAX's own multi-controller runtime: every process runs the same program, holds the whole data set
and computes its share of each batch. Only the first one touches the workdir, so the others need not
even see it; what it reads, and what goes wrong with it, it tells the others. With one process all
of this does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from kd_jax.runtime import backend, console
from kd_jax.runtime.errors import EXIT_USER_ERROR, UserError, in_short
from kd_jax.runtime.signals import StoppedError
from kd_jax.runtime.supervise import EXIT_PEER_GONE, GONE

# A silent process counts as dead after this. Where a collective notices earlier, as gloo's do when
# a connection breaks, nobody waits so long.
_HEARTBEAT_SECONDS = 30
_LAST_WORD_SECONDS = 2.0


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Meet the other processes of this run; to be called before JAX looks for devices.

    Args:
      coordinator: `HOST:PORT` of the first process; empty: what Slurm, Open MPI, Kubernetes or
        Cloud TPU say, or `JAX_COORDINATOR_ADDRESS`.
      processes: how many there are; None: as above.
      process: this one's number, from 0; None: as above.

    Raises:
      UserError: they cannot be found.
    """
    # Signals are ours: the first one that any process gets is told to all in the next step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator or None,
            num_processes=processes,
            process_id=process,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except Exception as error:  # each environment's detection raises its own kinds
        raise UserError(
            f"the processes of this run cannot meet ({in_short(error)}): expected to be started "
            "by Slurm, Open MPI, Kubernetes or Cloud TPU, or --coordinator=HOST:PORT, --processes "
            "and --process to be right in each"
        ) from error
    if not is_first():
        console.only_warnings()


def count() -> int:
    """Return how many processes train together; JAX's devices are not looked for if it is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Tell whether this process is the one that reads and writes the workdir."""
    return count() == 1 or jax.process_index() == 0


def on_first(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in the first process, in all of them.

    Args:
      work: called in the first process only; returns what JSON can hold.

    Raises:
      UserError: `work` raised it; in all processes.
    """
    if count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": work()}
        except UserError as error:
            outcome = {"error": str(error)}
    text = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    size = int(tree_from_first(np.int32(len(text))))
    buffer = text if is_first() else np.zeros(size, np.uint8)
    outcome = json.loads(tree_from_first(buffer).tobytes())
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def tree_from_first(tree: Any) -> Any:
    """Return the first process's tree of host arrays in all; the others give one of its shapes."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Leave at once when something fails in here, so that no process waits for one that is gone.

    Python's usual way out would wait for the others, who wait for this one.
    """
    if count() == 1:
        yield
        return
    try:
        yield
    except UserError as error:
        if is_first():
            time.sleep(_LAST_WORD_SECONDS)  # the others need this process to hear of it
        _leave(f"error: {error}", EXIT_USER_ERROR)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            _leave(
                f"error: a device has too little memory ({in_short(error)}): take a smaller "
                "config.batch_size, a larger config.accumulate, or more devices",
                EXIT_USER_ERROR,
            )
        _leave(f"{GONE} ({in_short(error)})", EXIT_PEER_GONE)
    except StoppedError:
        raise
    except Exception:  # a bug of ours, with its traceback
        if complaint := backend.complaint():
            _leave(f"error: {complaint}", EXIT_USER_ERROR)
        traceback.print_exc()
        _leave("", 1)


def _leave(message: str, code: int) -> None:
    sys.stdout.flush()
    if message:
        print(" ".join(message.split()), file=sys.stderr, flush=True)
    os._exit(code)
