"""Write a trained network as a file for other programs, and verify the file on test images.

    python -m kd_jax.export --workdir=runs/resnet44 --format=onnx --out=student.onnx
    python -m kd_jax.export --workdir=runs/resnet44 --format=all --out=exported

The network is that of a finished run, of one of a run's checkpoints (`--checkpoint`), or of a
directory made by import_teacher. A file takes uint8 images and returns logits or probabilities; it
is run by its own runtime before it gets its name, and a card beside it says how good it is. Formats
and how to load them: docs/export.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from kd_jax.export import formats, request
from kd_jax.export.request import Request
from kd_jax.runtime import huge_pages, text_tables
from kd_jax.runtime.errors import UserError, run_command

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of a run, or of a network made by import_teacher."
)
_FORMAT = flags.DEFINE_string(
    "format", None, f"One of {', '.join((*formats.FORMATS, formats.ALL))}."
)
_OUT = flags.DEFINE_string(
    "out", None, "File to write; for --format=all a directory, made when missing."
)
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", None, ["last", "best"],
    "The newest checkpoint of a run, or the best on val, instead of the network it left.",
)  # fmt: skip
_IMAGES = flags.DEFINE_integer(
    "images", None, "Test images to verify on, each class in proportion; all if not given."
)
_OUTPUTS = flags.DEFINE_enum("outputs", "logits", ["logits", "probabilities"], "What files return.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the data set is, instead of the place that the run's config names."
)


def main(argv: Sequence[str]) -> None:
    """Write, verify and describe a file, or one of each format."""
    del argv
    given = Request(
        workdir=_WORKDIR.value,
        format=_FORMAT.value,
        out=_OUT.value,
        checkpoint=_CHECKPOINT.value,
        images=_IMAGES.value,
        outputs=_OUTPUTS.value,
        data_dir=_DATA_DIR.value,
    )
    cards, problems = request.carry_out(given)
    if cards:
        print(_table(cards))
    if problems:
        raise UserError(
            f"{len(problems)} of {len(cards) + len(problems)} formats could not be written: "
            f"{'; '.join(problems)}"
        )


def _table(cards: Sequence[dict[str, Any]]) -> str:
    """Return the files that were written as Markdown, and what their measures are of."""
    rows = [["file", "bytes", "top-1 %", "ECE %", "agreement %", "largest difference",
             "p50 ms, 1 image", "p50 ms, 32"]]  # fmt: skip
    for card in cards:
        measures, latency = card["measures"], card["latency"]
        times = latency["batches"].values() if latency else ()
        rows.append(
            [
                card["file"]["name"],
                f"{card['file']['bytes']:,}",
                *(f"{measures[name]:.2f}" for name in ("top1", "ece", "agreement")),
                f"{measures['largest_difference']:.1e}",
                *([f"{time['p50_ms']:.2f}" for time in times] or ["-", "-"]),
            ]
        )
    # Imported here because it needs JAX, which was needed for the cards anyway.
    from kd_jax.export import card as card_lib

    return f"{text_tables.markdown(rows)}\n\nMeasured on {card_lib.measured_on(cards[0])}."


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
