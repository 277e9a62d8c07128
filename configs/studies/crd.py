r"""The logit losses of the field by the protocol of CRD: ResNet56 teaches ResNet20 on CIFAR-100.

    python -m kd_jax.study --config=configs/studies/crd.py --workdir=studies/crd --teachers=teachers
    python -m kd_jax.study --config=configs/studies/crd.py:epochs=12 --workdir=studies/crd12 ...

`--teachers` holds resnet56. The row of labels alone says what a teacher is worth here, and the
others are compared with it. KD, DKD, DIST and LSKD differ in their losses alone, so they train as
one cohort, which asks the teacher once for all four. Function matching by the same protocol is a
row of its own: with mixup its views are others.

`epochs` shortens everything in proportion: the drops of the learning rate, which are shares of the
run, and the warm-up of DKD. The title and the sources then say so, since the published values are
of 240 epochs. They are also of all 50,000 training images, of which 5,000 are held out here; of a
teacher of 72.34 %, where the published weights known to kd_jax have 72.63 %; and means of several
runs. RepDistiller's are of the last epoch; mdistiller, which DKD and LSKD build on, prints the best
epoch on test.

Sources: the papers named with the rows, and the READMEs of HobbitLong/RepDistiller,
megvii-research/mdistiller, hunto/DIST_KD and sunshangquan/logit-standardization-KD.
"""

from kd_jax import recipes
from kd_jax.study import spec

_EPOCHS = 240.0
# The recipe that is joined to the protocol, changes for this pair, published top-1 and its source.
_ROWS = {
    "labels alone": ("", {"distill.label_weight": 1.0}, 69.06, "Tian et al. 2020"),
    "KD": ("", {}, 70.66, "Tian et al. 2020"),
    # Of mdistiller, configs/cifar100/dkd/res56_res20.yaml.
    "DKD": ("dkd", {"distill.dkd_others": 2.0}, 71.97, "Zhao et al. 2022"),
    "DIST": ("dist", {}, 71.75, "Huang et al. 2022"),
    "LSKD": ("lskd", {}, 71.43, "Sun et al. 2024"),
    "function matching": ("funmatch", {}, None, ""),
}


def get_study(argument=""):
    options = spec.options(argument, epochs=_EPOCHS, seeds=1, fraction=1.0)
    share = options["epochs"] / _EPOCHS
    note = _note(options["epochs"], options["fraction"])
    runs = []
    for row, (recipe, changes, published, source) in _ROWS.items():
        config = recipes.apply(f"crd_protocol+{recipe}" if recipe else "crd_protocol")
        config.update_from_flattened_dict(changes)
        config.teacher.arch = "resnet56"
        config.student.arch = "resnet20"
        config.total_epochs = options["epochs"]
        config.distill.warmup_epochs *= share
        spec.take_fraction(config, options["fraction"])
        if source and note:
            source += f" at {_EPOCHS:g} epochs"
        runs += spec.of_seeds(row, config, options["seeds"], published=published, source=source)
    return spec.Study(f"ResNet56 teaches ResNet20 by the protocol of CRD{note}", tuple(runs))


def _note(epochs, fraction):
    """Return what differs from the published length, for the title; empty if nothing does."""
    parts = [f"{epochs:g} epochs in place of {_EPOCHS:g}"] if epochs != _EPOCHS else []
    parts += [f"{fraction:.0%} of the images"] if fraction != 1 else []
    word = "shortened" if epochs < _EPOCHS or fraction < 1 else "lengthened"
    return f", {word}: {', '.join(parts)}" if parts else ""
