"""Measure kd_jax against PyTorch and against plain Flax, side by side on this machine.

    python -m benchmarks [--rows=distil,student,networks] [--rounds=3] [--write]
    KD_JAX_CPU=avx2 python -m benchmarks    # both sides limited to a lower class of processors

What it does is told on stderr. `--write` puts the tables into docs/performance.md, where every
class of processors has its own. Have nothing else running.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import harness, limits, page
from kd_jax import models
from kd_jax.runtime import processor, text_tables
from kd_jax.runtime.errors import UserError, run_command

_ROWS = flags.DEFINE_list("rows", ["distil", "student", "networks"], "What to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of every side.", lower_bound=1)
_WRITE = flags.DEFINE_bool("write", False, "Put the tables into docs/performance.md.")
TEACHERS = ("resnet44", "vgg11_bn", "mobilenetv2_x0_75")
_IMAGE_SHAPE = (32, 32, 3)


def madds(arch: str) -> int:
    """Return the multiply-adds of one image's forward pass."""
    return models.count_madds(models.build(arch, 100, (0.5,) * 3, (0.25,) * 3), _IMAGE_SHAPE)


def _times(ratios: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratios)


def distil(rounds: int, peak: float) -> list[list[str]]:
    """Return the table of distillation steps: ours, best PyTorch, the study's way."""
    rows = [[
        "teacher", "student, batch", "kd_jax images/s", "best PyTorch images/s", "ratio",
        "the study's way images/s", "ratio", "share of GEMM peak", "input", "first step",
        "peak memory", "PyTorch's best form",
    ]]  # fmt: skip
    cases = [(teacher, "mobilenet_v3_small", 512) for teacher in TEACHERS]
    cases.append(("resnet44", "mobilenet_v3_small_cifar", 128))
    for teacher, student, batch in cases:
        spec = {"work": "distil", "teacher": teacher, "student": student, "batch": batch}
        sides = {"ours": spec | {"side": "ours", "input": True}, "torch": harness.best_torch(spec)}
        if (teacher, student) == ("resnet44", "mobilenet_v3_small"):
            sides["study"] = spec | {"side": "study"}
        got = harness.compare(sides, rounds)
        ours = got.median("ours")
        flops = 2 * (madds(teacher) + 3 * madds(student)) * ours
        said = got.said["ours"]
        rows.append([
            teacher, f"{student}, {batch}", f"{ours:.0f}", f"{got.median('torch'):.0f}",
            _times(got.ratios("ours", "torch")),
            f"{got.median('study'):.0f}" if "study" in sides else "-",
            _times(got.ratios("ours", "study")) if "study" in sides else "-",
            f"{flops / 1e9 / peak:.0%}", f"{said['input_seconds'] * ours / batch:.1%}",
            f"{said['first_step_seconds']:.0f} s", f"{got.peak_bytes['ours'] / 2**30:.1f} GiB",
            harness.label(sides["torch"]),
        ])  # fmt: skip
        print(" | ".join(rows[-1]), flush=True)
    return rows


def student(rounds: int, peak: float) -> list[list[str]]:
    """Return the table of the students' training steps alone."""
    rows = [["student, batch", "kd_jax images/s", "best PyTorch images/s", "ratio",
             "share of GEMM peak", "first step", "PyTorch's best form"]]  # fmt: skip
    for arch, batch in (("mobilenet_v3_small", 512), ("mobilenet_v3_small_cifar", 128)):
        spec = {"work": "train", "student": arch, "batch": batch}
        sides = {"ours": spec | {"side": "ours"}, "torch": harness.best_torch(spec)}
        got = harness.compare(sides, rounds)
        ours = got.median("ours")
        rows.append([
            f"{arch}, {batch}", f"{ours:.0f}", f"{got.median('torch'):.0f}",
            _times(got.ratios("ours", "torch")), f"{6 * madds(arch) * ours / 1e9 / peak:.0%}",
            f"{got.said['ours']['first_step_seconds']:.0f} s", harness.label(sides["torch"]),
        ])  # fmt: skip
        print(" | ".join(rows[-1]), flush=True)
    return rows


def networks(rounds: int, peak: float) -> list[list[str]]:
    """Return the table of every network against plain Flax, and evaluation against PyTorch."""
    rows = [["network", "forward images/s", "to plain Flax", "to best PyTorch",
             "PyTorch's best form", "training images/s, batch 64", "to plain Flax"]]  # fmt: skip
    for arch in (*TEACHERS, "mobilenet_v3_small", "mobilenet_v3_small_cifar"):
        spec = {"work": "forward", "student": arch, "batch": 256}
        sides = {name: spec | {"side": name} for name in ("ours", "plain")}
        sides["torch"] = harness.best_torch(spec)
        ahead = harness.compare(sides, rounds)
        training = ["-", "-"]
        if arch not in TEACHERS:  # plain Flax trains those at some images a second
            spec = {"work": "train", "student": arch, "batch": 64}
            both = {name: spec | {"side": name} for name in ("ours", "plain")}
            trained = harness.compare(both, rounds)
            training = [f"{trained.median('ours'):.0f}", _times(trained.ratios("ours", "plain"))]
        rows.append([
            arch, f"{ahead.median('ours'):.0f}", _times(ahead.ratios("ours", "plain")),
            _times(ahead.ratios("ours", "torch")), harness.label(sides["torch"]), *training,
        ])  # fmt: skip
        print(" | ".join(rows[-1]), flush=True)
    return rows


TABLES = {"distil": distil, "student": student, "networks": networks}
_TITLES = {
    "distil": "Distillation step, recipe `funmatch`",
    "student": "Student's training step alone",
    "networks": "Every network",
}


def _machine(peak: float) -> str:
    names = ("jax", "jaxlib", "flax", "torch", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores of {cpu[1] if cpu else 'a CPU'}, "
        f"{limits.describe()}, {platform.system()}, Python {platform.python_version()}, "
        f"{versions}; matrix product {peak:.0f} GFLOP/s."
    )


def _made_by(name: str, minutes: float) -> str:
    limit = os.environ.get(processor.VARIABLE)
    command = f"{f'{processor.VARIABLE}={limit} ' if limit else ''}make bench"
    return (
        f"Made by `{command}` (`python -m benchmarks --rows={name} --rounds={_ROUNDS.value}`) in "
        f"{minutes:.0f} minutes."
    )


def main(argv: Sequence[str]) -> None:
    """Measure, print, and perhaps write."""
    del argv
    unknown = set(_ROWS.value) - set(TABLES)
    if unknown:
        raise UserError(f"--rows has {sorted(unknown)[0]!r}, expected some of {', '.join(TABLES)}")
    with harness.surroundings():
        for name in _ROWS.value:
            began, peak = time.perf_counter(), harness.gemm_peak()
            table: Any = TABLES[name](_ROUNDS.value, peak)
            minutes = (time.perf_counter() - began) / 60
            text = f"{_machine(peak)} {_made_by(name, minutes)}\n\n{text_tables.markdown(table)}"
            print(f"\n{_TITLES[name]}\n\n{text}\n", flush=True)
            if _WRITE.value:
                page.write(name, text, processor.current().name)


if __name__ == "__main__":
    run_command(main)
