"""The student of a run as it was saved, to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_jax import config as config_lib
from kd_jax.runtime import atomic_files, devices
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.teachers import certificate
from kd_jax.training import damaged_checkpoints, provenance, setup, trajectory, workdir
from kd_jax.training.checkpoints import Checkpoints, DamagedError
from kd_jax.training.setup import RunSetup
from kd_jax.weights import saved_network


def card(
    run: RunSetup,
    variables: Any,
    source: str,
    *,
    claimed_top1: float | None = None,
    certificate: dict[str, Any] | None = None,
    quantize: str = "none",
) -> saved_network.ModelCard:
    """Return the card of a run's student.

    Args:
      run: the run.
      variables: of the student, in host memory.
      source: where it comes from, in words.
      claimed_top1: percent on the test split; None without a claim.
      certificate, quantize: see `ModelCard`.
    """
    digest = saved_network.digest_of(variables)
    return saved_network.ModelCard(
        arch=run.config.student.arch,
        num_classes=run.dataset.num_classes,
        image_shape=run.dataset.image_shape,
        mean=run.student.mean,
        std=run.student.std,
        dataset=run.dataset.name,
        claimed_top1=claimed_top1,
        source=source,
        sha256=digest,
        arrays_sha256=digest,
        class_names=run.class_names,
        certificate=certificate,
        quantize=quantize,
    )


def student(directory: Path, choice: str, data_dir: str | None = None) -> tuple[RunSetup, int, Any]:
    """Return a run's `RunSetup`, a step, and the student's variables then, on all devices.

    Args:
      directory: of the run; only read.
      choice: `last`, or `best` on validation.
      data_dir: where its data set is now; None for the place that its config names.

    Raises:
      UserError: there is no such run, or no such checkpoint, or it is damaged; or its data, its
        teacher or the weights that it started from are others now.
    """
    directory = reachable(directory, "the workdir").resolve()
    config = workdir.load_config(directory)
    if not (directory / workdir.CHECKPOINTS).is_dir():
        raise UserError(f"the run in {directory} has no checkpoint yet: let it train first")
    with config.unlocked():
        config.num_devices = 0  # those of this machine: it need not be the one that trained
        config.batch_norm.sync = False  # what is only looked at has no batch to share
        if config.teacher.weights:  # it answers itself: what was recorded need not be there
            config.teacher.record = config.teacher.replay = ""
        config.update_from_flattened_dict(config_lib.unread(config))
        if data_dir is not None:
            config.dataset.data_dir = data_dir
    run = setup.build(config)
    provenance.check_data(directory, run.dataset.fingerprint)
    provenance.check_student(directory, run.start_digest)
    record = atomic_files.read_json(directory / workdir.TEACHER_FILE)
    if run.teachers is not None and record is not None:
        certificate.check_same(record, run.teachers, directory)
    checkpoints = Checkpoints(directory / workdir.CHECKPOINTS, keep=1, read_only=True)
    step = checkpoints.latest_step() if choice == "last" else checkpoints.best_step()
    if step is None:
        raise UserError(f"the run in {directory} has no {choice} checkpoint yet")
    try:
        version = checkpoints.version(step)
        trajectory.check_network(directory, config.student.arch, version)
        template = trajectory.as_saved(run.initial_state(), version)
        state = checkpoints.restore(template, step, version)
    except DamagedError as error:
        raise damaged_checkpoints.cannot_be_shown(directory, step, error) from None
    return run, step, devices.replicate(state.variables, run.devices)
