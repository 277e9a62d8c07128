"""The sections of a report made from `probe.json`: how closely a student follows its teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.metrics import fidelity
from kd_jax.report import figure_style, figures, table2
from kd_jax.report.rendering import Bar, Card, Image, Panel, Section
from kd_jax.report.results import PROBE_FILE, Row, Study
from kd_jax.runtime.errors import UserError

_TEMPERATURES = (1.0, 2.0, 5.0, 10.0)
_MOST_CLASSES = 8  # in the figure of the softmax
_MOST_GROUPS = 30  # in the heatmap: the cells of more would be too small to see
_PNG_URI = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]*")


def sections(study: Study) -> list[Section]:
    """Return the sections that the probes of the rows allow; of each row, its first probe.

    Raises:
      UserError: a probe is not what `kd_jax.probe` writes.
    """
    probes = [(row, probe) for row in study.rows if (probe := _first_probe(row)) is not None]
    if not probes:
        return []
    try:
        # Images of one row only: the baseline, or the first row with a teacher.
        probes.sort(key=lambda pair: (pair[0].label != study.baseline, not pair[1]["line"]))
        label, probe = probes[0][0].label, probes[0][1]
        candidates = [
            _along_the_line([(row.label, content) for row, content in probes if content["line"]]),
            _mixtures(label, probe),
            _softened(label, probe),
            _confusion(label, probe),
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"a {PROBE_FILE} of {', '.join(row.label for row, _ in probes)} is not what "
            f"kd_jax.probe writes ({error!r}): make it again"
        ) from None
    return [section for section in candidates if section]


def _first_probe(row: Row) -> dict[str, Any] | None:
    return next((run.probe for run in row.runs if run.probe is not None), None)


def _along_the_line(probes: Sequence[tuple[str, Mapping[str, Any]]]) -> Section | None:
    """Draw fidelity and entropy over an image's weight in the mixture with another image.

    Args:
      probes: with their labels; those of rows with a teacher.
    """
    if not probes:
        return None
    # Older probes mixed neighbours: other pairs, which cannot stand beside these.
    alike = [each for each in probes if "pairs" in each[1]] or list(probes)
    older = [label for label, _ in probes if label not in {label for label, _ in alike}]
    probes = alike
    drawn_probes = probes[: figure_style.MOST_LINES]
    legend = figures.legend_of([label for label, _ in drawn_probes])

    def panel(quantity: str, field: str, number_format: str, percent: bool = False) -> Panel:
        series = [
            figures.Line(
                "" if legend else label,
                [[(record["share"], record[field]) for record in probe["line"]]],
            )
            for label, probe in drawn_probes
        ]
        x_label = "share of the image in the mixture"
        figure = figures.lines(series, quantity, x_label, number_format, percent)
        return Panel(f"From {PROBE_FILE}: line, {field}.", figure=figure)

    panels = (
        panel("the teacher's entropy, nats", "teacher_entropy", "{:.2f}"),
        panel("KL to the teacher, nats", "kl_to_teacher", "{:.2f}"),
        panel("agreement with the teacher, %", "agreement", "{:.1f}", percent=True),
    )
    text = (
        "Every test image is mixed with another in eleven proportions. At 0 and 1 the mixtures "
        "are the images themselves; between them one sees how sure the teacher still is, and how "
        "far the student follows it."
    ) + figures.omission_note([label for label, _ in probes])
    if older:
        text += f" Not drawn, for they were probed in other pairs: {', '.join(older)}."
    return Section("Along the mixup line", text, panels, legend)


def _mixtures(label: str, probe: Mapping[str, Any]) -> Section | None:
    """Show mixtures, and what both networks predict for them."""
    if not probe.get("examples"):
        return None
    class_name = _class_namer(probe)
    examples = sorted(probe["examples"], key=lambda example: -example["share"])
    text = (
        f"Test images as {label} and its teacher see them: the first three classes of each, at "
        f"temperature 1 (as in the study's {table2.MIXUP_FIGURE}). Bold: what is in the "
        "mixture."
    )
    cards = tuple(_card(example, class_name) for example in examples)
    panel = Panel(f"From {PROBE_FILE}: examples.", cards=cards, kind="full")
    return Section("What they make of mixed images", text, (panel,))


def _card(example: Mapping[str, Any], class_name: Callable[[int], str]) -> Card:
    lam, first, second = example["share"], example["own"], example["other"]
    images = (
        Image(_png(first["image"]), f"{class_name(first['label'])}, {100 * lam:.0f} %"),
        Image(_png(second["image"]), f"{class_name(second['label'])}, {100 * (1 - lam):.0f} %"),
        Image(_png(example["mixture"]), "mixture"),
    )
    mixed_labels = {first["label"], second["label"]}
    predictions = tuple(
        (
            network,
            tuple(
                Bar(
                    class_name(prediction["class"]),
                    100 * float(prediction["probability"]),
                    prediction["class"] in mixed_labels,
                )
                for prediction in example[network]
            ),
        )
        for network in ("teacher", "student")
    )
    return Card(images, predictions)


def _softened(label: str, probe: Mapping[str, Any]) -> Section | None:
    """Draw the teacher's prediction for one image at several temperatures."""
    softmax = probe.get("softmax")
    if not softmax:
        return None
    logits, class_name = np.asarray(softmax["logits"], np.float64), _class_namer(probe)
    order = np.argsort(-logits, kind="stable")[:_MOST_CLASSES]
    columns = [
        (f"T = {t:g}", np.exp(fidelity.log_softmax(logits, t))[order]) for t in _TEMPERATURES
    ]
    names = [class_name(int(i)) for i in order]
    text = (
        f"The teacher of {label} looks at one test image ({class_name(softmax['label'])}, number "
        f"{int(softmax['index'])}): the higher the temperature, the more its student hears of the "
        f"other classes (as in the study's {table2.SOFTMAX_FIGURE})."
    )
    num_hidden = len(logits) - len(order)
    caption = f"From {PROBE_FILE}: softmax"
    caption += f"; {num_hidden} less probable classes are not shown." if num_hidden else "."
    panel = Panel(
        caption,
        figure=figures.bars(columns, names, "teacher's probabilities by temperature"),
        image=_png(softmax["image"]),
        kind="broad",
    )
    return Section("Softmax under temperature", text, (panel,))


