"""What the networks of a run look at in its first step, as images for people."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import sampler
from kd_jax.distillation import views
from kd_jax.training.setup import RunSetup

_COUNT = 16


def of(run: RunSetup, count: int = _COUNT) -> dict[str, np.ndarray]:
    """Return the first images of the first batch, uint8 `[n, H, W, C]`, see `Callback.on_images`.

    They are made by the function that makes the views of the step, which depend on a position in
    the batch and not on how many there are.

    Args:
      run: whose step it is.
      count: of images, at most.
    """
    config, images = run.config, run.dataset.train.images
    whole = sampler.batch_at(0, config.batch_size, len(images), config.seed, config.mixup.partner)
    batch = sampler.Batch(*(np.asarray(field)[:count] for field in whole))
    pixels, partners = images[batch.example], images[batch.partner]
    found = {"images": pixels}
    alone = _views(config, "none")(sampler.Streamed(batch, pixels, None), config.seed, 0)
    found["views"] = _to_bytes(alone.student)
    mixed = alone
    if config.mixup.kind != "none":
        streamed = sampler.Streamed(batch, pixels, partners)
        mixed = _views(config, config.mixup.kind)(streamed, config.seed, 0)
        found["mixed_views"] = _to_bytes(mixed.student)
    if config.distill.view == "independent" and run.teachers is not None:
        found["teacher_views"] = _to_bytes(mixed.teacher)
    return found


def _views(config: ConfigDict, mixup: str) -> Any:
    """Return `views.make` of a streamed batch, compiled."""
    read = {
        "augment": config.augment.to_dict(),
        "mixup": {**config.mixup.to_dict(), "kind": mixup},
        "distill": {"view": config.distill.view},
        "batch_size": config.batch_size,
    }
    return _compiled(json.dumps(read))


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    config = ConfigDict(json.loads(text))
    return jax.jit(lambda batch, seed, step: views.make(None, batch, seed, step, config))


def _to_bytes(pixels: jax.Array | None) -> np.ndarray:
    """Return pixels in [0, 1] as uint8."""
    return np.round(np.clip(np.asarray(pixels), 0.0, 1.0) * 255).astype(np.uint8)
