"""The teachers of a run that is only planned: what their weights, or their names, tell of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from kd_jax import models
from kd_jax.models import zoo
from kd_jax.runtime.errors import UserError, in_short, reachable
from kd_jax.teachers import foreign, recording
from kd_jax.training import planned_step, workdir
from kd_jax.weights import saved_network

NOT_GIVEN = "(not given)"  # weights that are not there yet


@dataclasses.dataclass(frozen=True)
class Planned:
    """A teacher before it is loaded.

    Attributes:
      words: what is known of it.
      network: of the zoo, with the classes of the data; None where it is not one, or not known.
      in_step: whether it answers in the step, and so is counted there.
    """

    words: str
    network: models.Network | None = None
    in_step: bool = True


def find(config: ConfigDict, num_classes: int, shape: tuple[int, int, int]) -> list[Planned]:
    """Return every teacher of a run; none is loaded into a device.

    Args:
      config: of the run; weights that are not there are no error.
      num_classes: of the data set.
      shape: of its images.

    Raises:
      UserError: weights are there, and are not what the config says.
    """
    options = config.teacher
    if options.replay:
        recorded = recording.Recording(options.replay)
        archs = "+".join(card.arch for card in recorded.header.cards)
        return [Planned(f"{archs}, replayed from {options.replay}", in_step=False)]
    return [
        _one(place, options.arch if number == 0 else "", options.dtype, num_classes, shape)
        for number, place in enumerate((options.weights, *options.ensemble))
    ]


def _one(
    place: str, arch: str, dtype: str, num_classes: int, shape: tuple[int, int, int]
) -> Planned:
    if foreign.is_foreign(place):
        return _foreign(place, num_classes)
    path = reachable(place, "a teacher's weights")
    found, remark = _what_is_in(path)
    if found and arch and found != arch:
        raise UserError(
            f"config.teacher.arch is {arch}, but {path} holds a {found}: change one, or leave "
            "config.teacher.arch empty"
        )
    name = found or arch
    if not name or name.startswith(zoo.PYTHON):
        return Planned(f"{name.removeprefix(zoo.PYTHON) or 'as its weights say'}{remark}")
    network = planned_step.network(name, num_classes, dtype)
    if not path.exists():
        remark = "" if place == NOT_GIVEN else f"; {place} is not there yet"
    return Planned(f"{cost(network, shape)}{remark}", network)


def _what_is_in(path: Path) -> tuple[str, str]:
    """Return the architecture of a network in a directory, and what else its card says."""
    if (path / saved_network.CARD_FILE).exists():
        card = saved_network.load_card(path)
        top1 = (card.certificate or {}).get("top1")
        says = f", {card.num_classes} classes of {card.dataset}"
        if top1 is not None:
            says += f", top-1 {top1:.2f} %"
        elif card.claimed_top1 is not None:
            says += f", top-1 {card.claimed_top1:.2f} % claimed, not measured"
        return card.arch, says
    if (path / workdir.CONFIG_FILE).exists():
        return workdir.load_config(path).student.arch, "; that run is not finished"
    return "", ""


def _foreign(place: str, num_classes: int) -> Planned:
    """Return a teacher of another library, loaded there to see that it can be."""
    try:
        network = foreign.load(place, num_classes)
    except UserError as error:
        return Planned(f"{place}; {in_short(error)}", in_step=False)
    where = "in the step" if network.apply is not None else "on the host, between the steps"
    size = f", images of {network.input_size} pixels" if network.input_size else ""
    return Planned(f"{network.name}, answers {where}{size}", in_step=network.apply is not None)


def cost(network: models.Network, shape: tuple[int, int, int]) -> str:
    """Return a network's architecture, parameters and multiply-adds in words."""
    params, madds = models.count_params(network, shape), models.count_madds(network, shape)
    return f"{network.arch}, {params / 1e6:.2f} M parameters, {madds / 1e6:.2f} M multiply-adds"
