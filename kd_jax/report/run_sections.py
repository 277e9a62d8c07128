"""The sections of a report made from logs and results of runs: a heading, text and figures each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd_jax.report import comparisons, figure_style, figures, results, table2
from kd_jax.report.comparisons import Comparison
from kd_jax.report.rendering import Panel, Section
from kd_jax.report.results import Row, Run, Study

_TITLES = {
    comparisons.TEACHER: "Teachers",
    comparisons.TEMPERATURE: "Temperatures",
    comparisons.LEARNING_RATE: "Learning rates",
    comparisons.MIXUP: "Mixup",
}
_ALIKE = 4  # runs whose epochs differ by less are drawn over them
_PARTS = 40  # of a training that is drawn over its steps
_PUBLISHED = "Dotted, and in brackets: published top-1 on test ({source})."
_QUANTITIES = {"test_top1": "Top-1", "agreement": "Agreement with the teacher"}
_MOST_LABELLED = 3  # points with the same x
_Points = Sequence[tuple[float, float]]


def accuracy(study: Study) -> Section | None:
    """Compare the top-1 of all rows: with published values, by teacher, and by cost."""
    if not study.rows:
        return None
    panels = (_overview(study), _by_teacher(study), _by_cost(study))
    return Section("Accuracy", "", tuple(panel for panel in panels if panel))


def _overview(study: Study) -> Panel | None:
    measure = results.headline(study.rows)
    rows = [
        (row.label, row.values(measure), row.published.top1 if row.published else None)
        for row in study.rows
        if row.values(measure)
    ]
    if not rows:
        return None
    several_seeds = any(len(row.runs) > 1 for row in study.rows)
    caption = "A dot a run" + (", a bar at the mean of the seeds" if several_seeds else "")
    sources = sorted({row.published.source for row in study.rows if row.published})
    if sources:
        caption += f"; diamonds: published ({', '.join(sources)})"
    title = "Beside what was published" if sources else f"{_QUANTITIES[measure]}, run by run"
    return Panel(
        caption=f"{caption}. From result.json: {measure}.",
        title=title,
        figure=figures.dots(rows, f"{_QUANTITIES[measure].lower()} on test, %"),
    )


def all_rows(study: Study) -> Section | None:
    """Draw all rows over the training."""
    if all(map(comparisons.learns_from_labels, study.rows)):
        return None  # `from_scratch` draws them
    title = "Over the training" if len(study.rows) == 1 else "All of them over the training"
    return _over_training(title, "", [(row.label, row) for row in study.rows], references=False)


def compared(study: Study) -> list[Section]:
    """Draw each comparison that the configs allow."""
    all_comparisons = comparisons.find(study.rows)
    sections = []
    for comparison in all_comparisons:
        same_field = [c for c in all_comparisons if c.field == comparison.field]
        pairs = list(zip(comparison.labels, comparison.rows, strict=True))
        sections.append(
            _over_training(
                _heading(comparison, same_field), _conclusion(comparison), pairs, references=True
            )
        )
    return [section for section in sections if section]


def from_scratch(study: Study) -> Section | None:
    """Draw the rows trained from labels alone."""
    rows = [row for row in study.rows if comparisons.learns_from_labels(row)]
    students = {row.first.result["student"] for row in study.rows if row not in rows}
    if students:  # a row of another student is a teacher
        rows = [row for row in rows if row.first.result["student"] in students]
    title = "From scratch: the student alone, with labels"
    if rows and table2.trains_the_studys_student(rows[0].first.result):
        title += f" (the study's {table2.SCRATCH_FIGURE})"
    pairs = [(row.label, row) for row in rows]
    return _over_training(title, "", pairs, references=True)


def _by_teacher(study: Study) -> Panel | None:
    """Draw the student's top-1 over its teacher's; None if all teachers have the same top-1."""
    groups = [c.rows for c in comparisons.find(study.rows) if c.field == comparisons.TEACHER]
    distilled_rows = [row for row in study.rows if not comparisons.learns_from_labels(row)]
    if groups:  # leave out rows that differ in another field too
        distilled_rows = [row for row in distilled_rows if any(row in rows for rows in groups)]
    points = [
        figures.Point(row.label, x, y)
        for row in distilled_rows
        if (x := row.mean("teacher_top1")) is not None and (y := row.mean("test_top1")) is not None
    ]
    if len({point.x for point in points}) < 2:
        return None
    caption = "A student a point. From result.json: teacher_top1 and test_top1."
    if any(table2.trains_the_studys_student(row.first.result) for row in distilled_rows):
        teacher_top1 = {network.name: network.top1 for network in table2.TABLE_1}
        points += [
            figures.Point(student.teacher, teacher_top1[student.teacher], student.top1, True)
            for student in table2.TABLE_2
            if student.teacher and student.epochs == 400
        ]
        caption += " Hollow: the study's Tables 1 and 2, 400 epochs."
    figure = figures.scatter(points, "student's top-1 on test, %", "teacher's top-1 on test, %")
    return Panel(caption, "Is the better teacher the better one to learn from?", figure)


def _by_cost(study: Study) -> Panel | None:
    """Draw top-1 over multiply-adds; None if all networks cost the same."""
    triples = [
        (x, y, row.label)
        for row in study.rows
        if (x := row.mean("madds")) is not None and (y := row.mean("test_top1")) is not None
    ]
    by_cost = {x: sorted(point for point in triples if point[0] == x) for x, _, _ in triples}
    names = {
        label
        for group in by_cost.values()
        for _, _, label in (group if len(group) <= _MOST_LABELLED else group[-1:])
    }
    points = [figures.Point(label if label in names else "", x, y) for x, y, label in triples]
    caption = "From result.json: madds and test_top1."
    if len(names) < len(points):
        caption += " Named: the best of those that cost the same."
    if any(table2.trains_the_studys_student(row.first.result) for row in study.rows):
        points += [
            figures.Point(network.name, network.madds, network.top1, True)
            for network in table2.TABLE_1
        ]
        caption += " Hollow: the study's Table 1."
    if len({point.x for point in points}) < 2:
        return None
    figure = figures.scatter(points, "top-1 on test, %", "multiply-adds an image", log_x=True)
    return Panel(caption, "What accuracy costs", figure)


def _over_training(
    title: str, text: str, pairs: Sequence[tuple[str, Row]], references: bool
) -> Section | None:
    """Draw accuracy, loss and fidelity over the training; None if the runs have no logs.

    Args:
      title: of the section.
      text: of the section.
      pairs: label and row of each line.
      references: whether to draw published values too.
    """
    text += figures.omission_note([label for label, _ in pairs])
    pairs = pairs[: figure_style.MOST_LINES]
    published_values = [row.published for _, row in pairs if row.published] if references else []
    sources = ", ".join(sorted({value.source for value in published_values}))
    reference = _PUBLISHED.format(source=sources) if published_values else ""
    legend = figures.legend_of([label for label, _ in pairs])
    if legend:
        pairs = [("", row) for _, row in pairs]
    by = _axis([row for _, row in pairs])
    panels = [
        _curves(pairs, "top-1 on validation, %", "val", "top1", "{:.1f}", by, reference),
        _curves(pairs, "loss in training", "train", "loss", "{:.3g}", by),
        _curves(
            pairs, "KL to the teacher on validation, nats", "val", "kl_to_teacher", "{:.3f}", by
        )
        or _curves(pairs, "NLL on validation, nats", "val", "nll", "{:.2f}", by),
    ]
    drawn_panels = tuple(panel for panel in panels if panel)
    return Section(title, text.strip(), drawn_panels, legend) if drawn_panels else None


def _curves(
    pairs: Sequence[tuple[str, Row]],
    quantity: str,
    kind: str,
    field: str,
    number_format: str,
    by: str,
    reference: str = "",
) -> Panel | None:
    """Draw one field of `metrics.jsonl` over the training; None if no run has it.

    Args:
      pairs: label and row of each line.
      quantity: of the y axis.
      kind: of the records, `train` or `val`.
      field: of the records.
      number_format: of the last value.
      by: `epoch` or `step`, the x axis.
      reference: a sentence for the caption; if not empty, published values are drawn.
    """
    lines = []
    for label, row in pairs:
        seeds = [points for run in row.runs if (points := _points(run, kind, field, by))]
        seeds = _seeds_to_average(seeds)
        published = row.published.top1 if reference and row.published else None
        lines.append(figures.Line(label, seeds, published if seeds else None))
    if not any(line.seeds for line in lines):
        return None
    several_seeds = any(len(line.seeds) > 1 for line in lines)
    caption = f"From metrics.jsonl: {kind}, {field}"
    part = "epoch" if by == "epoch" else f"{_PARTS}th of its steps"
    caption += f", the mean of each {part}" if kind == "train" else ""
    caption += "; lines: mean of the seeds, bands: lowest to highest" if several_seeds else ""
    figure = figures.lines(lines, quantity, by, number_format, percent=field == "top1")
    return Panel(f"{caption}. {reference}".strip(), figure=figure)


def _axis(rows: Sequence[Row]) -> str:
    """Return what runs are drawn over: steps where epochs are of very different sets."""
    lengths = [run.train[-1]["epoch"] for row in rows for run in row.runs if run.train]
    return "step" if lengths and max(lengths) > _ALIKE * min(lengths) else "epoch"


def _points(run: Run, kind: str, field: str, by: str) -> _Points:
    """Return a field over the training; where steps are noisy, means of its parts."""
    records = run.val if kind == "val" else run.train
    points = [(r[by], r[field]) for r in records if _is_finite(r.get(field))]
    if kind == "val" or not points:
        return points
    if by == "step":
        size = math.ceil(points[-1][0] / _PARTS)
        by_part: dict[int, list[float]] = {}
        for step, value in points:
            by_part.setdefault(min(math.ceil(step / size) * size, points[-1][0]), []).append(value)
        return [(step, sum(values) / len(values)) for step, values in by_part.items()]
    # A few steps beyond an epoch are no epoch of their own.
    last_epoch = max(round(points[-1][0]), 1)
    by_epoch: dict[int, list[float]] = {}
    for epoch, value in points:
        by_epoch.setdefault(min(max(math.ceil(epoch), 1), last_epoch), []).append(value)
    return [(epoch, sum(values) / len(values)) for epoch, values in by_epoch.items()]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _seeds_to_average(seeds: list[_Points]) -> list[_Points]:
    """Return the seeds; only the first if no epoch is common to all of them."""
    epochs = set.intersection(*({x for x, _ in points} for points in seeds)) if seeds else set()
    return seeds if epochs else seeds[:1]


def _heading(comparison: Comparison, same_field: Sequence[Comparison]) -> str:
    """Return the heading of a comparison.

    Args:
      comparison: to be named.
      same_field: all comparisons of its field, from which the heading must tell it apart.
    """
    title = _TITLES.get(comparison.field, comparison.field)
    common_words = set.intersection(*(set(_shared_settings(candidate)) for candidate in same_field))
    distinct_words = [words for words in _shared_settings(comparison) if words not in common_words]
    title += f" at {', '.join(distinct_words)}" if distinct_words else ""
    is_the_studys = table2.trains_the_studys_student(comparison.rows[0].first.result)
    figure = table2.FIGURES.get(comparison.field) if is_the_studys else None
    return f"{title} (the study's {figure})" if figure else title


def _conclusion(comparison: Comparison) -> str:
    """Return which row is the most accurate, how certain that is, and what all rows share."""
    measure = results.headline(comparison.rows)
    top1 = {
        label: f"{row.mean(measure) or 0.0:.2f}"
        for label, row in zip(comparison.labels, comparison.rows, strict=True)
    }
    highest, lowest = (choose(top1.values(), key=float) for choose in (max, min))
    quantity = "" if measure == "test_top1" else "agreement "
    text = (
        f"Highest {quantity}on test: {_labels_with(top1, highest)}, {highest} %; "
        f"lowest: {_labels_with(top1, lowest)}, {lowest} %."
    )
    if highest == lowest:
        text = f"On test all of them reach {highest} %."
    if all(len(row.runs) == 1 for row in comparison.rows):
        text += " One seed each: a small difference may be chance."
    if comparison.field == comparisons.TEMPERATURE:
        text += " The losses are of different temperatures: compare their course, not their height."
    return f"{text} {_shared_text(comparison)}"


def _labels_with(top1: Mapping[str, str], value: str) -> str:
    return " and ".join(label for label, label_top1 in top1.items() if label_top1 == value)


def _shared_text(comparison: Comparison) -> str:
    """Return a sentence on what the compared rows have in common."""
    lengths = {round(row.first.result["epochs"]) for row in comparison.rows}
    exception = "" if len(lengths) == 1 else " but the length of training"
    settings = ", ".join(_shared_settings(comparison))
    return f"The same in all: {settings}, and everything else in their configs{exception}."


def _shared_settings(comparison: Comparison) -> list[str]:
    """Return the common values, in words, of the other fields that the study compares."""
    values = comparisons.study_values(comparison.rows[0])
    words = {field: comparisons.in_words(field, value) for field, value in values.items()}
    prefixes = {comparisons.TEACHER: "teacher ", comparisons.LEARNING_RATE: "learning rate "}
    return [prefixes.get(f, "") + text for f, text in words.items() if f != comparison.field]
