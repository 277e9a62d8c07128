r"""The study's rows with mixup and one without, under ResNet44, whose weights are published.

    python -m kd_jax.study --config=configs/studies/reproduced.py --workdir=studies/reproduced \
        --teachers=teachers

Recipe `seed`, the study's student, 400 epochs. The five rows with mixup share teacher, batches and
views, so they train as one cohort. The row without mixup augments nothing either, so its teacher's
logits are computed once.

Source: Roset, Thomas, Lisboa 2023, Table 2: 40.67 for ResNet44 with mixup, T = 5 and a learning
rate of 0.001. The table has the other settings under other teachers alone.
"""

from kd_jax import recipes
from kd_jax.study import spec

_SOURCE = "Roset, Thomas, Lisboa 2023, Table 2"
# Temperature, learning rate, mixup, published top-1.
_ROWS = (
    (2.0, 0.001, True, None),
    (5.0, 0.001, True, 40.67),
    (10.0, 0.001, True, None),
    (5.0, 0.003, True, None),
    (10.0, 0.01, True, None),
    (10.0, 0.001, False, None),
)


def get_study(argument=""):
    chosen = spec.options(argument, epochs=400.0, seeds=1, fraction=1.0)
    listed = []
    for temperature, rate, mixes, top1 in _ROWS:
        config = recipes.apply("seed")
        config.teacher.arch = "resnet44"
        config.learning_rate = rate
        config.distill.temperature = temperature
        config.total_epochs = chosen["epochs"]
        if not mixes:
            config.mixup.kind = "none"
            config.distill.view = "fixed"
        spec.take_fraction(config, chosen["fraction"])
        row = f"T={temperature:g}, lr={rate:g}{'' if mixes else ', no mixup'}"
        source = _SOURCE if top1 else ""
        listed += spec.of_seeds(row, config, chosen["seeds"], published=top1, source=source)
    return spec.Study("ResNet44 teaches under the study's recipe", tuple(listed))
