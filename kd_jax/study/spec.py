"""What a study is: a list of runs, and how a file in `configs/studies/` writes one down.

Such a file has a `get_study(argument="")` that returns a `Study`. A row of its table is one
question; the runs of a row differ in nothing but the seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax.config import config_file
from kd_jax.data import sources, tfds_source
from kd_jax.runtime.errors import UserError

FOLDER = "runs"  # of a study's directory, with a directory for each run
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}")
_WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".npz")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
      name: of its directory; no other run of the study has it.
      row: of the table.
      config: of the whole run. Where it names a teacher's architecture and no weights, the study
        finds them.
      teacher: name of the run of this study whose student teaches this one; or empty.
      published: top-1 in percent that others report for this row, or None.
      source: where they do.
    """

    name: str
    row: str
    config: ConfigDict
    teacher: str = ""
    published: float | None = None
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A table of runs.

    Attributes:
      title: of the page.
      runs: in the order in which they are taken and shown.
      baseline: the row that the others are compared with; the first one where it is empty.
    """

    title: str
    runs: tuple[Run, ...]
    baseline: str = ""


def of_seeds(row: str, config: ConfigDict, seeds: int, **options: Any) -> list[Run]:
    """Return the runs of one row, under the seeds 0, 1, ...

    Args:
      row: its label; the runs' names are made of it.
      config: of all of them, but for the seed.
      seeds: how many.
      options: further attributes of `Run`.
    """
    runs = []
    for seed in range(seeds):
        own = config.copy_and_resolve_references()
        own.seed = seed
        runs.append(Run(f"{slug(row)}-s{seed}", row, own.lock(), **options))
    return runs


def grid(config: ConfigDict, fields: Mapping[str, Sequence[Any]]) -> dict[str, ConfigDict]:
    """Return a config for every combination of some fields' values.

    Args:
      config: the values of all other fields.
      fields: dotted paths to the values that they take.

    Returns:
      labels such as `mixup.kind=none, distill.temperature=2.0` to configs; the last field changes
      fastest.
    """
    configs = {}
    for values in itertools.product(*fields.values()):
        chosen = dict(zip(fields, values, strict=True))
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict(chosen)
        configs[", ".join(f"{path}={value}" for path, value in chosen.items())] = own
    return configs


def slug(label: str) -> str:
    """Return a label as a part of a name: lower case, and a dash for what is unsafe in a path."""
    return re.sub(r"[^a-z0-9._=+]+", "-", label.lower()).strip("-.")


def options(argument: str, **defaults: Any) -> dict[str, Any]:
    """Return the options of a study, from what stands behind the colon of `--config=FILE:ARGUMENT`.

    Args:
      argument: such as `epochs=3,seeds=2`.
      defaults: every option that the study has, and its value where none is given; the given
        value becomes of the same type, a number where it is None.

    Raises:
      ValueError: an option is unknown, or its value is not of that type, or not above 0.
    """
    chosen = dict(defaults)
    for part in filter(None, argument.split(",")):
        name, _, text = part.partition("=")
        if name not in defaults:
            known = ", ".join(f"{key}=..." for key in defaults)
            raise ValueError(f"{part!r} is no option of this study, expected {known}")
        kind = float if defaults[name] is None else type(defaults[name])
        try:
            chosen[name] = kind(text)
        except ValueError:
            raise ValueError(f"{part!r} is not understood, expected a number") from None
        if kind is not str and not 0 < chosen[name] < 1e9:
            raise ValueError(f"{part!r} is not possible, expected a number above 0")
    return chosen


def take_fraction(config: ConfigDict, fraction: float) -> None:
    """Train on the first part of a data set of tfds, and hold out as much less for validation.

    Args:
      config: changed here.
      fraction: in (0, 1], a whole number of percent.

    Raises:
      ValueError: it is not, or the data set has no parts.
    """
    if config.dataset.name in (sources.DIGITS, sources.FOLDER):
        raise ValueError(f"fraction={fraction} is for the data sets of tfds, expected 1")
    percent = round(100 * fraction)
    if not 1 <= percent <= 100 or abs(percent - 100 * fraction) > 1e-6:
        raise ValueError(f"fraction={fraction} is not possible, expected 0.01, 0.02, ... 1")
    if percent < 100:
        config.dataset.train_split += f"[:{percent}%]"
        config.dataset.val_examples = max(1, config.dataset.val_examples * percent // 100)


def teacher_weights(run: Run, root: Path, teachers: Path | None) -> str:
    """Return where the weights of a run's teacher are; empty for a run without one.

    Raises:
      UserError: they are not there.
    """
    options = run.config.teacher
    dataset = tfds_source.base_name(run.config.dataset.name)
    if run.teacher:
        return str(root / FOLDER / run.teacher)
    if options.weights or not options.arch:
        return options.weights
    from kd_jax.config import checks

    way = checks.ways_to_a_teacher(options.arch, dataset)
    if teachers is None:
        raise UserError(
            f"no weights for its teacher {options.arch}: give --teachers=DIR, expected to hold "
            f"DIR/{options.arch} or DIR/{dataset}_{options.arch}.pth; {way}"
        )
    places = [teachers / options.arch]
    for pattern in (f"{dataset}_{options.arch}", f"{dataset}_{options.arch}-*", options.arch):
        places += [path for suffix in _WEIGHT_FILES for path in teachers.glob(pattern + suffix)]
    for place in places:
        if place.exists():
            return str(place)
    raise UserError(
        f"no weights for its teacher {options.arch} in {teachers}: expected {options.arch}/ or "
        f"{dataset}_{options.arch}.pth there; {way}"
    )


def load(text: str) -> Study:
    """Return the study of `FILE` or `FILE:ARGUMENT`.

    Raises:
      UserError: there is no such file, it is no study, or the study cannot be.
    """
    study = config_file.call(text, "get_study", "configs/studies/demo.py")
    name = text.partition(":")[0]
    if not isinstance(study, Study):
        raise UserError(
            f"get_study() of {name} returns a {type(study).__name__}: expected a "
            "kd_jax.study.spec.Study"
        )
    if problems := _problems(study):
        raise UserError(f"the study in {name} cannot be: {'; '.join(problems)}")
    return study


def _problems(study: Study) -> list[str]:
    """Say everything that is wrong with a list of runs."""
    problems = [] if study.runs else ["it has no runs, expected at least one"]
    rows = {run.row for run in study.runs}
    if study.baseline and study.baseline not in rows:
        problems.append(
            f"its baseline is {study.baseline!r}, expected one of its rows {', '.join(rows)}"
        )
    counts = Counter(run.name.lower() for run in study.runs)  # some file systems ignore case
    problems += [f"{count} runs are called {n}, expected one" for n, count in counts.items()
                 if count > 1]  # fmt: skip
    teachers = {run.name: run.teacher for run in study.runs}
    for run in study.runs:
        if not _SAFE_NAME.fullmatch(run.name):
            problems.append(
                f"a run is called {run.name!r}, expected up to 100 letters, digits and ._=+-"
            )
        if run.teacher and run.teacher not in teachers:
            problems.append(f"the teacher of {run.name} is {run.teacher!r}, expected a run of it")
        elif _is_in_a_ring(run.name, teachers):
            problems.append(f"{run.name} is its own teacher's teacher, expected a beginning")
    return problems + [problem for row in rows for problem in _problems_of_row(study, row)]


def _is_in_a_ring(name: str, teachers: Mapping[str, str]) -> bool:
    seen, at = {name}, teachers.get(name)
    while at and at not in seen:
        seen.add(at)
        at = teachers.get(at)
    return bool(at)


def _problems_of_row(study: Study, row: str) -> list[str]:
    first, *others = [run for run in study.runs if run.row == row]
    flat = config_lib.flatten(first.config) | {"published": first.published}
    problems, seeds = [], {first.config.seed}
    for run in others:
        theirs = config_lib.flatten(run.config) | {"published": run.published}
        changed = [path for path in flat | theirs if flat.get(path) != theirs.get(path)]
        if changed and changed != ["seed"]:
            problems.append(
                f"{first.name} and {run.name} are of one row and differ in {', '.join(changed)}, "
                "expected to differ in the seed alone"
            )
        if run.config.seed in seeds:
            problems.append(f"{run.name} has the seed of another run of its row, expected its own")
        seeds.add(run.config.seed)
    return problems
