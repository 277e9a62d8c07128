"""The whole job in small: train a teacher, distil it without labels, compare with no teacher.

    python -m kd_jax.demo [--workdir=runs/demo]

Real images (scikit-learn's handwritten digits), no download. Stopped, it goes on where it was.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags

from kd_jax.report import page as report_page
from kd_jax.runtime import huge_pages
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Directory of the demo's three runs.")
_CONFIG = Path("configs/demo.py")


def main(argv: Sequence[str]) -> None:
    """Run the three parts and print their table."""
    del argv
    if not _CONFIG.exists():
        raise UserError(f"no {_CONFIG} here: run the demo from the project's directory")
    from kd_jax.training.train import train

    began = time.perf_counter()
    root = reachable(_WORKDIR.value, "--workdir")
    configs = _load(_CONFIG)
    parts = {"teacher": "teacher", "distilled": "distil", "scratch": "scratch"}
    for label, part in parts.items():
        config = configs.get_config(part)
        if label != "teacher":
            config.teacher.weights = str(root / "teacher")
        logger.info("--- %s: configs/demo.py:%s", label, part)
        train(config, root / label)
    page = root / "report.html"
    table = report_page.write({label: root / label for label in parts}, page, "kd_jax: the demo")
    print(f"\n{table}\n\nin {time.perf_counter() - began:.0f} s; report: {page}")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
