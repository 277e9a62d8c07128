"""Which runs of a study one process trains together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from kd_jax.runtime.errors import UserError
from kd_jax.study import spec


def group_runs(
    runs: Sequence[spec.Run], most: int, key: Callable[[spec.Run], str | None]
) -> list[list[spec.Run]]:
    """Return the runs in groups of the same key, in their order.

    Args:
      runs: all runs of a study, so that all processes make the same groups.
      most: runs in a group.
      key: equal for runs that may be trained together; None for a run that must be alone.
    """
    groups: list[list[spec.Run]] = []
    open_groups: dict[str, list[spec.Run]] = {}
    for run in runs:
        run_key = key(run) if most > 1 else None
        if run_key is not None and run_key in open_groups and len(open_groups[run_key]) < most:
            open_groups[run_key].append(run)
            continue
        groups.append([run])
        if run_key is not None:
            open_groups[run_key] = groups[-1]
    return groups


def with_teacher_weights(run: spec.Run, root: Path, teachers: Path | None) -> ConfigDict:
    """Return a run's config with the path of its teacher's weights.

    Raises:
      UserError: there are no weights.
    """
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.teacher.weights = spec.teacher_weights(run, root, teachers)
    return config


def cohort_key(run: spec.Run, root: Path, teachers: Path | None) -> str | None:
    """Return the key of a run for `group_runs`; None if its teacher has no weights yet."""
    from kd_jax.training import cohort

    try:
        return cohort.key(with_teacher_weights(run, root, teachers))
    except UserError:  # training the run reports it
        return None