def _confusion(label: str, probe: Mapping[str, Any]) -> Section | None:
    """Draw the confusion matrix, by superclass if the data set has them."""
    confusion = probe["confusion"]
    counts = np.asarray(confusion.get("by_superclass", confusion["by_class"]))
    if len(counts) > _MOST_GROUPS:
        return None
    names = confusion.get("superclasses") or [_class_namer(probe)(i) for i in range(len(counts))]
    kind = "superclass" if "superclasses" in confusion else "class"
    mistakes = counts * (1 - np.eye(len(counts), dtype=int))
    i, j = np.unravel_index(int(mistakes.argmax()), mistakes.shape)
    text = f"Rows: what the test images show; columns: what {label} takes them for."
    if mistakes[i, j]:
        text += (
            f" Most often: {names[i]} taken for {names[j]}, {mistakes[i, j]} of "
            f"{counts[i].sum()} images."
        )
    caption = f"Numbers: right, in %. Shade: share of the mistakes. From {PROBE_FILE}: confusion."
    panel = Panel(
        caption,
        figure=figures.heatmap(counts, names, f"confusion by {kind}"),
        kind="broad" if len(names) > figures.FEW_GROUPS else "",
    )
    return Section(f"Confusion by {kind}", text, (panel,))


def _class_namer(probe: Mapping[str, Any]) -> Callable[[int], str]:
    """Return a function from a label to the name of its class."""
    names = probe.get("class_names")
    return lambda label: str(names[label]) if names else f"class {int(label)}"


def _png(uri: str) -> str:
    """Return a data URI of a PNG as it is.

    Raises:
      ValueError: it is anything else, such as an address from which a browser would fetch.
    """
    if not _PNG_URI.fullmatch(uri):
        raise ValueError("an image is no PNG in base64")
    return uri
