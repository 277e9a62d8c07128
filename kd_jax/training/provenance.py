"""Where a run comes from: versions, revision, data, teacher, machine; one record for each start."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax

from kd_jax.kernels import native
from kd_jax.runtime import atomic_files, processor
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.training import trajectory
from kd_jax.training.workdir import PROVENANCE_FILE, starts_of

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")


def check_data(workdir: Path, fingerprint: str) -> None:
    """Raise `UserError` if the run in `workdir` began on other data."""
    starts = starts_of(workdir)
    if starts and starts[0]["data_fingerprint"] != fingerprint:
        raise UserError(
            f"the run in {workdir} began on data with the fingerprint "
            f"{starts[0]['data_fingerprint']}, but this data set's is {fingerprint}: point "
            "config.dataset.data_dir at the old data, or give this one its own --workdir"
        )


def check_devices(workdir: Path, devices: int) -> None:
    """Raise `UserError` if the run in `workdir` began on another number of devices."""
    starts = starts_of(workdir)
    if starts and starts[0]["devices"] != devices:
        raise UserError(
            f"the run in {workdir} began on {starts[0]['devices']} device(s), and these are "
            f"{devices}: with config.batch_norm.sync=False that would be another training; set "
            "config.num_devices to as many, or give this one its own --workdir"
        )


def check_student(workdir: Path, start_digest: str | None) -> None:
    """Raise `UserError` if the student of the run in `workdir` began with other weights.

    Records of the first trajectory do not have them: there it is said that nobody knows.
    """
    starts = starts_of(workdir)
    if not starts:
        return
    if "student_start" not in starts[0]:
        if start_digest is not None:
            logger.warning(
                "the run in %s has no record of the weights that its student began with: if those "
                "in config.student.weights were replaced since, its normalisation may be another, "
                "and what is measured here is wrong",
                workdir,
            )
        return
    if starts[0]["student_start"] != start_digest:
        raise UserError(
            f"the student of the run in {workdir} began with other weights, or under another "
            "normalisation, than config.student.weights holds now: bring the old ones back, or "
            "give this one its own --workdir"
        )


def check_code(workdir: Path, code: Mapping[str, str]) -> None:
    """Raise `UserError` if the run in `workdir` began with other code of its user.

    Args:
      workdir: of the run.
      code: `RunSetup.code` of now.
    """
    starts = starts_of(workdir)
    before = starts[0].get("code", {}) if starts else code
    for part in sorted({*before, *code}):
        if before.get(part) != code.get(part):
            raise UserError(
                f"the run in {workdir} began with the {part} {before.get(part, 'of kd_jax')}, and "
                f"now it is {code.get(part, 'of kd_jax')}: bring the old source back, or give this "
                "one its own workdir"
            )


def check_answers(workdir: Path, answers: str | None) -> None:
    """Raise `UserError` if the run in `workdir` began with another kind of teachers' answers.

    Args:
      workdir: of the run.
      answers: `teacher_source.kind_of_answers` of now. Old records do not have it.
    """
    starts = starts_of(workdir)
    if starts and starts[0].get("answers", answers) != answers:
        before, now = (
            f"recorded in {kind}" if kind else "asked in training"
            for kind in (starts[0]["answers"], answers)
        )
        raise UserError(
            f"the teacher's answers of the run in {workdir} were {before}, and now they are {now}, "
            "which are other numbers: set config.teacher.record, config.teacher.replay and "
            "config.teacher.record_dtype as it began, or give this one its own --workdir"
        )


def add_start(
    workdir: Path,
    step: int,
    fingerprint: str,
    teacher_sha256: str | None,
    devices: int,
    student_start: str | None = None,
    code: Mapping[str, str] = MappingProxyType({}),
    answers: str | None = None,
) -> None:
    """Add a record of this start to the run's `provenance.json`.

    Where the run goes on on another kind of processor or with other compiled passes than before,
    its bits may differ from those of an unbroken run from here on: that is said and recorded.

    Args:
      workdir: of the run.
      step: that it starts or resumes from.
      fingerprint: of the data set.
      teacher_sha256: of the teacher's weights; None without a teacher.
      devices: how many train.
      student_start: `RunSetup.start_digest` of the student.
      code: `RunSetup.code`.
      answers: `teacher_source.kind_of_answers`.
    """
    starts = starts_of(workdir)
    this_start = arithmetic()
    record = starts[-1] if starts else {}
    last_start = {name: record.get(name, value) for name, value in this_start.items()}
    if last_start != this_start:
        logger.warning(
            "this run goes on on %s and was on %s before: from step %d on its last digits may "
            "differ from those of an unbroken run",
            _words(this_start),
            _words(last_start),
            step,
        )
    starts.append(
        {
            **this_start,
            "bits_may_differ": last_start != this_start,
            "step": step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "host": socket.gethostname(),
            "platform": f"{jax.default_backend()} {platform.platform()}",
            "devices": devices,
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "git": _git_revision(),
            "trajectory": trajectory.VERSION,
            "data_fingerprint": fingerprint,
            "teacher_sha256": teacher_sha256,
            "student_start": student_start,
            "code": dict(code),
            "answers": answers,
        }
    )
    atomic_files.write_json(workdir / PROVENANCE_FILE, starts)


def arithmetic() -> dict[str, str | None]:
    """Return what decides the last digits of a step besides the code and the devices' number.

    `processor`: the class of the CPU with a digest of all that it can do, or the kind of the
    accelerator. `compiled`: what tells the
    compiled passes from others; None where there are none.
    """
    if jax.default_backend() != "cpu":
        return {"processor": jax.devices()[0].device_kind, "compiled": None}
    return {"processor": processor.cache_key(), "compiled": native.digest()}


def _words(start: dict[str, str | None]) -> str:
    compiled = start["compiled"]
    return f"{start['processor']} with " + (
        f"the compiled passes {compiled}" if compiled else "no compiled passes"
    )


def _git_revision() -> str | None:
    """Return the revision of the code, with `+` after it if files were changed since."""
    arguments = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40",
                 "--dirty=+", "--exclude=*"]  # fmt: skip
    try:
        process = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None
