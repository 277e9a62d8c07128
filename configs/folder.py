r"""Images of your own: `folder.py:teacher` trains a teacher, `folder.py:distil` a student of it.

    python -m kd_jax.main --config=configs/folder.py:teacher --workdir=runs/my_teacher \
        --config.dataset.data_dir=my_images
    python -m kd_jax.main --config=configs/folder.py:distil --workdir=runs/my_student \
        --config.dataset.data_dir=my_images --config.teacher.weights=runs/my_teacher

`my_images/train/CLASS/*.png`, see docs/data.md.
"""

from kd_jax.config import default_config


def get_config(part="distil"):
    config = default_config()
    config.dataset.name = "folder"
    config.dataset.image_size = 32  # what the networks of the study were made for
    config.dataset.val_examples = 60
    config.batch_size = 64
    config.warmup_epochs = 2.0
    if part == "teacher":
        config.student.arch = "resnet20"
        config.distill.label_weight = 1.0
        config.mixup.kind = "none"
        config.total_epochs = 60.0
    elif part != "distil":
        raise ValueError(f"folder.py:{part} is not a part: expected teacher or distil")
    return config
