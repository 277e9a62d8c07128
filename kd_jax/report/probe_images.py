"""The example images of `probe.json`: test images and mixtures with the networks' predictions.

NumPy only: the caller passes the logits.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from kd_jax.data.sources import Split
from kd_jax.metrics import fidelity

# The weight of an image in its mixture: one example for each, evenly spaced over the split.
MIXTURE_LAMS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.5)
_TOP = 3
_CONFIDENCE = 0.9  # of the image whose softmax is shown: high, yet other classes have a share


def png(pixels: np.ndarray) -> str:
    """Return an image, uint8 `[H, W, 3]`, as the data URI of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def mixtures(
    split: Split, lam: float, teacher_logits: np.ndarray, student_logits: np.ndarray
) -> list[dict[str, Any]]:
    """Return the examples of one mixing weight; none if it is not in `MIXTURE_LAMS`.

    Args:
      split: the images, each of which is mixed with its partner (`fidelity.partners`).
      lam: weight of an image in its mixture.
      teacher_logits, student_logits: float `[N, classes]`, of all mixtures.

    Returns:
      records of `share`, the two images (`own` and `other`, each `image` and `label`), `mixture`,
      and the three most probable classes of `teacher` and `student`.
    """
    count, records = len(split), []
    for number, example_lam in enumerate(MIXTURE_LAMS):
        if example_lam != lam:
            continue
        index = number * count // len(MIXTURE_LAMS)
        pair = (index, int(fidelity.partners(count)[index]))
        first, second = (split.images[i].astype(np.float64) for i in pair)
        mixture = np.round(lam * first + (1 - lam) * second).astype(np.uint8)
        images = [{"image": png(split.images[i]), "label": int(split.labels[i])} for i in pair]
        records.append(
            {
                "share": lam,
                "own": images[0],
                "other": images[1],
                "mixture": png(mixture),
                "teacher": _first_classes(teacher_logits[index]),
                "student": _first_classes(student_logits[index]),
            }
        )
    return records


def softmax(split: Split, teacher_logits: np.ndarray) -> dict[str, Any]:
    """Return one image and the teacher's logits for it, without a temperature.

    It is the image, of those that the teacher classifies correctly (of all, if there are none),
    whose highest probability is nearest to 0.9.

    Args:
      split: the images.
      teacher_logits: float `[N, classes]`.

    Returns:
      `index` in the split, `image`, `label` and `logits`.
    """
    is_correct = teacher_logits.argmax(-1) == split.labels
    distance = np.abs(np.exp(fidelity.log_softmax(teacher_logits)).max(-1) - _CONFIDENCE)
    index = int(np.argmin(np.where(is_correct | ~is_correct.any(), distance, np.inf)))
    return {
        "index": index,
        "image": png(split.images[index]),
        "label": int(split.labels[index]),
        "logits": [round(float(value), 4) for value in teacher_logits[index]],
    }


def _first_classes(logits: np.ndarray) -> list[dict[str, float]]:
    """Return the most probable classes of logits `[classes]`, in descending order."""
    probs = np.exp(fidelity.log_softmax(logits))
    order = np.argsort(-probs, kind="stable")[:_TOP]
    return [{"class": int(i), "probability": round(float(probs[i]), 4)} for i in order]
