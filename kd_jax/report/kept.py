"""Keep of a study what its figures are made from, in a few files that can be committed.

    python -m kd_jax.summary studies/crd --keep=results/crd

Of each finished run: config, metrics, result, certificate, probe, and where it was run. Weights and
checkpoints stay behind. So do names of machines and places of files: of each path the last part is
kept. `python -m kd_jax.report --study=results/crd` draws the page from such a directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.report import results, statistics
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError
from kd_jax.training import metric_logger, workdir

# Of a start's record; the rest names the machine.
_PROVENANCE = (
    "processor", "compiled", "bits_may_differ", "step", "time", "command", "devices", "python",
    "packages", "git", "trajectory", "data_fingerprint", "teacher_sha256", "student_start", "code",
)  # fmt: skip
_MEASURES = (workdir.RESULT_FILE, workdir.TEACHER_FILE, results.PROBE_FILE)
# An absolute path, and its last part. A separator behind a letter is within a relative one.
_ABSOLUTE = re.compile(
    r"""(?<![\w.~/\\-])(?:[A-Za-z]:)?(?:[/\\][^\s=,'"()@:/\\]+)*[/\\]([^\s=,'"()@:/\\]+)[/\\]?"""
)
_COMMAND_FILE = re.compile(r".*?kd_jax[/\\](.*)\.py")


def keep(root: Path, out: Path) -> list[str]:
    """Copy what a study's figures are made from, without weights, and write its tables beside it.

    What an earlier call kept of the same study is replaced, so rows can be kept as they finish.

    Args:
      root: directory of the study.
      out: directory to write to; made when missing.

    Returns:
      the names of the runs that were kept, which are those that are finished.

    Raises:
      UserError: there is no study in `root`, no run of it is finished, or `out` is not free.
    """
    study = atomic_files.read_json(root / statistics.STUDY_FILE)
    statistics.read(root)  # refuses what is no study
    _check_free(out, study)
    kept = []
    for run in study["runs"]:
        source, target = root / run["workdir"], out / run["workdir"]
        if not (source / workdir.RESULT_FILE).exists():
            continue
        config = atomic_files.read_json(source / workdir.CONFIG_FILE)
        atomic_files.write_json(target / workdir.CONFIG_FILE, _without_places(config))
        starts = [_start(record) for record in workdir.starts_of(source)]
        atomic_files.write_json(target / workdir.PROVENANCE_FILE, starts)
        for name in _MEASURES:
            if (measures := atomic_files.read_json(source / name)) is not None:
                atomic_files.write_json(target / name, _without_places(measures))
        metrics = metric_logger.METRICS_FILE  # numbers alone
        if (source / metrics).exists():
            atomic_files.write_whole(target / metrics, (source / metrics).read_bytes())
        kept.append(run["name"])
    if not kept:
        raise UserError(f"no run of the study in {root} is finished: nothing to keep")
    atomic_files.write_json(out / statistics.STUDY_FILE, study)
    statistics.write(out)
    return kept


def _check_free(out: Path, study: Mapping[str, Any]) -> None:
    """Raise `UserError` if `out` holds anything but an earlier copy of the study."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    there = atomic_files.read_json(out / statistics.STUDY_FILE) if out.is_dir() else None
    names = [run["name"] for run in study["runs"]]
    before = [run["name"] for run in there["runs"]] if isinstance(there, dict) else []
    if not before or not set(before) <= set(names):
        raise UserError(
            f"--keep={out} is there and holds something else than this study: expected a new or "
            "empty directory, or one that this study was kept in before"
        )


def _start(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of `provenance.json` without what names the machine."""
    start = {name: record[name] for name in _PROVENANCE if name in record}
    program, *arguments = start.get("command") or [""]
    if match := _COMMAND_FILE.fullmatch(program):
        name = match.group(1).removesuffix("__main__").strip("/\\").replace("/", ".")
        program = f"python -m kd_jax.{name}"
    start["command"] = [program, *map(_without_places, arguments)]
    return start


def _without_places(value: Any) -> Any:
    """Return a JSON value whose absolute paths are cut to their last part."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if not isinstance(value, str) or value.startswith("data:"):  # an image of a probe
        return value
    return _ABSOLUTE.sub(lambda match: match.group(1), value)
