r"""The nine rows of the study's Table 2 with the study's recipe, including its faults.

    python -m kd_jax.study --config=configs/studies/table2.py --workdir=studies/table2 \
        --teachers=teachers
    python -m kd_jax.study --config=configs/studies/table2.py:epochs=3,seeds=2,fraction=0.1 ...

`--teachers` holds resnet44, vgg11_bn and mobilenetv2_x0_75. Without `epochs`, each row is trained
for as many epochs as in the study.

The rows are those of `kd_jax.report.table2`. For the row with a learning rate of 0.01, the table
has T = 10, and the study's code and figure have 2: this study uses the table's.
"""

from kd_jax import recipes
from kd_jax.report import table2
from kd_jax.study import spec


def get_study(argument=""):
    options = spec.options(argument, epochs=None, seeds=1, fraction=1.0)
    runs = []
    for student in table2.TABLE_2:
        row, config = _row(student)
        config.total_epochs = options["epochs"] or config.total_epochs
        spec.take_fraction(config, options["fraction"])
        runs += spec.of_seeds(
            row, config, options["seeds"], published=student.top1, source=table2.CITATION
        )
    return spec.Study("Table 2 as it was run", tuple(runs))


def _row(student):
    """Return the label and the config of a row of Table 2."""
    config = recipes.apply("seed" if student.teacher else "scratch")
    config.learning_rate = student.learning_rate
    config.total_epochs = student.epochs
    if not student.teacher:
        return "scratch", config
    temperature = student.temperatures[0]
    config.teacher.arch = student.teacher
    config.distill.temperature = temperature
    if not student.mixup:
        config.mixup.kind = "none"
    mixup = "" if student.mixup else ", no mixup"
    return f"{student.teacher}, T={temperature:g}, lr={student.learning_rate:g}{mixup}", config
