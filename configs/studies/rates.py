r"""Which learning rate and batch size does each way of training need, before they are compared?

    python -m kd_jax.study --config=configs/studies/rates.py --workdir=studies/rates \
        --teachers=teachers
    python -m kd_jax.study --config=configs/studies/rates.py:epochs=30,batch=512 ...

ResNet44 teaches the study's student by function matching, with and without mixup; the same student
learns from labels with the same crop and flip. Each at four learning rates, which train as one
cohort where a batch size and a kind of view are shared, so the teacher is asked once for four.
A tenth of the epochs is warm-up. `batch` is 128 and 512 unless it is given.
"""

from kd_jax import recipes
from kd_jax.study import spec

_RATES = (0.001, 0.003, 0.01, 0.03)
_BATCHES = (128, 512)
_WAYS = {
    "labels alone": {"distill.label_weight": 1.0, "mixup.kind": "none"},
    "funmatch, no mixup": {"mixup.kind": "none"},
    "funmatch": {},
}


def get_study(argument=""):
    options = spec.options(
        argument, epochs=10.0, seeds=1, fraction=1.0, batch=0, student="mobilenet_v3_small"
    )
    runs = []
    for batch in (options["batch"],) if options["batch"] else _BATCHES:
        for way, changes in _WAYS.items():
            config = recipes.apply("funmatch")
            config.update_from_flattened_dict(changes)
            config.teacher.arch = "resnet44"
            config.student.arch = options["student"]
            config.batch_size = batch
            config.total_epochs = options["epochs"]
            config.warmup_epochs = options["epochs"] / 10
            spec.take_fraction(config, options["fraction"])
            for rate, row_config in zip(
                _RATES, spec.grid(config, {"learning_rate": _RATES}).values(), strict=True
            ):
                row = f"{way}, batch {batch}, lr={rate:g}"
                runs += spec.of_seeds(row, row_config, options["seeds"])
    return spec.Study(
        f"Learning rates and batch sizes, {options['epochs']:g} epochs under ResNet44", tuple(runs)
    )
