"""The parts of a report that come from the runs' logs and results: each a heading and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd_jax.report import comparisons, drawing, figures, table2
from kd_jax.report.comparisons import Comparison
from kd_jax.report.html import Panel, Section
from kd_jax.report.records import Row, Run, Study

_TITLES = {
    comparisons.TEACHER: "Teachers",
    comparisons.TEMPERATURE: "Temperatures",
    comparisons.LEARNING_RATE: "Learning rates",
    comparisons.MIXUP: "Mixup",
}
_PUBLISHED = "Dotted, and in brackets: published top-1 on test ({source})."
_MOST_NAMED = 3  # points above each other
_Points = Sequence[tuple[float, float]]


def accuracy(study: Study) -> Section | None:
    """Show every row's top-1, beside what is published, its teacher's, and what it costs."""
    if not study.rows:
        return None
    panels = (_overview(study), _by_teacher(study), _by_cost(study))
    return Section("Accuracy", "", tuple(panel for panel in panels if panel))


def _overview(study: Study) -> Panel:
    rows = [
        (row.label, row.values("test_top1"), row.published.top1 if row.published else None)
        for row in study.rows
    ]
    seeds = any(len(row.runs) > 1 for row in study.rows)
    caption = "A dot a run" + (", a bar at the mean of the seeds" if seeds else "")
    sources = sorted({row.published.source for row in study.rows if row.published})
    if sources:
        caption += f"; diamonds: published ({', '.join(sources)})"
    figure = figures.dots(rows, "top-1 on test, %")
    title = "Beside what was published" if sources else "Top-1, run by run"
    return Panel(figure, f"{caption}. From result.json: test_top1.", title)


def all_rows(study: Study) -> Section | None:
    """Draw every row over the epochs."""
    if all(map(comparisons.learns_from_labels, study.rows)):
        return None  # they are drawn as students alone
    title = "Over the epochs" if len(study.rows) == 1 else "All of them over the epochs"
    return _over_epochs(title, "", [(row.label, row) for row in study.rows], references=False)


def compared(study: Study) -> list[Section]:
    """Draw every comparison that the configs allow."""
    found = comparisons.find(study.rows)
    sections = []
    for comparison in found:
        alike = [other for other in found if other.field == comparison.field]
        pairs = list(zip(comparison.labels, comparison.rows, strict=True))
        sections.append(
            _over_epochs(
                _heading(comparison, alike),
                _finding(comparison),
                pairs,
                references=True,
            )
        )
    return [section for section in sections if section]


def from_scratch(study: Study) -> Section | None:
    """Draw the students that learnt from labels alone."""
    alone = [row for row in study.rows if comparisons.learns_from_labels(row)]
    taught = {row.first.result["student"] for row in study.rows if row not in alone}
    alone = [row for row in alone if not taught or row.first.result["student"] in taught]
    title = "From scratch: the student alone, with labels"
    if alone and table2.is_its_question(alone[0].first.result):
        title += f" (the study's {table2.SCRATCH_FIGURE})"
    pairs = [(row.label, row) for row in alone]
    return _over_epochs(title, "", pairs, references=True)


def _by_teacher(study: Study) -> Panel | None:
    compared = [c.rows for c in comparisons.find(study.rows) if c.field == comparisons.TEACHER]
    taught = [row for row in study.rows if not comparisons.learns_from_labels(row)]
    if compared:  # what differs in nothing else
        taught = [row for row in taught if any(row in rows for rows in compared)]
    points = [
        figures.Point(row.label, x, y)
        for row in taught
        if (x := row.mean("teacher_top1")) is not None and (y := row.mean("test_top1")) is not None
    ]
    if len({point.x for point in points}) < 2:
        return None
    caption = "A student a point. From result.json: teacher_top1 and test_top1."
    if any(table2.is_its_question(row.first.result) for row in taught):
        of_teacher = {network.name: network.top1 for network in table2.TABLE_1}
        points += [
            figures.Point(row.teacher, of_teacher[row.teacher], row.top1, True)
            for row in table2.TABLE_2
            if row.teacher and row.epochs == 400
        ]
        caption += " Hollow: the study's Tables 1 and 2, 400 epochs."
    figure = figures.scatter(points, "student's top-1 on test, %", "teacher's top-1 on test, %")
    return Panel(figure, caption, "Is the better teacher the better one to learn from?")


def _by_cost(study: Study) -> Panel | None:
    measured = [
        (x, y, row.label)
        for row in study.rows
        if (x := row.mean("madds")) is not None and (y := row.mean("test_top1")) is not None
    ]
    alike = {x: sorted(own for own in measured if own[0] == x) for x, _, _ in measured}
    named = {
        label
        for group in alike.values()
        for _, _, label in (group if len(group) <= _MOST_NAMED else group[-1:])
    }
    points = [figures.Point(label if label in named else "", x, y) for x, y, label in measured]
    caption = "From result.json: madds and test_top1."
    if len(named) < len(points):
        caption += " Named: the best of those that cost the same."
    if any(table2.is_its_question(row.first.result) for row in study.rows):
        points += [
            figures.Point(network.name, network.madds, network.top1, True)
            for network in table2.TABLE_1
        ]
        caption += " Hollow: the study's Table 1."
    if len({point.x for point in points}) < 2:
        return None
    figure = figures.scatter(points, "top-1 on test, %", "multiply-adds an image", log_x=True)
    return Panel(figure, caption, "What accuracy costs")


def _over_epochs(
    title: str, text: str, pairs: Sequence[tuple[str, Row]], references: bool
) -> Section | None:
    """Draw accuracy, loss and fidelity over the epochs, as far as the runs have them.

    Args:
      title, text: of the section.
      pairs: label and row of each line.
      references: whether what is published is drawn too.
    """
    text += figures.left_out([label for label, _ in pairs])
    pairs = pairs[: drawing.MOST_LINES]
    published = [row.published for _, row in pairs if row.published] if references else []
    sources = ", ".join(sorted({found.source for found in published}))
    reference = _PUBLISHED.format(source=sources) if published else ""
    legend = figures.legend_of([label for label, _ in pairs])
    if legend:
        pairs = [("", row) for _, row in pairs]
    panels = [
        _curves(pairs, "top-1 on validation, %", "val", "top1", "{:.1f}", reference),
        _curves(pairs, "loss in training", "train", "loss", "{:.3g}"),
        _curves(pairs, "KL to the teacher on validation, nats", "val", "kl_to_teacher", "{:.3f}")
        or _curves(pairs, "NLL on validation, nats", "val", "nll", "{:.2f}"),
    ]
    found = tuple(panel for panel in panels if panel)
    return Section(title, text.strip(), found, legend) if found else None


def _curves(
    pairs: Sequence[tuple[str, Row]],
    what: str,
    kind: str,
    field: str,
    form: str,
    reference: str = "",
) -> Panel | None:
    """Return a figure of one field of `metrics.jsonl`; None if no run has it."""
    points: Callable[[Run], _Points] = lambda run: _points(run, kind, field)  # noqa: E731
    drawn = []
    for label, row in pairs:
        seeds = _together([own for run in row.runs if (own := points(run))])
        height = row.published.top1 if reference and row.published else None
        drawn.append(figures.Line(label, seeds, height if seeds else None))
    if not any(line.seeds for line in drawn):
        return None
    several = any(len(line.seeds) > 1 for line in drawn)
    caption = f"From metrics.jsonl: {kind}, {field}"
    caption += ", the mean of each epoch" if kind == "train" else ""
    caption += "; lines: mean of the seeds, bands: lowest to highest" if several else ""
    figure = figures.lines(drawn, what, "epoch", form, percent=field == "top1")
    return Panel(figure, f"{caption}. {reference}".strip())


def _points(run: Run, kind: str, field: str) -> _Points:
    """Return a field over the epochs; of training, whose steps are noisy, each epoch's mean."""
    records = run.val if kind == "val" else run.train
    points = [(r["epoch"], r[field]) for r in records if _is_finite(r.get(field))]
    if kind == "val" or not points:
        return points
    last = max(round(points[-1][0]), 1)  # a few steps more are not another epoch
    by_epoch: dict[int, list[float]] = {}
    for epoch, value in points:
        by_epoch.setdefault(min(max(math.ceil(epoch), 1), last), []).append(value)
    return [(k, sum(values) / len(values)) for k, values in by_epoch.items()]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _together(seeds: list[_Points]) -> list[_Points]:
    """Return the seeds; the first alone where they have no epoch in common to average."""
    common = set.intersection(*({x for x, _ in own} for own in seeds)) if seeds else set()
    return seeds if common else seeds[:1]


