"""A few images of a run's test split as the report shows them, and what the networks say of them.

NumPy alone: the logits are given.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from kd_jax.data.sources import Split
from kd_jax.metrics import fidelity

MIXTURE_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.5)  # one example each, evenly spaced over the split
_TOP = 3
_CONFIDENCE = 0.9  # of the image whose softmax is shown: sure, and not so sure that nothing is left


def png(pixels: np.ndarray) -> str:
    """Return an image, uint8 `[H, W, 3]`, as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def mixtures(
    split: Split, share: float, teacher_logits: np.ndarray, student_logits: np.ndarray
) -> list[dict[str, Any]]:
    """Return the examples that are shown of one proportion.

    Args:
      split: the images that were mixed, each with the next.
      share: of each image in its mixture.
      teacher_logits, student_logits: float `[N, classes]`, of all mixtures.

    Returns:
      records of `share`, the two images (`own` and `other`, each `image` and `label`), `mixture`,
      and both networks' first three classes.
    """
    count, records = len(split), []
    for number, its_share in enumerate(MIXTURE_SHARES):
        if its_share != share:
            continue
        index = number * count // len(MIXTURE_SHARES)
        pair = (index, (index + 1) % count)
        own, other = (split.images[i].astype(np.float64) for i in pair)
        mixed = np.round(share * own + (1 - share) * other).astype(np.uint8)
        images = [{"image": png(split.images[i]), "label": int(split.labels[i])} for i in pair]
        records.append(
            {
                "share": share,
                "own": images[0],
                "other": images[1],
                "mixture": png(mixed),
                "teacher": _first_classes(teacher_logits[index]),
                "student": _first_classes(student_logits[index]),
            }
        )
    return records


def softmax(split: Split, teacher_logits: np.ndarray) -> dict[str, Any]:
    """Return one image and the teacher's logits of it, to be softened by any temperature.

    It is the image that the teacher gets right with a probability nearest to 0.9 (where it gets
    none right, of all images).

    Args:
      split: the images.
      teacher_logits: float `[N, classes]`.

    Returns:
      `index` in the split, `image`, `label` and `logits`.
    """
    right = teacher_logits.argmax(-1) == split.labels
    distance = np.abs(np.exp(fidelity.log_softmax(teacher_logits)).max(-1) - _CONFIDENCE)
    index = int(np.argmin(np.where(right | ~right.any(), distance, np.inf)))
    return {
        "index": index,
        "image": png(split.images[index]),
        "label": int(split.labels[index]),
        "logits": [round(float(value), 4) for value in teacher_logits[index]],
    }


def _first_classes(logits: np.ndarray) -> list[dict[str, float]]:
    """Return the most probable classes of `[classes]`, the first first."""
    probs = np.exp(fidelity.log_softmax(logits))
    order = np.argsort(-probs, kind="stable")[:_TOP]
    return [{"class": int(i), "probability": round(float(probs[i]), 4)} for i in order]
