"""The teachers' logits of the clean training images, for the view `fixed`: computed once a run.

Only there can logits be kept: under crop, flip or mixup they would answer for another image than
the one the student sees.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from kd_jax.runtime import atomic_files, processes
from kd_jax.runtime.console import logger
from kd_jax.training.evaluator import Evaluator
from kd_jax.training.setup import RunSetup

LOGITS_FILE = "teacher_logits.npz"
_NUM_COMPARED = 256  # images whose kept logits are compared with fresh ones
_TOLERANCE = 1e-5  # of the largest logit


def teacher_logits(run: RunSetup, evaluator: Evaluator, workdir: Path) -> np.ndarray:
    """Return float32 `[teachers, N, classes]`, read from the run's directory or written to it.

    What is read must be of these teachers and this data, and some of it is computed again: where
    it differs, all of it is.
    """
    assert run.teachers is not None
    key = f"{run.teachers.identity} {run.dataset.fingerprint}"
    path = workdir / LOGITS_FILE
    stored_logits = _read(path, key) if processes.is_first() else None
    if processes.on_first(lambda: stored_logits is not None):
        if stored_logits is None:
            shape = len(run.teachers.variables), len(run.dataset.train), run.dataset.num_classes
            stored_logits = np.zeros(shape, np.float32)
        stored_logits = processes.tree_from_first(stored_logits)
        sample = evaluator.some_members_logits("train", _NUM_COMPARED)
        difference = np.abs(stored_logits[:, :_NUM_COMPARED] - sample).max(initial=0.0)
        deviation = difference / np.abs(sample).max(initial=1e-9)
        if deviation <= _TOLERANCE and np.isfinite(stored_logits).all():
            return stored_logits
        logger.warning("the logits in %s are off by %.1e: they are computed anew", path, deviation)
    logger.info("computing the teacher's logits of all %d clean images", len(run.dataset.train))
    logits = evaluator.members_logits("train")
    content = io.BytesIO()
    np.savez(content, logits=logits, key=np.array(key))
    processes.on_first(lambda: atomic_files.write_whole(path, content.getvalue()))
    return logits


def _read(path: Path, key: str) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["logits"] if str(archive["key"]) == key else None
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged archive makes of its readers
        logger.warning("%s is damaged (%s): it is computed anew", path, error)
        return None
