"""The whole job in small: train a teacher, distil it without labels, compare with no teacher.

    python -m kd_jax.demo [--workdir=runs/demo]

Real images (scikit-learn's handwritten digits), no download. The same command resumes a demo that
was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax.config import config_file
from kd_jax.report import page as report_page
from kd_jax.runtime import huge_pages
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Directory of the demo's three runs.")
_CONFIG = "configs/demo.py"
_PARTS = {"teacher": "teacher", "distilled": "distil", "scratch": "scratch"}  # of configs/demo.py


def main(argv: Sequence[str]) -> None:
    """Run the three parts and print their table."""
    del argv
    if not Path(_CONFIG).exists():
        raise UserError(f"no {_CONFIG} here: run the demo from the project's directory")
    root = reachable(_WORKDIR.value, "--workdir")
    from kd_jax.training.train import train

    start = time.perf_counter()
    for label, part in _PARTS.items():
        config = config_file.call(f"{_CONFIG}:{part}", "get_config", _CONFIG)
        if label != "teacher":
            config.teacher.weights = str(root / "teacher")
        logger.info("--- %s: %s:%s", label, _CONFIG, part)
        train(config, root / label)
    page = root / "report.html"
    table = report_page.write({label: root / label for label in _PARTS}, page, "kd_jax: the demo")
    print(f"\n{table}\n\nin {time.perf_counter() - start:.0f} s; report: {page}")


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
