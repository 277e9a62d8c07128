"""Measure the student of a run on one split.

    python -m kd_jax.evaluate --workdir=DIR [--split=test|val|train] [--checkpoint=last|best]

The last line of stdout is one JSON object. The workdir is only read, so a run that is still going
on can be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax.errors import UserError, run_command

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "val", "train"], "Split to measure on.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Newest, or best on val.")


def main(argv: Sequence[str]) -> None:
    """Measure, and print the measures as one JSON object."""
    del argv
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: expected the directory of a run")
    from kd_jax import experiment, measure, parallel, workdir
    from kd_jax.checkpoint import Checkpoints

    directory = Path(_WORKDIR.value).expanduser().resolve()
    config = workdir.load_config(directory)
    if not (directory / workdir.CHECKPOINTS).is_dir():
        raise UserError(f"the run in {directory} has no checkpoint yet: let it train first")
    with config.unlocked():
        config.num_devices = 0  # those of this machine: it need not be the one that trained
    run = experiment.build(config)
    checkpoints = Checkpoints(directory / workdir.CHECKPOINTS, keep=1, read_only=True)
    last = _CHECKPOINT.value == "last"
    step = checkpoints.latest_step() if last else checkpoints.best_step()
    if step is None:
        raise UserError(f"the run in {directory} has no {_CHECKPOINT.value} checkpoint yet")
    state = checkpoints.restore(run.initial_state(), step)
    variables = parallel.replicate(state.variables, run.devices)
    measured = measure.Judge(run).measure_student(variables, _SPLIT.value)
    examples = len(run.dataset.split(_SPLIT.value))
    print(json.dumps({"split": _SPLIT.value, "step": step, "examples": examples, **measured}))


if __name__ == "__main__":
    run_command(main)
