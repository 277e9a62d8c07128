"""Folders of images to read, and the options to read them with."""

import numpy as np
from PIL import Image

from kd_jax.config import default_config
from kd_jax.data import sources


def options(**changes):
    config = default_config().dataset
    config.update(changes)
    return config


def make_folder(root, *, count=100, size=(32, 32), test=False, classes=("ant", "bee", "über")):
    """Write images whose colour tells their class; return how many."""
    rng = np.random.default_rng(0)
    written = 0
    for split, number in (("train", count), ("test", count // 4 if test else 0)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = rng.integers(0, 120, (*size, 3), np.uint8)
                pixels[..., label % 3] += 120
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
                written += 1
    if not test:
        for name in classes:
            (root / "test" / name).rmdir()
        (root / "test").rmdir()
    return written


def folder(root, **changes):
    return sources.read(options(name="folder", data_dir=str(root), **changes))