def _heading(comparison: Comparison, alike: Sequence[Comparison]) -> str:
    """Name what is compared, and where several are of one field, what tells this one apart."""
    title = _TITLES.get(comparison.field, comparison.field)
    everywhere = set.intersection(*(set(_shared(other)) for other in alike))
    apart = [words for words in _shared(comparison) if words not in everywhere]
    title += f" at {', '.join(apart)}" if apart else ""
    its_question = table2.is_its_question(comparison.rows[0].first.result)
    figure = table2.FIGURES.get(comparison.field) if its_question else None
    return f"{title} (the study's {figure})" if figure else title


def _finding(comparison: Comparison) -> str:
    """Say which row is the most accurate, how sure that is, and what all have in common."""
    reached = {
        label: f"{row.mean('test_top1'):.2f}"
        for label, row in zip(comparison.labels, comparison.rows, strict=True)
    }
    high, low = (choose(reached.values(), key=float) for choose in (max, min))
    text = (
        f"Highest on test: {_who(reached, high)}, {high} %; lowest: {_who(reached, low)}, {low} %."
    )
    if high == low:
        text = f"On test all of them reach {high} %."
    if all(len(row.runs) == 1 for row in comparison.rows):
        text += " One seed each: a small difference may be chance."
    if comparison.field == comparisons.TEMPERATURE:
        text += " The losses are of different temperatures: compare their course, not their height."
    return f"{text} {_common(comparison)}"


def _who(reached: Mapping[str, str], value: str) -> str:
    return " and ".join(label for label, own in reached.items() if own == value)


def _common(comparison: Comparison) -> str:
    """Say what the compared rows have in common."""
    lengths = {round(row.first.result["epochs"]) for row in comparison.rows}
    but = "" if len(lengths) == 1 else " but the length of training"
    shared = ", ".join(_shared(comparison))
    return f"The same in all: {shared}, and everything else in their configs{but}."


def _shared(comparison: Comparison) -> list[str]:
    """Return what the compared rows have in common of what the study asks about, in words."""
    values = comparisons.asked(comparison.rows[0])
    words = {field: comparisons.in_words(field, value) for field, value in values.items()}
    names = {comparisons.TEACHER: "teacher ", comparisons.LEARNING_RATE: "learning rate "}
    return [names.get(f, "") + text for f, text in words.items() if f != comparison.field]
