"""Measure the student of a run on one split.

    python -m kd_jax.evaluate --workdir=DIR [--split=test|val|train] [--checkpoint=last|best]

The last line of stdout is one JSON object. The workdir is only read, so the run may still be going
on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax.runtime import huge_pages
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, run_command

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "val", "train"], "Split to measure on.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "last", ["last", "best"], "The newest checkpoint, or the best on val."
)


def main(argv: Sequence[str]) -> None:
    """Measure the student, and print the results as one JSON object."""
    del argv
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: expected the directory of a run")
    from kd_jax.training import saved_student
    from kd_jax.training.evaluator import Evaluator

    run, step, variables = saved_student.student(Path(_WORKDIR.value), _CHECKPOINT.value)
    examples = len(run.dataset.split(_SPLIT.value))
    logger.info(
        "measuring %s of step %d on %s images of %s%s",
        run.student.arch, step, f"{examples:,}", _SPLIT.value,
        f", beside {run.teachers.arch}" if run.teachers else "",
    )  # fmt: skip
    metrics = Evaluator(run).measure_student(variables, _SPLIT.value)
    print(json.dumps({"split": _SPLIT.value, "step": step, "examples": examples, **metrics}))


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
