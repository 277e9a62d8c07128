"""What is done, and what is said, about checkpoints that are damaged.

They are moved into the directory `damaged` beside that of the checkpoints, never removed. Nothing
is moved while no other checkpoint is whole: then somebody has to look at them first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

DAMAGED = "damaged"


def set_aside(directory: Path, step: int) -> Path:
    """Move a checkpoint out of Orbax's sight; return where it is now.

    Args:
      directory: of the checkpoints.
      step: of the one that is moved.
    """
    target = directory.parent / DAMAGED / str(step)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{step}-{number}")
    target.parent.mkdir(exist_ok=True)
    shutil.move(directory / str(step), target)
    return target


def check_metrics(directory: Path, *, read_only: bool) -> None:
    """Set checkpoints aside whose metrics cannot be read: Orbax cannot even list those.

    Args:
      directory: of the checkpoints; it may be missing.
      read_only: move nothing.

    Raises:
      UserError: there are such, and no other is whole or none may be moved.
    """
    steps = _steps_in(directory)
    damaged_steps = [step for step in steps if not _metrics_are_whole(directory / str(step))]
    if damaged_steps and (read_only or len(damaged_steps) == len(steps)):
        raise none_is_whole(directory, dict.fromkeys(damaged_steps, "its metrics cannot be read"))
    for step in damaged_steps:
        logger.warning(
            "the metrics of the checkpoint of step %d are damaged: it is set aside in %s",
            step,
            set_aside(directory, step),
        )


def none_is_whole(directory: Path, reasons: Mapping[int, str]) -> UserError:
    """Return the error of a directory without a good checkpoint; `reasons` are by step."""
    steps = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
    return UserError(
        f"no checkpoint in {directory} is whole ({steps}): bring one back from a backup, "
        "or remove the directory to start again"
    )


def cannot_be_shown(run_directory: Path, step: int, reason: object) -> UserError:
    """Return the error of a damaged checkpoint that was to be looked at, not resumed."""
    return UserError(
        f"the checkpoint of step {step} in {run_directory} is damaged ({reason}): resume the run, "
        "which goes back to the one before, or look at --checkpoint=best"
    )


def _steps_in(directory: Path) -> list[int]:
    """Return the steps of the finished checkpoints in a directory."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _metrics_are_whole(checkpoint: Path) -> bool:
    """Tell whether the metrics of a checkpoint, if it has any, can be read."""
    path = checkpoint / "metrics" / "metrics"
    try:
        return not path.exists() or isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False
