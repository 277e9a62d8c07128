"""Checkpoints of a run, through Orbax: asynchronous, whole or absent, newest and best kept.

The state is copied to host memory before it is handed over. The next step donates the device's
buffers, and on CPU a device array and its host view are the same memory: without the copy a write
in the background could hold later numbers. The copy also makes one code path of one process and
many, since a replicated state is the same in each.

A digest of the state lies in the checkpoint beside it, and is compared after every restore. So it
does not matter which of Orbax's files was cut short, changed or lost: either the very same state
comes back, or the checkpoint counts as damaged. The version of the trajectory lies there too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, in_short
from kd_jax.training import damaged_checkpoints, trajectory

BEST_METRIC = "val_top1"
_VERSION_KEY = "trajectory"


class DamagedError(Exception):
    """A checkpoint does not give back the state that was saved in it."""


def _score(metrics: dict[str, float] | None) -> float:
    """Rank a checkpoint; one between two validations stands behind all that were measured.

    As does one whose measures are not finite: its accuracy would be of logits that are not numbers.
    """
    values = metrics or {}
    if not all(math.isfinite(value) for value in values.values()):
        return -math.inf
    return values.get(BEST_METRIC, -math.inf)


class OtherVersionError(DamagedError):
    """A checkpoint is of another version of the trajectory, or its version is damaged."""

    def __init__(self, version: int):
        super().__init__(f"it is of version {version} of the trajectory")
        self.version = version


def _digest(state: Any, version: int) -> np.ndarray:
    """Return the sha256 of the version, and of every leaf's path, type and bytes, uint8 `[32]`."""
    digest = hashlib.sha256(f"trajectory {version}".encode() if version > 1 else b"")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _reason(error: Exception) -> str:
    """Return why something failed: TensorStore's errors are long, and end with the cause."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return in_short(error, longest=200, ending=100)


@contextlib.contextmanager
def _noticing_damage() -> Iterator[None]:
    """Turn whatever a damaged file makes of Orbax and its libraries into `DamagedError`."""
    try:
        yield
    except Exception as error:
        raise DamagedError(_reason(error)) from error


class Checkpoints:
    """The checkpoints of one run, in its `checkpoints/` directory."""

    def __init__(self, directory: Path, keep: int, *, read_only: bool = False):
        """Open, and clean up what a killed run left unfinished.

        Args:
          directory: absolute; made when missing.
          keep: how many of the newest stay; the best on validation stays besides.
          read_only: look, but neither write nor clean up.

        Raises:
          UserError: the directory cannot be used, or none of its checkpoints is whole.
        """
        self._directory, self._keep, self._read_only = directory, keep, read_only
        damaged_checkpoints.check_metrics(directory, read_only=read_only)
        self._manager = self._open()
        self._inode = None if read_only else directory.stat().st_ino

    def _open(self) -> ocp.CheckpointManager:
        newest_policy = preservation_policy.LatestN(self._keep)
        best_policy = preservation_policy.BestN(get_metric_fn=_score, n=1)
        # Only the first process is here, see `shared_checkpoints`: Orbax must wait for no other.
        first_process_only = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}
        )
        try:
            if not self._read_only:
                self._directory.mkdir(parents=True, exist_ok=True)
            return ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=preservation_policy.AnyPreservationPolicy(
                        [newest_policy, best_policy]
                    ),
                    best_fn=_score,
                    create=False,
                    multiprocessing_options=first_process_only,
                    cleanup_tmp_directories=not self._read_only,
                    read_only=self._read_only,
                    enable_async_checkpointing=True,
                ),
                item_handlers=ocp.StandardCheckpointHandler(),
            )
        except OSError as error:
            raise UserError(
                f"the checkpoints in {self._directory} cannot be used ({error.strerror or error}): "
                "make the place writable, or choose another --workdir"
            ) from error

    def latest_step(self) -> int | None:
        """Return the newest checkpoint's step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Return the step of the best checkpoint on validation, or None."""
        best_checkpoint: tuple[float, int] | None = None
        for step in self._manager.all_steps():
            try:
                score = _score(self._manager.metrics(step))
            except Exception:  # its file of metrics is damaged: it is not the best, then
                continue
            if score > -math.inf and (best_checkpoint is None or (score, step) > best_checkpoint):
                best_checkpoint = (score, step)
        return best_checkpoint and best_checkpoint[1]

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint; training goes on meanwhile.

        Args:
          step: number of updates made.
          state: a tree of arrays, replicated over devices.
          metrics: of the validation at this step, where there was one.

        Raises:
          UserError: this one or the one before cannot be written.
        """
        host_state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        tree = {"state": host_state, "digest": _digest(host_state, trajectory.VERSION)}
        try:
            self._try_to_write()
            args = ocp.args.StandardSave(tree, custom_metadata={_VERSION_KEY: trajectory.VERSION})
            self._manager.save(step, args=args, metrics=metrics or {}, force=True)
        except Exception as error:
            raise self._not_written(error) from error

    def _try_to_write(self) -> None:
        """Raise `OSError` if the directory is gone or protected.

        Orbax would wait for minutes, or make the directory again and go on without the rest.
        """
        if self._directory.stat().st_ino != self._inode:
            raise OSError(errno.ESTALE, "another directory is in its place")
        with tempfile.TemporaryFile(dir=self._directory) as probe:
            probe.write(b"kd_jax")

    def version(self, step: int) -> int:
        """Return the version of the trajectory that a checkpoint is of.

        Raises:
          DamagedError: it cannot be told.
        """
        with _noticing_damage():
            metadata = self._manager.item_metadata(step)
            return int((metadata.custom_metadata or {}).get(_VERSION_KEY, 1))

    def restore(self, template: Any, step: int, version: int = trajectory.VERSION) -> Any:
        """Return the state at `step`, in host memory, exactly as it was saved.

        Args:
          template: a tree of arrays of the same structure, shapes and dtypes.
          step: one that `latest_step` or `best_step` returned.
          version: of the trajectory that it must be of.

        Raises:
          OtherVersionError: it is of another version.
          DamagedError: it does not hold the state that was saved.
        """
        if (saved_version := self.version(step)) != version:
            raise OtherVersionError(saved_version)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        tree = {"state": zeros, "digest": np.zeros(32, np.uint8)}
        with _noticing_damage():
            content = self._manager.restore(step, args=ocp.args.StandardRestore(tree))
        if not np.array_equal(_digest(content["state"], version), content["digest"]):
            raise DamagedError("its arrays are not those that were saved")
        return content["state"]

    def restore_newest(self, template: Any) -> Any | None:
        """Return the state of the newest good checkpoint, or None if there are none at all.

        Damaged ones are set aside, into the directory `damaged` beside, once a good one is found.

        Raises:
          UserError: there are checkpoints, and none is good; or they are of another version of the
            trajectory.
        """
        reasons: dict[int, str] = {}  # by the step of a damaged one
        version_error: OtherVersionError | None = None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(template, step)
            except DamagedError as error:
                reasons[step] = str(error)
                version_error = error if isinstance(error, OtherVersionError) else version_error
                continue
            for number, reason in reasons.items():
                logger.warning(
                    "the checkpoint of step %d is damaged (%s): it is set aside in %s, and the run "
                    "goes on from step %d",
                    number, reason, damaged_checkpoints.set_aside(self._directory, number), step,
                )  # fmt: skip
            if reasons:
                self._manager = self._open()  # it remembers the steps that it saw at first
            logger.info("restored the checkpoint of step %d", step)
            return state
        if version_error is not None:
            trajectory.check(
                f"the run with the checkpoints in {self._directory}", version_error.version
            )
        if reasons:
            raise damaged_checkpoints.none_is_whole(self._directory, reasons)
        return None

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
          UserError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Wait for what is being written, and let go of the directory."""
        self.wait()
        self._manager.close()

    def _not_written(self, error: Exception) -> UserError:
        return UserError(
            f"a checkpoint in {self._directory} cannot be written ({_reason(error)}): the one "
            "before it is kept; make room or mend the place, and the same command resumes"
        )
