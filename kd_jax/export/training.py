"""How the network of a file was trained, as its run tells it: for the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_jax import config as config_lib
from kd_jax.config import default_config, schema
from kd_jax.config.fields import PATH
from kd_jax.runtime import atomic_files
from kd_jax.training import workdir

_FIDELITY = ("agreement", "agreement_top5", "kl_to_teacher")
# Of one machine, beside all paths: they say nothing to the reader of a card.
_LEFT_OUT = {"teacher.ensemble", "num_devices", "log_every_steps"}


def of_run(directory: Path, step: int | None) -> dict[str, Any] | None:
    """Return how a run trained its student; None where the directory holds no run.

    Args:
      directory: of the run, or of a stored network.
      step: of the checkpoint that was taken; None: the network that the run kept.

    Returns:
      `fields`, those of the config that differ from the default recipe, function matching, by
      path; `steps`, `epochs`; and `fidelity`, how near the kept network is to its teacher on the
      test split (percent, nats), None of a checkpoint and without a teacher.
    """
    if not (directory / workdir.CONFIG_FILE).exists():
        return None
    config = workdir.load_config(directory)
    fields, usual = config_lib.flatten(config), config_lib.flatten(default_config())
    left_out = _LEFT_OUT | {path for path, field in schema.BY_PATH.items() if field.form == PATH}
    result = atomic_files.read_json(directory / workdir.RESULT_FILE) or {}
    fidelity = {name: result[name] for name in _FIDELITY if result.get(name) is not None}
    return {
        "fields": {
            path: value
            for path, value in fields.items()
            if value != usual.get(path) and path not in left_out
        },
        "steps": result.get("steps") if step is None else step,
        "epochs": result.get("epochs") if step is None else None,
        "fidelity": fidelity if fidelity and step is None else None,
    }
