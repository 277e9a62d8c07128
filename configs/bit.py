r"""Distil BiT-M R152x2 into BiT R50x1 on ImageNet at 224 pixels, as Beyer et al. 2021 did.

    python -m kd_jax.import_teacher --arch=bit_r152x2 --src=R152x2_T_224.npz \
        --dataset=imagenet2012 --image_size=224 --claimed_top1=83.0 --out=teachers/bit_r152x2
    python -m kd_jax.main --config=configs/bit.py --workdir=runs/bit \
        --config.teacher.weights=teachers/bit_r152x2

The teacher's file is https://storage.googleapis.com/bit_models/distill/R152x2_T_224.npz. Ask with
`--plan` first, and read docs/data.md on what ImageNet takes. `accumulate` makes the batch fit.

Source: google-research/big_vision:big_vision/configs/proj/distill/bit_i1k.py, whose authors state
15 hours on a v3-32 TPU for 300 of the 1,200 epochs. Other than there: crops are out of the middle
of the image, which was scaled to 224 pixels when it was read; Adam's first moment is float32; the
2 % of train that are held out are of every class in proportion, not the last ones. Nobody ran it
at full size here; tests run it with small members of the family.
"""

from kd_jax.config import default_config

_TRAIN_EXAMPLES, _HELD_OUT = 1_281_167, 25_623
_WARMUP_STEPS = 5_000


def get_config():
    config = default_config()
    config.dataset.name = "imagenet2012"
    config.dataset.image_size = 224
    config.dataset.test_split = "validation"  # the labels of its test split are not public
    config.dataset.val_examples = _HELD_OUT
    config.batch_size = 4096
    config.total_epochs = 1200.0
    config.learning_rate = 0.03
    config.weight_decay = 3e-4
    config.warmup_epochs = _WARMUP_STEPS * config.batch_size / (_TRAIN_EXAMPLES - _HELD_OUT)
    config.teacher.arch = "bit_r152x2"
    # It was published for the middle 224 of 256 pixels; here it is measured on the whole middle.
    config.teacher.on_mismatch = "warn"
    config.student.arch = "bit_r50x1"
    config.distill.temperature = 1.0
    config.augment.crop_pad_px = 0
    config.augment.crop_area = 0.05
    config.log_every_steps = 50
    config.checkpoint_every_steps = 1000
    return config
