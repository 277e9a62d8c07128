"""Compare the student of a run with its teacher: on test, on train, and on mixtures of images.

    python -m kd_jax.probe --workdir=DIR [--checkpoint=last|best] [--out=probe.json]
    python -m kd_jax.probe --teacher=DIR|FILE [--arch=resnet44] [--normalisation=half]
        [--data=cifar100] [--out=...]

The study asks whether a teacher can answer for mixtures. So every test image is mixed with another
in eleven proportions, in the same pairs for every network, and both networks see the mixtures: the
results are the entropy of the teacher, and how closely the student follows it. Also measured:
confusions between superclasses, and a few images for the report, which reads `DIR/probe.json`. The
workdir is only read; tables go to stdout, all results to `--out`.

`--teacher` looks at a teacher alone, before any student: how often it names what is in a mixture,
and how much of its probability the two classes get; under another `--normalisation` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from kd_jax.runtime import atomic_files, huge_pages, text_tables
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "last", ["last", "best"], "The newest checkpoint, or the best on val."
)
_TEACHER = flags.DEFINE_string("teacher", None, "Weights of a teacher, in place of --workdir.")
_ARCH = flags.DEFINE_string("arch", "", "Its architecture, where the weights do not name it.")
_NORMALISATION = flags.DEFINE_string("normalisation", "own", "config.teacher.normalisation.")
_DATA = flags.DEFINE_string("data", "cifar100", "Data set to look at a teacher with.")
_OUT = flags.DEFINE_string("out", None, "File for all results, as JSON.")
PAIRS = "shuffled"  # how images are mixed; probes without it mixed each with the next
LAMS = tuple(i / 10 for i in range(11))  # of an image in its mixture
_MOST_CONFUSED = 10  # pairs of classes that are printed


def main(argv: Sequence[str]) -> None:
    """Measure both networks, print the tables, and write the file."""
    del argv
    if bool(_WORKDIR.value) == bool(_TEACHER.value):
        raise UserError(
            f"--workdir={_WORKDIR.value} and --teacher={_TEACHER.value}: expected the directory of "
            "a run, or the weights of a teacher"
        )
    if _WORKDIR.value and (_ARCH.present or _NORMALISATION.present or _DATA.present):
        raise UserError("--arch, --normalisation and --data are for --teacher: a run has its own")
    if _TEACHER.value and _CHECKPOINT.present:
        raise UserError("--checkpoint is for --workdir: a teacher has one set of weights")
    out = reachable(_OUT.value, "--out") if _OUT.value else None
    if out and out.is_dir():
        raise UserError(f"--out={out} is a directory: expected a file to write")
    result = _of_run(Path(_WORKDIR.value)) if _WORKDIR.value else _of_teacher()
    print(_tables(result))
    if out:
        atomic_files.write_json(out, result)


def _of_teacher() -> dict[str, Any]:
    """Return the measures of the teacher that the flags name, on images and on their mixtures."""
    from kd_jax import config as config_lib
    from kd_jax.metrics import fidelity
    from kd_jax.training import setup
    from kd_jax.training.evaluator import Evaluator

    config = config_lib.default_config()
    config.dataset.name = _DATA.value
    config.dataset.val_examples = 0.1  # a share, which fits sets of any size; nobody looks at it
    config.teacher.weights = _TEACHER.value
    config.teacher.arch = _ARCH.value
    config.teacher.normalisation = _NORMALISATION.value
    run = setup.build(config.lock())
    evaluator, labels = Evaluator(run), run.dataset.test.labels
    alone = evaluator.teacher_logits("test")
    assert run.teachers is not None
    assert alone is not None
    line = []
    for lam in LAMS:
        logits = evaluator.teacher_logits_of_mixtures("test", lam)
        known = fidelity.of_mixtures(logits, labels, labels[fidelity.partners(len(labels))])
        record = {"share": lam, "teacher_entropy": fidelity.entropy(logits), **known}
        line.append({name: round(value, 6) for name, value in record.items()})
    return {
        "teacher": run.teachers.arch,
        "normalisation": _NORMALISATION.value,
        "splits": {"test": fidelity.summary(alone, labels)},
        "line": line,
    }


def _of_run(workdir: Path) -> dict[str, Any]:
    """Return the measures of a run's student beside its teacher."""
    from kd_jax.data import class_names
    from kd_jax.training import saved_student
    from kd_jax.training.evaluator import Evaluator

    run, step, variables = saved_student.student(workdir, _CHECKPOINT.value)
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
    return {
        "step": step,
        "student": run.student.arch,
        "teacher": run.teachers.arch if run.teachers else None,
        "class_names": class_names.of(run.config.dataset),
        "splits": {
            split: evaluator.measure_student(variables, split) for split in ("test", "train")
        },
        "line": line or None,
        "pairs": PAIRS,
        "examples": examples,
        "softmax": _softmax(run, evaluator),
        "confusion": _confusion(run, evaluator, variables),
    }


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
    if confusion := result.get("confusion"):
        parts.append(_most_confused(confusion, result["class_names"]))
    return "\n\n".join(parts)


def _most_confused(confusion: dict[str, Any], class_names: Sequence[str] | None) -> str:
    """Return the table of the classes, or superclasses, that are most often taken for others."""
    counts = confusion.get("by_superclass", confusion["by_class"])
    numbers = [str(i) for i in range(len(counts))]
    names = confusion.get("superclasses") or class_names or numbers
    pairs = [
        (counts[i][j], f"{100 * counts[i][j] / max(sum(counts[i]), 1):.1f}", names[i], names[j])
        for i in range(len(counts))
        for j in range(len(counts))
        if i != j and counts[i][j]
    ]
    worst_pairs = sorted(pairs, reverse=True)[:_MOST_CONFUSED]
    header = ["images", "% of them", "what they are", "what they were taken for"]
    return text_tables.markdown([header, *([str(cell) for cell in row] for row in worst_pairs)])


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main)
