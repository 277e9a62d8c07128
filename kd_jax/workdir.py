"""The directory of a run: whose it is, and what it holds.

`config.json`, `teacher.json` (the certificate), `metrics.jsonl`, `tensorboard/`, `checkpoints/`,
and when the run is finished `result.json`, `model.json` and `model.safetensors`.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax import files
from kd_jax.errors import UserError

CONFIG_FILE = "config.json"
TEACHER_FILE = "teacher.json"
RESULT_FILE = "result.json"
CHECKPOINTS = "checkpoints"


def check(workdir: Path, config: ConfigDict) -> None:
    """Raise `UserError` unless the directory is new, empty, or belongs to this very experiment.

    Nothing is written.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f"the workdir {workdir} is a file: expected a directory, new or of a run")
    if not (workdir / CONFIG_FILE).exists():
        if any(workdir.iterdir()):
            raise UserError(
                f"the workdir {workdir} holds other files and no {CONFIG_FILE}: expected a new "
                "directory, or the one of an earlier run of this config"
            )
        return
    changed = config_lib.differences(load_config(workdir), config)
    if changed:
        raise UserError(
            f"the workdir {workdir} belongs to a run of another config ({'; '.join(changed)}): "
            "give this one its own --workdir, or take the old values to resume"
        )


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
    """Make the directory of a run and write its config."""
    files.write_whole(workdir / CONFIG_FILE, config_lib.to_json(config).encode())
