"""The directory of a run: whose it is, and what it holds.

`config.json`, `provenance.json`, `teacher.json` (the certificate), `metrics.jsonl`, TensorBoard's
`events.out.tfevents.*`, `checkpoints/`, `lock`, and when the run is finished `result.json`,
`model.json` and `model.safetensors`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where nobody guards a workdir but its user
    fcntl = None  # type: ignore[assignment]

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError
from kd_jax.training import trajectory

CONFIG_FILE = "config.json"
PROVENANCE_FILE = "provenance.json"
TEACHER_FILE = "teacher.json"
RESULT_FILE = "result.json"
CHECKPOINTS = "checkpoints"
LOCK_FILE = "lock"
LENGTH_FIELDS = ("total_epochs", "total_steps")


class InUseError(UserError):
    """Another process has the lock of a workdir."""


def starts_of(directory: Path) -> list[dict[str, Any]]:
    """Return the records of a run's starts, the first one first; empty before there was one."""
    return atomic_files.read_json(directory / PROVENANCE_FILE) or []


def steps_made(directory: Path) -> int:
    """Return the step of a run's newest checkpoint, good or damaged; 0 without any."""
    places = (directory / CHECKPOINTS).glob("*")
    return max((int(place.name) for place in places if place.name.isdecimal()), default=0)


def check(workdir: Path, config: ConfigDict, *, length_may_differ: bool = False) -> None:
    """Raise `UserError` unless the directory is new, empty, or belongs to this very experiment.

    And to this version of the trajectory. Nothing is written.

    Args:
      workdir: of the run.
      config: of the experiment.
      length_may_differ: whether it may be longer or shorter than the run was planned; see
        `length`, which then has to look at it.
    """
    if not workdir.exists():
        ancestor = next(path for path in workdir.parents if path.exists())
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
            problem = "cannot be written to" if ancestor.is_dir() else "is a file"
            raise UserError(
                f"the workdir {workdir} cannot be made, because {ancestor} {problem}: choose "
                "another --workdir"
            )
        return
    if not workdir.is_dir():
        raise UserError(f"the workdir {workdir} is a file: expected a directory, new or of a run")
    if not (workdir / CONFIG_FILE).exists():
        # A run that was killed in its first moment leaves its lock, and half a file.
        leftovers = [path for path in workdir.iterdir() if not atomic_files.is_partial(path)]
        if any(path.name != LOCK_FILE for path in leftovers):
            raise UserError(
                f"the workdir {workdir} holds other files and no {CONFIG_FILE}: expected a new "
                "directory, or the one of an earlier run of this config"
            )
        return
    changes = config_lib.differences(load_config(workdir), config)
    if length_may_differ and all(each.partition(":")[0] in LENGTH_FIELDS for each in changes):
        changes = []
    if changes:
        raise UserError(
            f"the workdir {workdir} belongs to a run of another config ({'; '.join(changes)}): "
            "give this one its own --workdir, or take the old values to resume"
        )
    starts = starts_of(workdir)
    if starts:
        trajectory.check(f"the run in {workdir}", starts[0].get("trajectory", 1))


class Lock:
    """The right to write to a workdir: one process has it, and it dies with that process.

    A context manager that lets go in the end.
    """

    def __init__(self, workdir: Path):
        """Name the directory; nothing is done yet."""
        self._workdir = workdir
        self._file: int | None = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None

    def acquire(self) -> None:
        """Take the lock, unless this object has it; the directory is made when missing.

        Raises:
          InUseError: another process has it.
          UserError: the directory cannot be written to.
        """
        if self._file is not None or fcntl is None:
            return
        path = self._workdir / LOCK_FILE
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): make the place writable, or choose "
                "another --workdir"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace")
            os.close(file)
            raise InUseError(
                f"the workdir {self._workdir} is in use by {holder or 'another process'}: wait for "
                "that run, stop it, or choose another --workdir"
            ) from None
        except OSError:  # a file system without locks: as before there were any
            os.close(file)
            return
        self._file = file
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def load_config(workdir: Path) -> ConfigDict:
    """Return the config of the run in a directory.

    Raises:
      UserError: there is no run, or its `config.json` is damaged.
    """
    path = workdir / CONFIG_FILE
    try:
        config = config_lib.from_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no run in {workdir}: expected a {CONFIG_FILE} there") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not the config of a run ({error}): restore it, or choose a new --workdir"
        ) from None
    return config


def create(workdir: Path, config: ConfigDict) -> None:
    """Make the directory of a run and write its config; the lock of the directory is held."""
    if workdir.is_dir():
        atomic_files.remove_partial(workdir)
    atomic_files.write_whole(workdir / CONFIG_FILE, config_lib.to_json(config).encode())
