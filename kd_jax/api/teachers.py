"""`kd_jax.teacher`: any network as a teacher."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_jax.data import catalog
from kd_jax.runtime.errors import UserError
from kd_jax.teachers.teacher import ForeignNetwork

Normalisation = str | tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """A teacher for `kd_jax.distill`.

    Attributes:
      weights: what names it in `config.teacher.weights`.
      network: the object itself; None for one that is read.
      fields: of `config.teacher`, by name.
    """

    weights: str
    network: ForeignNetwork | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def teacher(
    network: Any,
    variables: Any = None,
    *,
    name: str | None = None,
    normalisation: Normalisation | None = None,
    channels: str = "own",
    input_size: int = 0,
    class_names: Sequence[str] | None = None,
    claimed_top1: float | None = None,
) -> TeacherSpec:
    """Return a network as a teacher.

    Args:
      network: a path (of weights, of a directory that `kd_jax.import_teacher` made, or of a
        finished run); a text of another library, such as `torch:package.module:factory@FILE` or
        `onnx:FILE` (see `config.teacher.weights`); a `torch.nn.Module`, which is frozen and put
        into eval mode for good, or a Keras model; a Linen
        module, an NNX module; or a function `f(variables, images) -> logits`.
      variables: of a Linen module or of a function.
      name: for messages; by default that of the class or function.
      normalisation: a name (`config.teacher.normalisation`), or `(mean, std)` of pixels in [0, 1],
        red first; None: what the network says, otherwise that of the data set.
      channels: `rgb` or `bgr`; `own`: what the network says, otherwise `rgb`.
      input_size: height and width that the view is resized to inside the teacher; 0: as it comes.
      class_names: of its outputs, in their order, where it has other classes than the data set.
      claimed_top1: percent on the test split that it must reach; None: nothing is claimed.

    Raises:
      UserError: it is none of that.
    """
    fields: dict[str, Any] = {}  # what is not given is the config's
    if channels != "own":
        fields["channels"] = channels
    if input_size:
        fields["input_size"] = input_size
    if isinstance(normalisation, str):
        fields["normalisation"] = normalisation
    facts: dict[str, Any] = {}
    if normalisation is not None and not isinstance(normalisation, str):
        facts["mean"], facts["std"] = (tuple(map(float, each)) for each in normalisation)
        fields["normalisation"] = "own"
    is_read = isinstance(network, str | Path)
    if claimed_top1 is not None:
        (fields if is_read else facts)["claimed_top1"] = float(claimed_top1)
    if class_names is not None:
        facts["class_names"] = tuple(class_names)
    if is_read:
        if facts or variables is not None or name:
            raise UserError(
                f"the teacher {network} is read from its place: expected no variables, name, "
                "class_names or (mean, std) with it, and normalisation as one of "
                f"{', '.join(catalog.NORMALISATIONS)}"
            )
        return TeacherSpec(str(network), None, fields)
    label = f"python:{name or getattr(network, '__name__', type(network).__name__)}"
    return TeacherSpec(label, _wrap(network, variables, label, facts), fields)


def _wrap(network: Any, variables: Any, label: str, facts: dict[str, Any]) -> ForeignNetwork:
    """Return an object as a teacher's network, by what it is."""
    torch = sys.modules.get("torch")  # whoever has a module of PyTorch has imported it
    if torch is not None and isinstance(network, torch.nn.Module):
        from kd_jax.teachers import torch_teachers

        _refuse_variables(variables, label)
        return torch_teachers.wrap(network, label, "a Python object", **facts)
    if type(network).__module__.partition(".")[0] == "keras" and hasattr(network, "input_shape"):
        from kd_jax.teachers import file_teachers

        _refuse_variables(variables, label)
        return file_teachers.of_keras_model(network, label, "a Python object", **facts)
    from kd_jax.teachers import jax_teachers

    return jax_teachers.of_object(network, variables, label, **facts)


def _refuse_variables(variables: Any, label: str) -> None:
    if variables is not None:
        raise UserError(f"the teacher {label} has its own variables: expected none beside it")
