r"""Images of your own: `folder.py:teacher` trains a teacher, `folder.py:distil` a student of it.

    python -m kd_jax.main --config=configs/folder.py:teacher --workdir=runs/my_teacher \
        --config.dataset.data_dir=my_images
    python -m kd_jax.main --config=configs/folder.py:distil --workdir=runs/my_student \
        --config.dataset.data_dir=my_images --config.teacher.weights=runs/my_teacher

`my_images/train/CLASS/*.png`, see docs/data.md. `--config=configs/folder.py:recipe=NAME` takes
another recipe than function matching for the student, see `python -m kd_jax.recipes`. What a
teacher is worth is told by `folder.py:alone`: the same student by the same schedule, from labels.

`--config.dataset.image_size` (32 by default) chooses the networks and the crop with it, unless
they are given too. The limit is where the last map of the torchvision form, which halves an image
five times, becomes 3 x 3 pixels: up to 64 pixels it is 2 x 2 or one pixel, and there the student
is the CIFAR form, whose maps have 4 times the side at 8 times the cost.
"""

import math

from kd_jax import config as config_lib
from kd_jax import recipes
from kd_jax.data import catalog

_LARGEST_SMALL = 64  # pixels a side


def _student(image_size):
    return "mobilenet_v3_small" if image_size > _LARGEST_SMALL else "mobilenet_v3_small_cifar"


def _teacher(image_size):
    return "mobilenet_v3_large" if image_size > _LARGEST_SMALL else "resnet20"


def _crop_pad_px(image_size):
    """Return an eighth of a small image, as the 4 pixels are that CIFAR's have."""
    return 0 if image_size > _LARGEST_SMALL else math.ceil((image_size or 32) / 8)


def _crop_area(image_size):
    return 0.25 if image_size > _LARGEST_SMALL else 1.0


def get_config(part="distil"):
    config = config_lib.default_config()
    config.dataset.name = catalog.FOLDER
    config.dataset.image_size = 32
    config.dataset.val_examples = catalog.facts(catalog.FOLDER).val_examples
    config.batch_size = 64
    config.warmup_epochs = 2.0
    if part == "teacher":
        config.distill.label_weight = 1.0
        config.mixup.kind = "none"
        config.total_epochs = 60.0
        config_lib.follow(config, "student.arch", "dataset.image_size", _teacher)
    elif part in ("distil", "alone") or part.startswith("recipe="):
        recipes.experiment(part if part.startswith("recipe=") else "", config)
        if part == "alone":
            config.distill.label_weight = 1.0
            config.mixup.kind = "none"
        config_lib.follow(config, "student.arch", "dataset.image_size", _student)
    else:
        raise ValueError(
            f"folder.py:{part} is not a part: expected teacher, distil, alone or recipe=NAME"
        )
    if config.augment.crop_pad_px:  # and no recipe without crops
        config_lib.follow(config, "augment.crop_pad_px", "dataset.image_size", _crop_pad_px)
        config_lib.follow(config, "augment.crop_area", "dataset.image_size", _crop_area)
    return config
