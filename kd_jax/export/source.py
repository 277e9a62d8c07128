"""What is exported: a network with its variables, and the data set that it is verified on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import kd_jax
from kd_jax import models
from kd_jax.config import default_config
from kd_jax.data import arrays, catalog
from kd_jax.data import dataset as dataset_lib
from kd_jax.export import training
from kd_jax.models import quantize, zoo
from kd_jax.runtime import atomic_files
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import certificate, heads, load
from kd_jax.training import provenance, saved_student, workdir
from kd_jax.weights import saved_network


@dataclasses.dataclass(frozen=True)
class Source:
    """A network and its data.

    Attributes:
      card: of the network; its `class_names` are those of the outputs, if anybody knows them.
      variables: `params` and `batch_stats`, in host memory.
      dataset: the data set of the run, or the one that the card names.
      outputs: index of the network's output for each class of the data set.
      step: of the checkpoint that was taken; None for the network that a run or an import left.
      teacher: content of the run's `teacher.json`; None if there is none.
      training: how its run trained it, see `training.of_run`; None where no run is known.
      was_quantized: whether the network was trained with int8's numbers, and this is without.
    """

    card: saved_network.ModelCard
    variables: Any
    dataset: dataset_lib.DataSet
    outputs: tuple[int, ...]
    step: int | None
    teacher: dict[str, Any] | None
    training: dict[str, Any] | None = None
    was_quantized: bool = False

    @property
    def network(self) -> models.Network:
        """The network, in float32 whatever it was trained in; with int8's numbers if in those."""
        return self.card.network()

    @property
    def is_quantized(self) -> bool:
        """Whether the network was trained with int8's numbers, and has their ranges."""
        return self.card.quantize == saved_network.INT8

    def in_floats(self) -> Source:
        """Return the same weights in a network that rounds nothing."""
        card = dataclasses.replace(self.card, quantize="none")
        variables = quantize.without_ranges(self.variables)
        return dataclasses.replace(
            self, card=card, variables=variables, was_quantized=self.is_quantized
        )

    def texts(self) -> dict[str, str]:
        """Return what a file says of the network, where its format has a place for texts."""
        return {
            "arch": self.card.arch,
            "dataset": self.card.dataset,
            "class_names": json.dumps(self.card.class_names),
            "input": "uint8 [batch, H, W, 3], RGB; normalised inside",
            "producer": f"kd_jax {kd_jax.__version__}",
        }


def check(directory: Path, checkpoint: str | None) -> None:
    """Raise `UserError` unless a directory has what `read` needs. Reads no array and no image."""
    if not directory.is_dir():
        raise UserError(
            f"no directory {directory}: expected --workdir to be the workdir of a run, or a "
            "directory made by import_teacher"
        )
    is_run = (directory / workdir.CONFIG_FILE).exists()
    if checkpoint is not None:
        if not is_run:
            raise UserError(
                f"{directory} is no run ({workdir.CONFIG_FILE} is not there), so it has no "
                "checkpoints: leave --checkpoint out"
            )
        return
    if (directory / saved_network.CARD_FILE).exists():
        arch = saved_network.load_card(directory).arch
        if arch not in zoo.NAMES:
            raise UserError(
                f"{directory} holds a network called {arch}, which is not in the zoo, so nothing "
                f"here can build it: expected one of {', '.join(zoo.NAMES)}; a module of your own "
                "has its place there too (docs/adding_a_model.md)"
            )
        return
    if is_run:
        raise UserError(
            f"the run in {directory} is not finished, so it has left no network yet: run its "
            "command again until it ends, or give --checkpoint=best or --checkpoint=last"
        )
    raise UserError(
        f"{directory} holds no network: expected the workdir of a run, or {saved_network.CARD_FILE}"
        f" and {saved_network.ARRAYS_FILE}"
    )


