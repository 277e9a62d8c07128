"""Checkpoints of a run, through Orbax: asynchronous, whole or absent, newest and best kept.

The state is copied to host memory before it is handed over. The next step donates the device's
buffers, and on CPU a device array and its host view are the same memory: without the copy a write
in the background could hold later numbers. The copy also makes one code path of one process and
many, since a replicated state is the same in each.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from kd_jax.console import logger

BEST_METRIC = "val_top1"


def _score(metrics: dict[str, float]) -> float:
    """Rank a checkpoint; one between two validations stands behind all that were measured."""
    return metrics.get(BEST_METRIC, -math.inf)


class Checkpoints:
    """The checkpoints of one run, in its `checkpoints/` directory."""

    def __init__(self, directory: Path, keep: int, *, read_only: bool = False):
        """Open, and clean up what a killed run left unfinished.

        Args:
          directory: absolute; made when missing.
          keep: how many of the newest stay; the best on validation stays besides.
          read_only: look, but neither write nor clean up.
        """
        newest = preservation_policy.LatestN(keep)
        best = preservation_policy.BestN(get_metric_fn=_score, n=1)
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy([newest, best]),
                best_fn=_score,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                enable_async_checkpointing=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Return the newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Return the step of the best checkpoint on validation, or None."""
        step = self._manager.best_step()
        if step is None or BEST_METRIC not in (self._manager.metrics(step) or {}):
            return None
        return step

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint; training goes on meanwhile.

        Args:
          step: number of updates made.
          state: a tree of arrays, replicated over devices.
          metrics: of the validation at this step, where there was one.
        """
        host_state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        self._manager.save(
            step, args=ocp.args.StandardSave(host_state), metrics=metrics or {}, force=True
        )

    def restore(self, template: Any, step: int) -> Any:
        """Return the state at `step`, in host memory.

        Args:
          template: a tree of arrays of the same structure, shapes and dtypes.
          step: one that `latest_step` or `best_step` returned.
        """
        abstract = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        logger.info("restored the checkpoint of step %d", step)
        return state

    def close(self) -> None:
        """Wait for what is being written, and let go of the directory."""
        self._manager.wait_until_finished()
        self._manager.close()
