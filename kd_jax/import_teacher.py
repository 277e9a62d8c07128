"""Turn a file of PyTorch-named weights into a directory that `config.teacher.weights` can name.

python -m kd_jax.import_teacher --arch=resnet44 --src=published --out=teachers/resnet44
python -m kd_jax.import_teacher --arch=resnet44 --src=resnet44.pth --out=teachers/resnet44
python -m kd_jax.import_teacher --arch=resnet20 --src=mine.pth --out=teachers/mine \
    --class_names=classes.txt --mean=0.5,0.5,0.5 --std=0.25,0.25,0.25

Without flags it says which architectures it knows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from absl import flags

from kd_jax.data import catalog
from kd_jax.models import zoo
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command
from kd_jax.weights import published, state_files

_LONG_MB = 100  # of a file that takes seconds to read; a wrong one is to be one sentence

_ARCH = flags.DEFINE_string("arch", None, "Architecture, a name of `python -m kd_jax.models`.")
_SRC = flags.DEFINE_string(
    "src", None, "File on this machine (.pth, .pt, .safetensors, .npz); or `published`: fetch it."
)
_OUT = flags.DEFINE_string("out", None, "Directory to write model.json and model.safetensors to.")
_DATASET = flags.DEFINE_string("dataset", "cifar100", "Data set that the network was trained on.")
_MEAN = flags.DEFINE_list(
    "mean", None, "Normalisation of the network: mean of pixels in [0, 1], r,g,b."
)
_STD = flags.DEFINE_list(
    "std", None, "Normalisation of the network: std of pixels in [0, 1], r,g,b."
)
_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Classes of a data set that is not known by name.", lower_bound=2
)
_SIZE = flags.DEFINE_integer("image_size", 32, "Side of its images, in pixels.", lower_bound=1)
_NAMES = flags.DEFINE_string(
    "class_names",
    None,
    "Text file with the names of the classes, one a line, in the order of the network's outputs.",
)
_KEY = flags.DEFINE_string(
    "key", "", "Key of the weights in a file with several sets of them, such as state_dict_ema."
)
_CLAIMED = flags.DEFINE_float(
    "claimed_top1", None, "Percent on the test split; a run that uses it checks the claim."
)


def main(argv: Sequence[str]) -> None:
    """Import one file of weights."""
    del argv
    if not _ARCH.value:
        raise UserError(
            f"--arch is missing: expected one of {', '.join(zoo.NAMES)}; --src=FILE.pth (or "
            "--src=published) and --out=DIR are needed besides"
        )
    arch, source, out = _ARCH.value, _required(_SRC), reachable(_required(_OUT), "--out")
    zoo.check_arch(arch)
    names = _class_names()
    num_classes = len(names) if names else _CLASSES.value
    _check_what_is_known(num_classes)
    src = reachable(source, "--src")
    if source != "published":
        state_files.check(src)  # before JAX is imported, which takes seconds
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: expected a directory, new or empty")
    from kd_jax import models
    from kd_jax.teachers import load
    from kd_jax.weights import saved_network

    if out.is_dir() and not saved_network.may_be_written(out):
        raise UserError(f"--out={out} holds other files: expected a directory, new or empty")
    normalisation = None
    if (_MEAN.value is None) != (_STD.value is None):
        raise UserError("--mean and --std go together: give both or neither")
    if _MEAN.value is not None:
        normalisation = (_mean(), _std())
    if source == "published":
        src = published.fetch(arch, _DATASET.value)
    size = src.stat().st_size / 1e6
    if size > _LONG_MB:
        logger.info("reading %s (%.0f MB) as %s", src, size, arch)
    card, variables = load.import_file(
        arch,
        src,
        _DATASET.value,
        normalisation,
        num_classes,
        _SIZE.value,
        key=_KEY.value,
        names=names,
    )
    if _CLAIMED.value is not None:
        card = dataclasses.replace(card, claimed_top1=_CLAIMED.value)
    saved_network.save(out, card, variables)
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


def _check_what_is_known(num_classes: int | None) -> None:
    """Raise `UserError` unless classes and normalisation are given, or known of the data set.

    Args:
      num_classes: that were given, or named; None: those of the data set.
    """
    name, is_given = _DATASET.value, flags.FLAGS["dataset"].present
    known, listed = catalog.facts(name), ", ".join(catalog.sets_with_known_classes())
    missing = ["--mean and --std"] * (_MEAN.value is None and _STD.value is None)
    if known.num_classes is None:
        if num_classes is None:
            missing.insert(0, "--num_classes (or --class_names)")
        if missing:
            raise UserError(
                f"unknown data set {name!r}: expected one of {listed}, or besides "
                f"{', '.join(missing)}, which say what the network was trained on"
            )
    elif missing and not is_given and num_classes not in (None, known.num_classes):
        raise UserError(
            f"a network of {num_classes} classes is none of {name}, which has "
            f"{known.num_classes} and is what --dataset is by itself: give --dataset, one of "
            f"{listed}, or --mean and --std, the normalisation that it was trained under"
        )


def _class_names() -> tuple[str, ...] | None:
    if not _NAMES.value:
        return None
    path = reachable(_NAMES.value, "--class_names")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--class_names={path} cannot be read ({error}): expected a text file with a name a "
            "line"
        ) from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) < len(names) or len(names) < 2:
        raise UserError(
            f"--class_names={path} has {len(names)} names, {len(set(names))} of them different: "
            "expected a name of its own for each class"
        )
    if _CLASSES.value not in (None, len(names)):
        raise UserError(
            f"--num_classes={_CLASSES.value}, but {path} names {len(names)} classes: leave one out"
        )
    return names


def _mean() -> tuple[float, ...]:
    values = _numbers(_MEAN)
    if not all(0 <= value <= 1 for value in values):
        raise UserError(
            f"--mean={','.join(_MEAN.value or ())}: expected three numbers in [0, 1], since pixels "
            "are in [0, 1] here; divide those of pixels up to 255 by 255, the std too"
        )
    return values


def _std() -> tuple[float, ...]:
    values = _numbers(_STD)
    if not all(value > 0 for value in values):
        raise UserError(f"--std={','.join(_STD.value or ())}: expected three numbers above 0")
    return values


def _numbers(flag: flags.FlagHolder) -> tuple[float, ...]:
    try:
        values = tuple(float(value) for value in flag.value)
    except ValueError:
        values = ()
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise UserError(
            f"--{flag.name}={','.join(flag.value)}: expected three numbers that are finite"
        )
    return values


if __name__ == "__main__":
    run_command(main)
