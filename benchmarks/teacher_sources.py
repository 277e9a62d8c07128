"""What it costs where a teacher answers: in the step, by PyTorch on the host, from a recording.

    python -m benchmarks.teacher_sources --teacher_weights=cifar100_resnet44.pth [--steps=25]

Real CIFAR-100, ResNet44 as teacher, MobileNetV3-small as student, batch 512. Each way trains the
same run from its start, two turns each; printed are its rate without compilation and validation,
and its first and last logged loss. Needs PyTorch (`make bench` installs it). Have nothing else
running.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

import kd_jax as kd
from kd_jax.runtime import huge_pages, text_tables
from kd_jax.runtime.errors import UserError, run_command

_WEIGHTS = flags.DEFINE_string("teacher_weights", None, "The published weights of ResNet44.")
_STEPS = flags.DEFINE_integer("steps", 25, "Steps of each run.", lower_bound=10)
_TURNS = 2


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    del argv
    if not _WEIGHTS.value:
        raise UserError("--teacher_weights is missing: expected the published file of ResNet44")
    with tempfile.TemporaryDirectory() as root:
        rows = [["teacher", "turn", "images/s", "first loss", "last loss"]]
        for turn in range(1, _TURNS + 1):
            rows += [[name, str(turn), *words] for name, words in _turn(Path(root) / str(turn))]
        print(text_tables.markdown(rows))


def _turn(root: Path) -> list[tuple[str, list[str]]]:
    """Return what is printed of each way."""
    answers = str(root / "answers")
    ours = {"teacher__arch": "resnet44"}
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "in the step": (_WEIGHTS.value, ours),
        "PyTorch": (f"torch:benchmarks.torch_models:resnet44@{_WEIGHTS.value}", {}),
        "recorded": (_WEIGHTS.value, ours | {"record": answers}),
        "replayed": (None, {"replay": answers}),
    }
    results = []
    for name, (teacher, fields) in ways.items():
        run = kd.distill(
            teacher, "mobilenet_v3_small", workdir=root / name, steps=_STEPS.value,
            log_every_steps=5, **fields,
        )  # fmt: skip
        losses = [each["loss"] for each in run.history if each["kind"] == "train"]
        rate = f"{run.metrics['images_per_second']:,.0f}"
        results.append((name, [rate, f"{losses[0]:.4f}", f"{losses[-1]:.4f}"]))
    return results


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
