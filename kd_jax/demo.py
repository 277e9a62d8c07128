"""What distillation is for, in small: a student that is taught without a single label.

    python -m kd_jax.demo [--workdir=runs/demo]

On real images (scikit-learn's handwritten digits), no download. A teacher learns from all labels.
Then one network with less than a third of its parameters and multiply-adds learns three times: from
the teacher, without any label; from the few labels that one has in life, one image in twenty; and,
for honesty, from all labels. The same command resumes a demo that was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from kd_jax.runtime import huge_pages
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import reachable, run_command

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Directory of the demo's four runs.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all runs.", lower_bound=0)
_CONFIG = "kd_jax:demo"
_TEACHER, _STUDENT = "resnet20", "resnet8"
_VALIDATION = 144  # images
_ONE_IN = 20
_TEACHER_EPOCHS, _STUDENT_EPOCHS = 12, 16
_BATCH = 64  # of configs/demo.py
_LEARNING_RATE = 8e-3


def main(argv: Sequence[str]) -> None:
    """Run the four parts, and print their table and what it says."""
    del argv
    root = reachable(_WORKDIR.value, "--workdir")
    start = time.perf_counter()
    runs, counts = _run(root)
    seconds = time.perf_counter() - start
    from kd_jax.report import page as report_page

    page = root / "report.html"
    table = report_page.write({label: run.workdir for label, run in runs.items()}, page, _TITLE)
    print(f"\n{table}\n\n{_conclusion(runs, counts)}\n\nin {seconds:.0f} s; report: {page}")


_TITLE = "kd_jax: the demo"


def _run(root: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the runs by label, and how many images and labels there are."""
    import kd_jax as kd
    from kd_jax.data import sources
    from kd_jax.data.splits import hold_out_test

    digits = sources.digits()
    held_out = hold_out_test(digits.train, digits.num_classes, _VALIDATION)
    train = held_out.train
    few = hold_out_test(train, digits.num_classes, len(train) // _ONE_IN).test
    everything: dict[str, Any] = {
        "test": (digits.test.images, digits.test.labels),
        "val": (held_out.test.images, held_out.test.labels),
        "class_names": [str(digit) for digit in range(10)],
        "seed": _SEED.value,
        "learning_rate": _LEARNING_RATE,
        "trackers": (),  # nobody looks at curves of two minutes beside the page
    }

    def part(label: str, teacher: Any, data: Any, config: str, **options: Any) -> Any:
        logger.info("--- %s", label)
        return kd.distill(
            teacher,
            _TEACHER if label == "teacher" else _STUDENT,
            data,
            workdir=root / label.replace(" ", "_"),
            config=f"{_CONFIG}:{config}",
            **everything,
            **options,
        )

    labelled = (train.images, train.labels)
    steps = {"steps": _STUDENT_EPOCHS * len(train) // _BATCH}  # of every student
    runs = {
        "teacher": part("teacher", None, labelled, "teacher", epochs=_TEACHER_EPOCHS),
        "without labels": part("without labels", str(root / "teacher"), train.images, "distil",
                               teacher__arch=_TEACHER, **steps),
        "few labels": part("few labels", None, (few.images, few.labels), "scratch",
                           eval_every_epochs=100.0, **steps),
        "all labels": part("all labels", None, labelled, "scratch", **steps),
    }  # fmt: skip
    return runs, {"images": len(train), "labels": len(few)}


def _conclusion(runs: dict[str, Any], counts: dict[str, int]) -> str:
    """Return in words what the table says."""
    top1 = {label: run.metrics["test_top1"] for label, run in runs.items()}
    times = {
        cost: runs["teacher"].metrics[cost] / runs["without labels"].metrics[cost]
        for cost in ("params", "madds")
    }
    return (
        f"The student has {times['params']:.1f} times fewer parameters than its teacher, and makes "
        f"{times['madds']:.1f} times fewer multiply-adds. "
        f"Taught on {counts['images']:,} images without a label it reaches "
        f"{top1['without labels']:.2f} %, and its teacher {top1['teacher']:.2f} %. From "
        f"{counts['labels']} labels alone it reaches {top1['few labels']:.2f} %, from all of them "
        f"{top1['all labels']:.2f} %."
    )


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
