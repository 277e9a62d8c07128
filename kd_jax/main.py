"""Train one experiment.

    python -m kd_jax.main --config=configs/NAME.py[:arg] --workdir=DIR [--config.FIELD=VALUE ...]

The same command resumes a run that was stopped, and measures one that is finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from kd_jax.errors import UserError, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/resnet44.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run; made when missing.")


def main(argv: Sequence[str]) -> None:
    """Train, and print the result as one JSON object."""
    del argv
    if _CONFIG.value is None:
        raise UserError("--config is missing: expected a file such as configs/resnet44.py")
    if not isinstance(_CONFIG.value, ConfigDict):  # ml_collections' stand-in for a failure to load
        name = getattr(flags.FLAGS["config"], "config_filename", "?")
        raise UserError(
            f"--config={name} cannot be read as a config: expected a file with a get_config() that "
            "returns kd_jax.config.default_config(), changed"
        )
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: expected the directory of this run")
    from kd_jax.train import train  # late, so that a wrong flag is answered at once

    print(json.dumps(train(_CONFIG.value, _WORKDIR.value)))


if __name__ == "__main__":
    run_command(main)
