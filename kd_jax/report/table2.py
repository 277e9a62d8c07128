"""What the study published, to stand beside what was measured here.

Source: Roset, Thomas, Lisboa 2023, "Understanding Teacher-Student Architectural Choices on
Knowledge Distillation", Tables 1 and 2; figures by their numbers there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Network(NamedTuple):
    """A row of Table 1: top-1 in percent on CIFAR-100's test split, and multiply-adds an image."""

    name: str
    top1: float
    madds: float


class Student(NamedTuple):
    """A row of Table 2: how a student was trained, and its top-1 in percent.

    Attributes:
      teacher: None for the student that learnt from labels alone.
      temperatures: the table's; and where the study's code and its figure have another, that too.
    """

    teacher: str | None
    mixup: bool
    learning_rate: float
    temperatures: tuple[float, ...]
    epochs: int
    top1: float


class Published(NamedTuple):
    """A published top-1 in percent, and where it stands."""

    top1: float
    source: str


SOURCE = "Table 2 of the study"
DATASET, STUDENT = "cifar100", "mobilenet_v3_small"
TABLE_1 = (
    Network("resnet44", 71.63, 97.44e6),
    Network("vgg11_bn", 70.78, 153.34e6),
    Network("mobilenetv2_x0_75", 73.61, 59.43e6),
)
TABLE_2 = (
    Student(None, False, 0.001, (), 25, 31.53),
    Student("resnet44", True, 0.001, (5,), 400, 40.67),
    Student("vgg11_bn", True, 0.001, (5,), 400, 37.26),
    Student("mobilenetv2_x0_75", True, 0.001, (5,), 400, 42.22),
    Student("mobilenetv2_x0_75", True, 0.001, (2,), 300, 39.14),
    Student("mobilenetv2_x0_75", True, 0.001, (10,), 300, 43.42),
    Student("mobilenetv2_x0_75", True, 0.01, (10, 2), 300, 40.97),
    Student("mobilenetv2_x0_75", True, 0.003, (5,), 300, 42.30),
    Student("mobilenetv2_x0_75", False, 0.001, (10,), 300, 48.21),
)
# What a figure of the study compares, by the field that differs here.
FIGURES = {
    "teacher": "Fig. 7",
    "distill.temperature": "Fig. 8",
    "learning_rate": "Figs. 9 and 10",
    "mixup": "Fig. 11",
}
SCRATCH_FIGURE, SOFTMAX_FIGURE, MIXUP_FIGURE = "Fig. 6", "Fig. 2", "Fig. 3"


def is_its_question(result: Mapping[str, Any]) -> bool:
    """Tell whether a run trained the study's student on the study's data."""
    return result["dataset"] == DATASET and result["student"] == STUDENT


def find(config: Mapping[str, Any], result: Mapping[str, Any]) -> Published | None:
    """Return what the study published for a run's settings; None where it has no such row.

    Teacher, mixup, learning rate and temperature decide; recipe and epochs may be others, but not
    the test images.

    Args:
      config: flat, `field.path` to value.
      result: of the run.
    """
    if not config or not is_its_question(result) or config["dataset.test_split"] != "test":
        return None
    alone = config["distill.label_weight"] == 1
    settings = (
        None if alone else result["teacher"],
        config["mixup.kind"] != "none",
        config["learning_rate"],
    )
    for row in TABLE_2:
        if (row.teacher, row.mixup, row.learning_rate) == settings and (
            alone or config["distill.temperature"] in row.temperatures
        ):
            return Published(row.top1, SOURCE)
    return None
