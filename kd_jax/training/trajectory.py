"""The version of the trajectory: what a config and a seed give, and what a checkpoint holds.

It rises with every change after which the same command trains otherwise. A run that began under
another version is not resumed: half of it would be one training and half another. It can still be
evaluated, probed and reported.
"""

from __future__ import annotations

from typing import Any

from kd_jax.runtime.errors import UserError

VERSION = 2
# What each version changed. Workdirs and checkpoints that name none are of version 1.
CHANGES = {
    2: "the gradient is clipped before L2 is added, parts of a batch do not depend on devices, "
    "ResNet's last layer begins as its reference's, networks that start from weights keep their "
    "batch statistics, the order of examples, mixup's shares and CutMix's boxes are drawn anew, "
    "mobilenet_v3_large_cifar is its reference's",
}
# Networks that a version made others of, though their variables have the same shapes.
_OTHER_NETWORKS = {2: ("mobilenet_v3_large_cifar",)}


def check(where: str, version: int) -> None:
    """Raise `UserError` if a run is of another version.

    Args:
      where: what is of that version, to begin a sentence.
      version: its own.
    """
    if version == VERSION:
        return
    if version > VERSION:
        reason = "a newer kd_jax began it"
    else:
        reason = "; ".join(CHANGES[number] for number in range(version + 1, VERSION + 1))
    raise UserError(
        f"{where} is of version {version} of the trajectory, and this kd_jax trains version "
        f"{VERSION} ({reason}): resume it with the kd_jax that began it, or begin anew in another "
        "--workdir; kd_jax.evaluate, probe and report can still read it"
    )


def check_network(where: object, arch: str, version: int) -> None:
    """Raise `UserError` if a student of some version is another network now.

    Its variables would fit, and what is measured would be of a network that was never trained.
    """
    changed = [number for number, archs in _OTHER_NETWORKS.items() if arch in archs]
    if any(version < number for number in changed):
        raise UserError(
            f"the student in {where} is {arch} as version {version} of the trajectory had it, "
            "which is another network now: look at it with the kd_jax that trained it"
        )


def as_saved(state: Any, version: int) -> Any:
    """Return a `state.TrainState` with the leaves that a checkpoint of some version has."""
    if version > 1:
        return state
    sums = {name: leaf for name, leaf in state.metric_sums.items() if name != "steps"}
    return state.replace(metric_sums=sums)
