"""The parts of a report that come from `probe.json`: how the student follows its teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.metrics import fidelity
from kd_jax.report import drawing, figures, table2
from kd_jax.report.html import Panel, Section, escape, prose
from kd_jax.report.records import PROBE_FILE, Row, Study
from kd_jax.runtime.errors import UserError

_TEMPERATURES = (1.0, 2.0, 5.0, 10.0)
_MOST_CLASSES = 8  # in the figure of the softmax
_MOST_GROUPS = 30  # in the heatmap: more would be specks
_IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]*")


def sections(study: Study) -> list[Section]:
    """Return what the probes of the rows have to show; a row's first probe stands for it.

    Raises:
      UserError: a probe is not what `kd_jax.probe` writes.
    """
    probed = [(row, run) for row in study.rows for run in [_first_probed(row)] if run is not None]
    if not probed:
        return []
    try:
        # One run's images are enough to see: the baseline's, or the first that has a teacher.
        probed.sort(key=lambda pair: (pair[0].label != study.baseline, not pair[1]["line"]))
        label, shown = probed[0][0].label, probed[0][1]
        found = [
            _along_the_line([(row.label, probe) for row, probe in probed if probe["line"]]),
            _mixtures(label, shown),
            _softened(label, shown),
            _confusion(label, shown),
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"a {PROBE_FILE} of {', '.join(row.label for row, _ in probed)} is not what "
            f"kd_jax.probe writes ({error!r}): make it again"
        ) from None
    return [part for part in found if part]


def _first_probed(row: Row) -> dict[str, Any] | None:
    return next((run.probe for run in row.runs if run.probe is not None), None)


def _along_the_line(probed: Sequence[tuple[str, Mapping[str, Any]]]) -> Section | None:
    """Draw fidelity and entropy over the share of an image in its mixture with the next."""
    if not probed:
        return None
    drawn = probed[: drawing.MOST_LINES]
    legend = figures.legend_of([label for label, _ in drawn])

    def panel(what: str, field: str, form: str, percent: bool = False) -> Panel:
        series = [
            figures.Line(
                "" if legend else label,
                [[(record["share"], record[field]) for record in probe["line"]]],
            )
            for label, probe in drawn
        ]
        figure = figures.lines(series, what, "share of the image in the mixture", form, percent)
        return Panel(figure, f"From {PROBE_FILE}: line, {field}.")

    panels = (
        panel("the teacher's entropy, nats", "teacher_entropy", "{:.2f}"),
        panel("KL to the teacher, nats", "kl_to_teacher", "{:.2f}"),
        panel("agreement with the teacher, %", "agreement", "{:.1f}", percent=True),
    )
    text = (
        "Every test image is mixed with the next in eleven proportions. At 0 and 1 the mixtures "
        "are the images themselves; between them one sees how sure the teacher still is, and how "
        "far the student follows it."
    ) + figures.left_out([label for label, _ in probed])
    return Section("Along the mixup line", text, panels, legend)


def _mixtures(label: str, probe: Mapping[str, Any]) -> Section | None:
    """Show mixtures, and what both networks take them for."""
    if not probe.get("examples"):
        return None
    name = _namer(probe)
    examples = sorted(probe["examples"], key=lambda example: -example["share"])
    cards = "\n".join(_card(example, name) for example in examples)
    text = (
        f"Test images as {label} and its teacher see them: the first three classes of each, at "
        f"temperature 1 (as in the study's {table2.MIXUP_FIGURE}). Bold: what is in the "
        "mixture."
    )
    content = f'<div class="cards">\n{cards}\n</div>'
    panel = Panel(content, f"From {PROBE_FILE}: examples.", kind="full")
    return Section("What they make of mixed images", text, (panel,))


def _card(example: Mapping[str, Any], name: Callable[[int], str]) -> str:
    share, own, other = example["share"], example["own"], example["other"]
    images = "".join(
        f'<div><img src="{_image(uri)}" width="80" height="80" alt="">{prose(said)}</div>'
        for uri, said in (
            (own["image"], f"{name(own['label'])}, {100 * share:.0f} %"),
            (other["image"], f"{name(other['label'])}, {100 * (1 - share):.0f} %"),
            (example["mixture"], "mixture"),
        )
    )
    inside = {own["label"], other["label"]}
    says = "".join(
        f'<div class="says {who}">{who}{_bars(example[who], inside, name)}</div>'
        for who in ("teacher", "student")
    )
    return f'<div class="card"><div class="images">{images}</div>{says}</div>'


def _bars(
    classes: Sequence[Mapping[str, Any]], inside: set[int], name: Callable[[int], str]
) -> str:
    """Return a bar a class; those that are `inside` the image in bold."""
    lines = []
    for one in classes:
        percent = 100 * float(one["probability"])
        kind = "inside" if one["class"] in inside else ""
        lines.append(
            f'<div class="bar"><span class="{kind}">{escape(name(one["class"]))}</span>'
            f'<div><i style="width: {percent:.1f}%"></i></div><b>{percent:.1f} %</b></div>'
        )
    return "".join(lines)


def _softened(label: str, probe: Mapping[str, Any]) -> Section | None:
    """Draw the teacher's prediction of one image under several temperatures."""
    shown = probe.get("softmax")
    if not shown:
        return None
    logits, name = np.asarray(shown["logits"], np.float64), _namer(probe)
    order = np.argsort(-logits, kind="stable")[:_MOST_CLASSES]
    columns = [
        (f"T = {t:g}", np.exp(fidelity.log_softmax(logits, t))[order]) for t in _TEMPERATURES
    ]
    names = [name(int(i)) for i in order]
    what = "teacher's probabilities by temperature"
    figure = figures.bars(columns, names, what)
    image = f'<img src="{_image(shown["image"])}" width="80" height="80" alt="">'
    text = (
        f"The teacher of {label} looks at one test image ({name(shown['label'])}, number "
        f"{int(shown['index'])}): the higher the temperature, the more its student hears of the "
        f"other classes (as in the study's {table2.SOFTMAX_FIGURE})."
    )
    more = len(logits) - len(order)
    caption = f"From {PROBE_FILE}: softmax"
    caption += f"; {more} less probable classes are not shown." if more else "."
    return Section(
        "Softmax under temperature", text, (Panel(image + figure, caption, kind="broad"),)
    )


