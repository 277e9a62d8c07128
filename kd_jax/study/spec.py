"""The specification of a study, a list of runs, and helpers for files in `configs/studies/`.

Such a file defines `get_study(argument="")`, which returns a `Study`. A row of its table is one
question; the runs of a row differ only in the seed.
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
from kd_jax.data import catalog, tfds_source
from kd_jax.runtime.errors import UserError

FOLDER = "runs"  # of a study's directory; it holds a workdir per run
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}")
_WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".npz")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
      name: of its directory, unique in the study.
      row: of the table.
      config: of the run. If it names a teacher's architecture without weights, `teacher_weights`
        finds them.
      teacher: name of the run of this study that trains the teacher; empty if there is none.
      published: published top-1 of this row in percent, or None.
      source: of the published value.
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
      runs: in the order in which they are trained and shown.
      baseline: the row that the others are compared with; empty for the first row.
    """

    title: str
    runs: tuple[Run, ...]
    baseline: str = ""


def of_seeds(row: str, config: ConfigDict, seeds: int, **options: Any) -> list[Run]:
    """Return the runs of one row, with the seeds 0, 1, ...

    Args:
      row: label, from which the names of the runs are made.
      config: of all runs, except for the seed.
      seeds: number of seeds.
      options: further attributes of `Run`.
    """
    runs = []
    for seed in range(seeds):
        seed_config = config.copy_and_resolve_references()
        seed_config.seed = seed
        runs.append(Run(f"{slug(row)}-s{seed}", row, seed_config.lock(), **options))
    return runs


def grid(config: ConfigDict, fields: Mapping[str, Sequence[Any]]) -> dict[str, ConfigDict]:
    """Return a config for each combination of values of some fields.

    Args:
      config: has the values of all other fields.
      fields: values by the dotted path of the field.

    Returns:
      configs by labels such as `mixup.kind=none, distill.temperature=2.0`; the last field changes
      fastest.
    """
    configs = {}
    for values in itertools.product(*fields.values()):
        overrides = dict(zip(fields, values, strict=True))
        combined_config = config.copy_and_resolve_references()
        combined_config.update_from_flattened_dict(overrides)
        configs[", ".join(f"{path}={value}" for path, value in overrides.items())] = combined_config
    return configs


def slug(label: str) -> str:
    """Return a label as part of a file name: lower case, with dashes for unsafe characters."""
    return re.sub(r"[^a-z0-9._=+]+", "-", label.lower()).strip("-.")


def options(argument: str, **defaults: Any) -> dict[str, Any]:
    """Parse the options of a study: the argument in `--config=FILE:ARGUMENT`.

    Args:
      argument: such as `epochs=3,seeds=2`.
      defaults: all options of the study with their default values. A value is converted to the
        type of its default, or to a float if the default is None.

    Raises:
      ValueError: an option is unknown, or its value has the wrong type or is not above 0.
    """
    values = dict(defaults)
    for part in filter(None, argument.split(",")):
        name, _, text = part.partition("=")
        if name not in defaults:
            names = ", ".join(f"{key}=..." for key in defaults)
            raise ValueError(f"{part!r} is no option of this study, expected {names}")
        kind = float if defaults[name] is None else type(defaults[name])
        try:
            values[name] = kind(text)
        except ValueError:
            raise ValueError(f"{part!r} is not understood, expected a number") from None
        if kind is not str and not 0 < values[name] < 1e9:
            raise ValueError(f"{part!r} is not possible, expected a number above 0")
    return values


def take_fraction(config: ConfigDict, fraction: float) -> None:
    """Use the first part of a tfds data set for training, and reduce validation in proportion.

    Args:
      config: changed in place.
      fraction: in (0, 1], a whole number of percent.

    Raises:
      ValueError: the fraction is something else, or the data set cannot be sliced.
    """
    if config.dataset.name in (catalog.DIGITS, catalog.FOLDER):
        raise ValueError(f"fraction={fraction} is for the data sets of tfds, expected 1")
    percent = round(100 * fraction)
    if not 1 <= percent <= 100 or abs(percent - 100 * fraction) > 1e-6:
        raise ValueError(f"fraction={fraction} is not possible, expected 0.01, 0.02, ... 1")
    if percent < 100:
        config.dataset.train_split += f"[:{percent}%]"
        if config.dataset.val_examples >= 1:  # and not a share
            config.dataset.val_examples = max(1, config.dataset.val_examples * percent // 100)


def teacher_weights(run: Run, root: Path, teachers: Path | None) -> str:
    """Return the path of the weights of a run's teacher; empty for a run without a teacher.

    Args:
      run: of the study.
      root: directory of the study, for a teacher that is a run.
      teachers: directory of other teachers; None if there is none.

    Raises:
      UserError: there are no weights.
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
    """Return the study of `FILE`, `FILE:ARGUMENT` or `kd_jax:studies/NAME`.

    Raises:
      UserError: the file is missing or defines no study, or the study is invalid.
    """
    study = config_file.call(text, "get_study", "configs/studies/demo.py")
    name = config_file.split(text)[0]
    if not isinstance(study, Study):
        raise UserError(
            f"get_study() of {name} returns a {type(study).__name__}: expected a "
            "kd_jax.study.spec.Study"
        )
    if problems := _problems(study):
        raise UserError(f"the study in {name} cannot be: {'; '.join(problems)}")
    return study


def _problems(study: Study) -> list[str]:
    """Return all problems of a study, as parts of a sentence."""
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
        elif _is_in_cycle(run.name, teachers):
            problems.append(f"{run.name} is its own teacher's teacher, expected a beginning")
    return problems + [problem for row in rows for problem in _problems_of_row(study, row)]


def _is_in_cycle(name: str, teachers: Mapping[str, str]) -> bool:
    """Return whether a run's chain of teachers comes back to a run of the chain."""
    chain, teacher = {name}, teachers.get(name)
    while teacher and teacher not in chain:
        chain.add(teacher)
        teacher = teachers.get(teacher)
    return bool(teacher)


def _problems_of_row(study: Study, row: str) -> list[str]:
    """Return the problems of a row, whose runs must differ in the seed and in nothing else."""
    first_run, *other_runs = [run for run in study.runs if run.row == row]
    reference = config_lib.flatten(first_run.config) | {"published": first_run.published}
    problems, seeds = [], {first_run.config.seed}
    for run in other_runs:
        values = config_lib.flatten(run.config) | {"published": run.published}
        changes = [path for path in reference | values if reference.get(path) != values.get(path)]
        if changes and changes != ["seed"]:
            problems.append(
                f"{first_run.name} and {run.name} are of one row and differ in "
                f"{', '.join(changes)}, expected to differ in the seed alone"
            )
        if run.config.seed in seeds:
            problems.append(f"{run.name} has the seed of another run of its row, expected its own")
        seeds.add(run.config.seed)
    return problems
