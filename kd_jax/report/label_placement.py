"""Where the labels of a figure stand so that they do not overlap; positions are in [0, 1] of axes.

Why not adjustText: with a limit on iterations it is deterministic, and it separates a crowd of
labels better, with lines to their points. But in the figures of a usual study it moves labels that
`place_labels` puts right beside their points: neighbours get different sides, and some labels end
on a marker. It also centres each label, measured in matplotlib's font, while the page has the
reader's font: a narrower one then leaves a gap, whereas a label anchored at the side that faces its
point stays there.
"""

from __future__ import annotations

from collections.abc import Sequence

# Rough sizes as fractions of the axes of a figure of `figure_style.SIZE`: the width of a letter,
# the height of a line, half the width of a marker.
LETTER_WIDTH, _LINE_HEIGHT, _MARKER = 0.0185, 0.068, 0.018
Box = tuple[float, float, float, float]  # left, bottom, right, top
Place = tuple[float, float, str]  # x, y, and the side of the label that is at x


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights in [0, 1] apart until no two are nearer than `gap`; their order is kept.

    If they do not all fit, they fill [0, 1] evenly.
    """
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    positions = list(heights)
    floor = 0.0
    for i in order:
        positions[i] = floor = max(heights[i], floor)
        floor += gap
    ceiling = 1.0
    for i in reversed(order):
        positions[i] = ceiling = min(positions[i], ceiling)
        ceiling -= gap
    return positions


def place_labels(labels: Sequence[str], points: Sequence[tuple[float, float]]) -> list[Place]:
    """Place each label beside its point, as far as possible off other points and labels.

    Greedy: labels are placed in the given order, each at the candidate with the least overlap.

    Args:
      labels: one per point; an empty one takes no room.
      points: x and y in [0, 1].

    Returns:
      x and y in [0, 1], and the side of the label that is at x: `left`, `right` or `center`.
    """
    obstacles: list[Box] = [
        (x - _MARKER, y - 1.4 * _MARKER, x + _MARKER, y + 1.4 * _MARKER) for x, y in points
    ]
    places = []
    for label, (x, y) in zip(labels, points, strict=True):
        width = LETTER_WIDTH * len(label)
        candidates = []  # the nearest first, which wins a tie
        for rise in (0, _LINE_HEIGHT, -_LINE_HEIGHT, 2 * _LINE_HEIGHT, -2 * _LINE_HEIGHT):
            shift = 1.4 * _MARKER if rise == 0 else 0
            candidates += [(x + shift, y + rise, "left"), (x - shift, y + rise, "right")]
            candidates += [(x, y + rise, "center")] if rise else []
        place = min(candidates, key=lambda place: _penalty(label_box(place, width), obstacles))
        places.append(place)
        obstacles += [label_box(place, width)] if label else []
    return places


def label_box(place: Place, width: float) -> Box:
    """Return the box of a label of a width that stands at a place."""
    x, y, side = place
    left = x - {"left": 0.0, "center": width / 2, "right": width}[side]
    return left, y - _LINE_HEIGHT / 2, left + width, y + _LINE_HEIGHT / 2


def overlap(box: Box, other_box: Box) -> float:
    """Return the area that two boxes share."""
    width = min(box[2], other_box[2]) - max(box[0], other_box[0])
    height = min(box[3], other_box[3]) - max(box[1], other_box[1])
    return width * height if width > 0 and height > 0 else 0.0


def _penalty(box: Box, obstacles: Sequence[Box]) -> float:
    """Return how bad a box is: its overlap with obstacles, and ten times what leaves the axes."""
    excess = max(-box[0], 0) + max(box[2] - 1, 0) + max(-box[1], 0) + max(box[3] - 1, 0)
    areas = [overlap(box, obstacle) for obstacle in obstacles]
    return 10 * excess + sum(areas) + 0.1 * sum(area > 0 for area in areas)
