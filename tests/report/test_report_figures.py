"""What the report draws with: labels apart, colours told apart, and the examples that are shown."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.data import catalog
from kd_jax.data.sources import Split
from kd_jax.metrics import fidelity
from kd_jax.report import figure_style, figures, label_placement, probe_images


@given(st.lists(st.floats(0, 1), max_size=15), st.floats(0, 0.3))
def test_labels_are_spread_and_keep_their_order(heights, gap):
    placed = label_placement.spread(heights, gap)
    needed = min(gap, 1 / max(len(heights) - 1, 1))
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in placed)
    ordered = [y for _, y in sorted(zip(heights, placed, strict=True))]
    assert all(b - a >= needed - 1e-9 for a, b in itertools.pairwise(ordered))


def test_labels_of_points_stand_on_nothing():
    points = [(0.68, 0.95), (0.82, 0.91), (0.905, 0.885), (0.09, 0.35), (0.09, 0.4)]
    labels = ["mobilenetv2_x0_75", "resnet44", "vgg11_bn", "", "no mixup"]
    places = label_placement.place_labels(labels, points)
    boxes = [
        label_placement.label_box(place, label_placement.LETTER_WIDTH * len(label))
        for place, label in zip(places, labels, strict=True)
        if label
    ]
    for i, box in enumerate(boxes):
        assert box[0] >= 0 and box[2] <= 1  # noqa: PT018
        assert not any(label_placement.overlap(box, other) for other in boxes[:i])


def test_a_line_ends_with_its_last_value_and_what_was_published():
    seeds = [[(1, 10.0), (2, 20.0)], [(1, 12.0), (2, 22.0)]]
    svg = figures.lines([figures.Line("T = 2", seeds, 39.14)], "top-1, %", "epoch")
    assert ">T = 2: 21.0 (39.14)<" in svg
    assert "$" not in figures.lines([figures.Line("a", [[(0, 1e-4), (1, 10.0)]])], "loss", "x")


# Machado et al. 2009: what is left of linear RGB without one kind of cone.
_VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def _linear(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    scaled = (np.array(to_xyz) @ np.clip(linear, 0, 1)) / (0.9505, 1, 1.089)
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("mode", "paper"), [(0, "#ffffff"), (1, "#15181c")])
def test_colours_are_legible_and_can_be_told_apart(mode, paper):
    def light(colour):
        return float(_linear(colour) @ (0.2126, 0.7152, 0.0722))

    for name, pair in figure_style.PALETTE.items():
        bright, dim = sorted((light(pair[mode]), light(paper)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, name  # WCAG AA for small text
    colours = [pair[mode] for name, pair in figure_style.PALETTE.items() if name != "--muted"]
    for vision, matrix in _VISIONS.items():
        simulated = [_lab(np.array(matrix) @ _linear(colour)) for colour in colours]
        distances = [np.linalg.norm(a - b) for i, a in enumerate(simulated) for b in simulated[:i]]
        assert min(distances) > 20, vision  # of 100 from black to white


def test_the_examples_are_what_the_networks_saw():
    images = np.zeros((12, 8, 8, 3), np.uint8)
    other = int(fidelity.partners(12)[2])
    images[2], images[other] = 200, 100
    split = Split(images, np.arange(12, dtype=np.int32) % 4)
    logits = np.tile(np.array([0.0, 3.0, 1.0, 2.0]), (12, 1))
    shown = probe_images.mixtures(split, 0.8, logits, -logits)
    assert len(shown) == 1
    assert (shown[0]["own"]["label"], shown[0]["other"]["label"]) == (2, other % 4)
    assert shown[0]["mixture"] == probe_images.png(np.full((8, 8, 3), 180, np.uint8))
    assert [one["class"] for one in shown[0]["teacher"]] == [1, 3, 2]
    assert [one["class"] for one in shown[0]["student"]] == [0, 2, 3]
    assert probe_images.mixtures(split, 0.3, logits, logits) == []


def test_the_softened_image_is_a_typical_right_one():
    logits = np.log(np.array([[0.89, 0.11], [0.1, 0.9], [0.6, 0.4]]))
    split = Split(np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 0, 0], np.int32))
    assert probe_images.softmax(split, logits)["index"] == 0  # nearer to 0.9 is wrong


def test_class_names_are_the_data_sets_own(cifar100_dir):
    published = sorted(cifar100_dir.glob("cifar100/*/label.labels.txt"))[-1].read_text().split()
    assert [name.replace(" ", "_") for name in catalog.facts("cifar100").class_names] == published
