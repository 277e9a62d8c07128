"""What a recording of the top logits loses: a real teacher's softened answers beside it.

    python -m benchmarks.top_answers --teacher_weights=cifar100_resnet44.pth

ResNet44 on 1,024 training images of CIFAR-100, clean and mixed. Printed are, for each temperature
and number of logits kept in float16, the bytes of an answer, the mass of the rest, and the distance
of what comes back from the teacher's softened answer: total variation, and the divergence in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from kd_jax.config import default_config
from kd_jax.data import dataset as dataset_lib
from kd_jax.runtime import text_tables
from kd_jax.runtime.errors import UserError, run_command
from kd_jax.teachers import load
from kd_jax.teachers.answers import Form

_WEIGHTS = flags.DEFINE_string("teacher_weights", None, "The published weights of ResNet44.")
_COUNT, _BATCH, _CLASSES = 1024, 128, 100


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    del argv
    if not _WEIGHTS.value:
        raise UserError("--teacher_weights is missing: expected the published file of ResNet44")
    config = default_config()
    config.teacher.arch, config.teacher.weights = "resnet44", _WEIGHTS.value
    teachers = load.load(config.teacher, "cifar100")
    images = dataset_lib.load(config.dataset).train.images[:_COUNT].astype(np.float32) / 255
    lam = np.random.default_rng(0).uniform(size=_COUNT // _BATCH).repeat(_BATCH)
    lam = lam[:, None, None, None].astype(np.float32)
    views = {"clean": images, "mixed": lam * images + (1 - lam) * np.roll(images, 1, axis=0)}
    ask = jax.jit(lambda pixels: teachers.ask(teachers.variables, pixels)[0])
    rows = [["view", "T", "kept", "bytes", "mass of the rest", "total variation", "KL, nats"]]
    for view, pixels in views.items():
        parts = [ask(pixels[first : first + _BATCH]) for first in range(0, _COUNT, _BATCH)]
        logits = np.concatenate([np.asarray(part) for part in parts])
        for temperature in (1.0, 5.0):
            exact = _softened(logits, temperature)
            for top in (8, 16, 32):
                form = Form("float16", _CLASSES, top)
                back = form.unpack(form.pack(logits, temperature))
                ours = _softened(back, temperature)
                measures = (
                    np.sort(exact, axis=-1)[:, :-top].sum(-1).mean(),
                    0.5 * np.abs(exact - ours).sum(-1).mean(),
                    (exact * np.log(exact / ours)).sum(-1).mean(),
                )
                size = form.dtype.itemsize
                rows.append([view, f"{temperature:g}", str(top), str(size),
                             *(f"{measure:.4f}" for measure in measures)])  # fmt: skip
    print(text_tables.markdown(rows))


def _softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


if __name__ == "__main__":
    run_command(main)
