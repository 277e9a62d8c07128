"""Compare the student of a run with its teacher: on test, on train, and on mixtures of images.

    python -m kd_jax.probe --workdir=DIR [--checkpoint=last|best] [--out=probe.json]

The study asks whether a teacher can answer for mixtures. So every test image is mixed with the next
one in eleven proportions, and both networks see the mixtures: the results are the entropy of the
teacher, and how closely the student follows it. Also measured: confusions between superclasses, and
a few images for the report, which reads `DIR/probe.json`. The workdir is only read; tables go to
stdout, all results to `--out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from kd_jax.runtime import atomic_files, huge_pages, text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "last", ["last", "best"], "The newest checkpoint, or the best on val."
)
_OUT = flags.DEFINE_string("out", None, "File for all results, as JSON.")
LAMS = tuple(i / 10 for i in range(11))  # of an image in its mixture with the next
_MOST_CONFUSED = 10  # pairs of classes that are printed


def main(argv: Sequence[str]) -> None:
    """Measure both networks, print the tables, and write the file."""
    del argv
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: expected the directory of a run")
    out = reachable(_OUT.value, "--out") if _OUT.value else None
    if out and out.is_dir():
        raise UserError(f"--out={out} is a directory: expected a file to write")
    from kd_jax.data import class_names
    from kd_jax.training import saved_student
    from kd_jax.training.evaluator import Evaluator

    run, step, variables = saved_student.student(Path(_WORKDIR.value), _CHECKPOINT.value)
    evaluator = Evaluator(run)
    test, train = len(run.dataset.test), len(run.dataset.train)
    networks, mixtures = (2, len(LAMS) * test) if run.teachers else (1, 0)
    logger.info(
        "probing %d network(s) on %s images each: %s of test, %s of train, %s mixtures",
        networks, *(f"{count:,}" for count in (test + train + mixtures, test, train, mixtures)),
    )  # fmt: skip
    line, examples = (
        along_the_line(evaluator, variables, run.dataset.test) if run.teachers else ([], [])
    )
    result = {
        "step": step,
        "student": run.student.arch,
        "teacher": run.teachers.arch if run.teachers else None,
        "class_names": class_names.of(run.config.dataset),
        "splits": {
            split: evaluator.measure_student(variables, split) for split in ("test", "train")
        },
        "line": line or None,
        "examples": examples,
        "softmax": _softmax(run, evaluator),
        "confusion": _confusion(run, evaluator, variables),
    }
    print(_tables(result))
    if out:
        atomic_files.write_json(out, result)


def along_the_line(
    evaluator: Any, variables: Any, split: Any
) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Return the measures of both networks on mixtures of test images, and a few of the mixtures.

    With the shares 0 and 1 the mixtures are the images themselves.

    Args:
      evaluator: the `Evaluator` of a run with a teacher.
      variables: those of the student, replicated over the devices.
      split: the test `Split`.

    Returns:
      A record for each proportion, with `share`, `teacher_entropy`, `student_entropy`,
      `kl_to_teacher` (nats), `agreement`, `agreement_top5` (percent); and examples, as
      `probe_images.mixtures` returns them.
    """
    from kd_jax.metrics import fidelity
    from kd_jax.report import probe_images

    records, examples = [], []
    for lam in LAMS:
        teacher = evaluator.teacher_logits_of_mixtures("test", lam)
        student = evaluator.student_logits(variables, "test", lam)
        metrics = {
            "share": lam,
            "teacher_entropy": fidelity.entropy(teacher),
            "student_entropy": fidelity.entropy(student),
            "agreement": fidelity.agreement(student, teacher),
            "agreement_top5": fidelity.agreement_top5(student, teacher),
            "kl_to_teacher": fidelity.kl_to_teacher(student, teacher),
        }
        records.append({name: round(value, 6) for name, value in metrics.items()})
        examples += probe_images.mixtures(split, lam, teacher, student)
    return records, examples


def _softmax(run: Any, evaluator: Any) -> dict[str, Any] | None:
    """Return the teacher's logits of one test image; None without a teacher."""
    from kd_jax.report import probe_images

    return (
        probe_images.softmax(run.dataset.test, evaluator.teacher_logits("test"))
        if run.teachers
        else None
    )


def _confusion(run: Any, evaluator: Any, variables: Any) -> dict[str, Any]:
    """Return the confusion by class, and by superclass where the data set has them."""
    import numpy as np

    from kd_jax.data import catalog
    from kd_jax.metrics import fidelity

    logits = evaluator.student_logits(variables, "test")
    labels, classes = run.dataset.test.labels, np.arange(run.dataset.num_classes)
    result: dict[str, Any] = {"by_class": fidelity.confusion(logits, labels, classes).tolist()}
    facts = catalog.facts(run.dataset.name)
    if facts.superclass_names:
        counts = fidelity.confusion(logits, labels, np.asarray(facts.superclass_of))
        result |= {"superclasses": list(facts.superclass_names), "by_superclass": counts.tolist()}
    return result


def _tables(result: dict[str, Any]) -> str:
    """Return the Markdown that is printed."""
    measures = list(result["splits"]["test"])
    rows = [["split", *measures]]
    rows += [
        [split, *(f"{values[name]:.3f}" for name in measures)]
        for split, values in result["splits"].items()
    ]
    parts = [text_tables.markdown(rows)]
    if result["line"]:
        names = list(result["line"][0])
        parts.append(
            text_tables.markdown(
                [names, *([f"{record[name]:.3f}" for name in names] for record in result["line"])]
            )
        )
    confusion = result["confusion"]
    counts = confusion.get("by_superclass", confusion["by_class"])
    names = confusion.get("superclasses") or [str(i) for i in range(len(counts))]
    pairs = [
        (counts[i][j], f"{100 * counts[i][j] / max(sum(counts[i]), 1):.1f}", names[i], names[j])
        for i in range(len(counts))
        for j in range(len(counts))
        if i != j and counts[i][j]
    ]
    worst_pairs = sorted(pairs, reverse=True)[:_MOST_CONFUSED]
    header = ["images", "% of them", "what they are", "what they were taken for"]
    parts.append(
        text_tables.markdown([header, *([str(cell) for cell in row] for row in worst_pairs)])
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
