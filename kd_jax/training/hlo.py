"""What a compiled program sends between devices, read from XLA's text of it."""

from __future__ import annotations

import math
import re

_COLLECTIVE = re.compile(
    r" = (?P<result>.+?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
_ARRAY = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d*)\[(?P<shape>[\d,]*)\]")
_COMPUTATION = re.compile(r"(?:ENTRY )?%(?P<name>[\w.\-]+) .*\{")
_LOOP = re.compile(r" while\(.*body=%(?P<body>[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALL = re.compile(r"(?:to_apply|branch_computations|calls)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")


def collectives(text: str) -> tuple[int, int]:
    """Return how many collectives a run of a program makes, and the bytes of their results.

    What is in a loop counts as often as the loop runs, or once where XLA does not know; of a
    condition's branches all count.

    Args:
      text: of one device's program, as `compiled.as_text()` returns it.
    """
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head["name"]
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)

    def count(name: str) -> tuple[int, int]:
        number = size = 0
        for line in bodies[name]:
            callees, repeats = [], 1
            if collective := _COLLECTIVE.search(line):
                number, size = number + 1, size + _bytes(collective["result"])
            elif loop := _LOOP.search(line):
                trips = _TRIPS.search(line)
                callees, repeats = [loop["body"]], int(trips[1]) if trips else 1
            elif call := _CALL.search(line):
                callees = [reference.removeprefix("%") for reference in call[1].split(", ")]
            for part in map(count, callees):
                number, size = number + repeats * part[0], size + repeats * part[1]
        return number, size

    return count(entry)


def _bytes(result: str) -> int:
    """Return the bytes of a result, an array such as `f32[2,16]{1,0}` or a tuple of such."""
    total = 0
    for array in _ARRAY.finditer(result):
        elements = math.prod(int(n) for n in array["shape"].split(",") if n)
        total += elements * max(1, int(array["bits"] or 8) // 8)
    return total