def read(directory: Path, checkpoint: str | None, data_dir: str | None) -> Source:
    """Return the network in a directory, and its data set.

    Args:
      directory: the workdir of a run, or a directory made by `import_teacher`.
      checkpoint: `best` or `last`; None for the network that a finished run or an import left.
      data_dir: where the data set is; None for the place that the run's config names.

    Raises:
      UserError: network, checkpoint or data set are not there, are damaged, or do not fit.
    """
    check(directory, checkpoint)
    if data_dir is not None:
        data_dir = str(reachable(data_dir, "--data_dir"))
    if checkpoint is not None:
        return _of_checkpoint(directory, checkpoint, data_dir)
    card, variables = saved_network.load(directory)
    is_run = (directory / workdir.CONFIG_FILE).exists()
    options = workdir.load_config(directory).dataset if is_run else _options_of(card)
    options = options.copy_and_resolve_references()
    if data_dir is not None:
        options.data_dir = data_dir
    dataset = _load_data(options)
    if is_run:
        provenance.check_data(directory, dataset.fingerprint)
    load.check_images(card, dataset.name, dataset.image_shape)
    if differences := certificate.differences(card, dataset):
        raise UserError(
            f"the network in {directory} cannot be verified on this {dataset.name} "
            f"({'; '.join(differences)}): point --data_dir or TFDS_DATA_DIR at its data"
        )
    return _with_outputs(directory, card, variables, dataset, dataset.class_names, None)


def data_places(directory: Path, data_dir: str | None) -> list[Path]:
    """Return the directories of images that `read` would read, as far as they are named."""
    named = [data_dir]
    if (directory / workdir.CONFIG_FILE).exists():
        named.append(workdir.load_config(directory).dataset.data_dir)
    return [Path(place).expanduser() for place in named if place]


def _of_checkpoint(directory: Path, checkpoint: str, data_dir: str | None) -> Source:
    """Return the student of a run as one of its checkpoints has it."""
    run, step, variables = saved_student.student(directory, checkpoint, data_dir)
    variables = jax.device_get(variables)
    is_quantized = quantize.have_ranges(variables)
    if not is_quantized:  # those of a run that has not come to that are empty
        variables = quantize.without_ranges(variables)
    card = saved_student.card(
        run,
        variables,
        f"the {checkpoint} checkpoint of a run, step {step}",
        quantize=saved_network.INT8 if is_quantized else "none",
    )
    return _with_outputs(directory, card, variables, run.dataset, run.class_names, step)


def _with_outputs(
    directory: Path,
    card: saved_network.ModelCard,
    variables: Any,
    dataset: dataset_lib.DataSet,
    names: heads.Names,
    step: int | None,
) -> Source:
    outputs = heads.outputs(card, names, dataset.num_classes, dataset.name)
    output_names = heads.names_of(card)
    if output_names is None and names is not None:
        logger.warning(
            "the network %s does not name its classes: its %d outputs are taken for those of %s in "
            "the order of their labels", card.source, card.num_classes, dataset.name,
        )  # fmt: skip
        output_names = names
    return Source(
        card=dataclasses.replace(card, class_names=output_names, image_shape=dataset.image_shape),
        variables=variables,
        dataset=dataset,
        outputs=tuple(outputs or range(dataset.num_classes)),
        step=step,
        teacher=atomic_files.read_json(directory / workdir.TEACHER_FILE),
        training=training.of_run(directory, step),
    )


def _options_of(card: saved_network.ModelCard) -> ConfigDict:
    """Return `config.dataset` for the data set that a card names, with nothing held out."""
    options = default_config().dataset
    options.name, options.val_examples = card.dataset, 0
    height, width, _ = card.image_shape
    if height == width != catalog.facts(card.dataset).image_size:
        options.image_size = height
    return options


def _load_data(options: ConfigDict) -> dataset_lib.DataSet:
    if options.name == arrays.NAME:
        raise UserError(
            "the network learned from arrays that were given from Python, which this command does "
            "not have to verify a file on: train from a folder of images "
            f"(config.dataset.name={catalog.FOLDER}) what is to be exported"
        )
    try:
        return dataset_lib.load(options)
    except UserError as error:
        raise UserError(
            f"the data set {options.name}, on which an exported file is verified, cannot be read: "
            f"{error} (for this command: --data_dir=DIR, or TFDS_DATA_DIR)"
        ) from None
