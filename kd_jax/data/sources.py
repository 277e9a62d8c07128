"""Where images come from: any image classification set of tfds, a folder of images, the digits.

Each gives the published train and test splits as arrays.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import catalog, image_folder, tfds_source
from kd_jax.data.splits import Source, Split, hold_out_test


def read(config: ConfigDict) -> Source:
    """Return the data set that `config.dataset` names, as it is published.

    Raises:
      UserError: it is not there, cannot be downloaded, or cannot be read.
    """
    if config.name == catalog.DIGITS:
        return digits()
    if config.name == catalog.FOLDER:
        return image_folder.read(config)
    return tfds_source.read(config)


def digits() -> Source:
    """Return scikit-learn's 1,797 digits as 32x32 RGB, a fifth of them as test split."""
    from scipy import ndimage
    from sklearn import datasets

    bunch = datasets.load_digits()
    scaled = ndimage.zoom(bunch.images / 16.0, (1, 4, 4), order=1, mode="nearest", grid_mode=True)
    grey = np.round(255.0 * scaled).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int32)
    return hold_out_test(Split(images, labels), 10, 360)