def _confusion(label: str, probe: Mapping[str, Any]) -> Section | None:
    """Draw which groups are taken for which."""
    confusion = probe["confusion"]
    counts = np.asarray(confusion.get("by_superclass", confusion["by_class"]))
    if len(counts) > _MOST_GROUPS:
        return None
    names = confusion.get("superclasses") or [_namer(probe)(i) for i in range(len(counts))]
    kind = "superclass" if "superclasses" in confusion else "class"
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    i, j = np.unravel_index(int(wrong.argmax()), wrong.shape)
    text = f"Rows: what the test images show; columns: what {label} takes them for."
    if wrong[i, j]:
        text += (
            f" Most often: {names[i]} taken for {names[j]}, {wrong[i, j]} of {counts[i].sum()} "
            "images."
        )
    figure = figures.heatmap(counts, names, f"confusion by {kind}")
    caption = f"Numbers: right, in %. Shade: share of the mistakes. From {PROBE_FILE}: confusion."
    size = "broad" if len(names) > figures.FEW_GROUPS else ""
    return Section(f"Confusion by {kind}", text, (Panel(figure, caption, kind=size),))


def _namer(probe: Mapping[str, Any]) -> Callable[[int], str]:
    """Return what names a class by its label."""
    names = probe.get("class_names")
    return lambda label: str(names[label]) if names else f"class {int(label)}"


def _image(uri: str) -> str:
    """Return a data URI that is one."""
    if not _IMAGE.fullmatch(uri):
        raise ValueError("an image is no PNG in base64")
    return uri
