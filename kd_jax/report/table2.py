"""What the study published: its Tables 1 and 2, and which of its figures compares what.

Source: Roset, Thomas, Lisboa 2023, "Understanding Teacher-Student Architectural Choices on
Knowledge Distillation", Tables 1 and 2; figures by their numbers there. Imports no JAX:
`configs/studies/` read their rows and published values from here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Network(NamedTuple):
    """A row of Table 1: top-1 in percent on CIFAR-100's test split, and multiply-adds per image."""

    name: str
    top1: float
    madds: float


class Student(NamedTuple):
    """A row of Table 2: how a student was trained, and its top-1 in percent.

    Attributes:
      teacher: None for the student trained from labels alone.
      temperatures: that of the table first; then that of the study's code and figure, if it
        differs.
      epochs: planned; the student from labels alone stops early.
    """

    teacher: str | None
    mixup: bool
    learning_rate: float
    temperatures: tuple[float, ...]
    epochs: float
    top1: float


class Published(NamedTuple):
    """A published top-1 in percent, and where it was published."""

    top1: float
    source: str


SOURCE = "Table 2 of the study"
CITATION = "Roset, Thomas, Lisboa 2023, Table 2"
DATASET, STUDENT = "cifar100", "mobilenet_v3_small"
TABLE_1 = (
    Network("resnet44", 71.63, 97.44e6),
    Network("vgg11_bn", 70.78, 153.34e6),
    Network("mobilenetv2_x0_75", 73.61, 59.43e6),
)
TABLE_2 = (
    Student(None, False, 0.001, (), 25.0, 31.53),
    Student("resnet44", True, 0.001, (5.0,), 400.0, 40.67),
    Student("vgg11_bn", True, 0.001, (5.0,), 400.0, 37.26),
    Student("mobilenetv2_x0_75", True, 0.001, (5.0,), 400.0, 42.22),
    Student("mobilenetv2_x0_75", True, 0.001, (2.0,), 300.0, 39.14),
    Student("mobilenetv2_x0_75", True, 0.001, (10.0,), 300.0, 43.42),
    Student("mobilenetv2_x0_75", True, 0.01, (10.0, 2.0), 300.0, 40.97),
    Student("mobilenetv2_x0_75", True, 0.003, (5.0,), 300.0, 42.30),
    Student("mobilenetv2_x0_75", False, 0.001, (10.0,), 300.0, 48.21),
)
# The study's figure for a comparison, by the field that differs here.
FIGURES = {
    "teacher": "Fig. 7",
    "distill.temperature": "Fig. 8",
    "learning_rate": "Figs. 9 and 10",
    "mixup": "Fig. 11",
}
SCRATCH_FIGURE, SOFTMAX_FIGURE, MIXUP_FIGURE = "Fig. 6", "Fig. 2", "Fig. 3"


def trains_the_studys_student(result: Mapping[str, Any]) -> bool:
    """Return whether a run trained the study's student on the study's data set."""
    return result["dataset"] == DATASET and result["student"] == STUDENT


def find_student(
    teacher: str | None, mixup: bool, learning_rate: float, temperature: float
) -> Student | None:
    """Return the row of Table 2 with these settings; None if there is none.

    Args:
      teacher: its name; None for the student trained from labels alone.
      mixup: whether images are mixed.
      learning_rate: as in the table.
      temperature: ignored without a teacher.
    """
    for student in TABLE_2:
        if (student.teacher, student.mixup, student.learning_rate) == (
            teacher,
            mixup,
            learning_rate,
        ) and (teacher is None or temperature in student.temperatures):
            return student
    return None


def find_published(config: Mapping[str, Any], result: Mapping[str, Any]) -> Published | None:
    """Return the published value for the settings of a run; None if Table 2 has no such row.

    Teacher, mixup, learning rate and temperature must match, and the test images; recipe and
    epochs may differ.

    Args:
      config: flat, `field.path` to value; empty if the run has none.
      result: content of its `result.json`.
    """
    if not config or not trains_the_studys_student(result):
        return None
    if config["dataset.test_split"] != "test":
        return None
    student = find_student(
        teacher=None if config["distill.label_weight"] == 1 else result["teacher"],
        mixup=config["mixup.kind"] != "none",
        learning_rate=config["learning_rate"],
        temperature=config["distill.temperature"],
    )
    return Published(student.top1, SOURCE) if student else None
