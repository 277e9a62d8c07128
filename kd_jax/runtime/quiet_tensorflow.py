"""TensorFlow, only where a library needs it: late, silent, and away from the accelerators.

Importing it takes seconds, so nothing imports it at start-up; and it would take all of a GPU's
memory, so the GPUs are hidden from it before it looks.
"""

from __future__ import annotations

import os
from types import ModuleType


def _hide_accelerators() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")


def import_tfds() -> ModuleType:
    """Return the module `tensorflow_datasets`."""
    _hide_accelerators()
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    return tfds


def import_metric_writers() -> ModuleType:
    """Return the module `clu.metric_writers`."""
    _hide_accelerators()
    from clu import metric_writers

    return metric_writers
