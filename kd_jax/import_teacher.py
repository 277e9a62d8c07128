"""Turn a file of PyTorch-named weights into a directory that `config.teacher.weights` can name.

python -m kd_jax.import_teacher --arch=resnet44 --src=published --out=teachers/resnet44
python -m kd_jax.import_teacher --arch=resnet44 --src=resnet44.pth --out=teachers/resnet44
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax import data, models, published, teachers, weights
from kd_jax.errors import UserError, run_command

_ARCH = flags.DEFINE_string("arch", None, "Architecture, a name in the zoo.")
_SRC = flags.DEFINE_string(
    "src", None, "File (.pth, .pt, .safetensors, .npz), or `published` to fetch it."
)
_OUT = flags.DEFINE_string("out", None, "Directory to write model.json and model.safetensors to.")
_DATASET = flags.DEFINE_string("dataset", "cifar100", "Data set that the network was trained on.")
_MEAN = flags.DEFINE_list("mean", None, "Its normalisation: mean of pixels in [0, 1], r,g,b.")
_STD = flags.DEFINE_list("std", None, "Its normalisation: std of pixels in [0, 1], r,g,b.")
_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Of a data set that is not known by name.", lower_bound=2
)
_SIZE = flags.DEFINE_integer("image_size", 32, "Pixels a side.", lower_bound=1)
_CLAIMED = flags.DEFINE_float(
    "claimed_top1", None, "Percent on the test split; a run that uses it checks the claim."
)


def main(argv: Sequence[str]) -> None:
    """Import one file."""
    del argv
    arch, source, out = _required(_ARCH), _required(_SRC), Path(_required(_OUT)).expanduser()
    models.check_arch(arch)
    if _DATASET.value not in data.NUM_CLASSES and None in (_CLASSES.value, _MEAN.value):
        known = ", ".join(data.NUM_CLASSES)
        raise UserError(
            f"unknown data set {_DATASET.value!r}: expected one of {known}, or --num_classes, "
            "--mean and --std"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: expected a directory, new or empty")
    if out.is_dir() and any(out.iterdir()) and not (out / weights.CARD_FILE).exists():
        raise UserError(f"--out={out} holds other files: expected a directory, new or empty")
    normalisation = None
    if (_MEAN.value is None) != (_STD.value is None):
        raise UserError("--mean and --std go together: give both or neither")
    if _MEAN.value is not None:
        normalisation = (_numbers(_MEAN), _numbers(_STD))
    src = Path(source).expanduser()
    if source == "published":
        src = published.fetch(arch, _DATASET.value)
    card, variables = teachers.import_file(
        arch, src, _DATASET.value, normalisation, _CLASSES.value, _SIZE.value
    )
    if _CLAIMED.value is not None:
        card = dataclasses.replace(card, claimed_top1=_CLAIMED.value)
    weights.save(out, card, variables)
    network = card.network()
    params = models.count_params(network, card.image_shape)
    print(
        f"imported {card.arch} ({params:,} parameters, {card.num_classes} classes) from "
        f"{src.name}, sha256 {card.sha256[:8]}, to {out}"
    )


def _required(flag: flags.FlagHolder) -> str:
    if not flag.value:
        raise UserError(f"--{flag.name} is missing: {flags.FLAGS[flag.name].help}")
    return flag.value


def _numbers(flag: flags.FlagHolder) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in flag.value)
    except ValueError:
        values = ()
    if len(values) != 3 or not all(0 < value < 1 for value in values):
        raise UserError(f"--{flag.name}={','.join(flag.value)}: expected three numbers in (0, 1)")
    return values


if __name__ == "__main__":
    run_command(main)
