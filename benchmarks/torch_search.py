"""Find PyTorch's fastest form of one network, within a time: a process of its own.

    python -m benchmarks.torch_search '{"work": "forward", "arch": "resnet44", "batch": 512}'

Short trials first: every kind in the chunk that wins most often; then the other chunks of those
kinds that are near the best; then the best few in turns. Every candidate's result is compared with
the eager one's, and the search ends where they differ. What it does is told on stderr, a line a
candidate; the form is printed as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import torch_forms
from benchmarks.torch_forms import Forward, Training

BUDGET_SECONDS = {"forward": 60.0, "train": 45.0}  # a candidate begun is finished
_CHUNKS = (64, 32, 16, 0)
_NEAR = 0.8  # of the best rate: other chunks of this kind are tried
_TRIALS, _FINALISTS, _FINAL_ROUNDS = 2, 3, 3
# Relative. Rounding alone tells the eager gradients of the two layouts apart by 3e-3.
_LOGITS_OFF, _LOSS_OFF, _GRADIENT_OFF = 1e-4, 1e-5, 1e-2
_COMPARED_IMAGES = 64
Form = Forward | Training
Work = Callable[[], Any]


class Search:
    """Candidates tried so far, and the time that is left."""

    def __init__(self, name: str, images: int, seconds: float, make: Callable[[Form], Work]):
        """Begin.

        Args:
          name: of the network, for what is told.
          images: that one piece of work takes.
          seconds: after which no candidate is begun.
          make: builds a form, compares its result, and returns one piece of its work.
        """
        self._name, self._images, self._make = name, images, make
        self._end = time.perf_counter() + seconds
        self._seconds: dict[Form, float] = {}
        self._works: dict[Form, Work] = {}
        self.left_out = 0

    def rate(self, form: Form) -> float:
        """Return a form's images a second; 0: not tried, or it did not work."""
        return self._images / self._seconds[form] if form in self._seconds else 0.0

    @property
    def best(self) -> float:
        """The best rate."""
        return max(map(self.rate, self._seconds), default=0.0)

    def try_out(self, forms: Iterable[Form]) -> None:
        """Try some forms, as long as there is time."""
        for form in forms:
            if time.perf_counter() > self._end and self._seconds:
                self.left_out += 1
                continue
            began = time.perf_counter()
            try:
                work = self._make(form)
            except _NOT_THERE as error:
                reason = str(error).strip().splitlines()
                self._tell(f"{form}: does not work here: {reason[0] if reason else error!r}")
                continue
            ready = time.perf_counter() - began
            self._works[form] = work
            self._seconds[form] = min(_seconds(work) for _ in range(_TRIALS))
            self._tell(f"{form}: {self.rate(form):.0f} images/s, ready after {ready:.1f} s")
            for loser in sorted(self._works, key=self.rate)[:-_FINALISTS]:
                del self._works[loser]  # and its memory

    def decide(self) -> Form:
        """Return the fastest, after some more turns of the best few."""
        for _ in range(_FINAL_ROUNDS if len(self._works) > 1 else 0):
            for form, work in self._works.items():
                self._seconds[form] = min(self._seconds[form], _seconds(work))
        chosen = max(self._works, key=self.rate)
        cut = f"; no time for {self.left_out} candidates" if self.left_out else ""
        self._tell(f"takes {chosen}: {self.rate(chosen):.0f} images/s{cut}")
        return chosen

    def _tell(self, text: str) -> None:
        print(f"PyTorch, {self._name}: {text}", file=sys.stderr, flush=True)


# No C++ compiler, or a construct that Inductor does not take: the other forms are left.
_NOT_THERE = (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError)


def _seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def _require(name: str, form: Form, what: str, off: float, allowed: float) -> None:
    if not off <= allowed:
        raise SystemExit(
            f"{name} as {form}: {what} differs from the eager form's by {off:.1e} of its size, "
            f"expected at most {allowed:.0e}"
        )


def forward_form(arch: str, pixels: torch.Tensor, seconds: float) -> tuple[Forward, int]:
    """Return the fastest form of a frozen network, and how many were left out for time.

    Args:
      arch: of `torch_models.MODELS`.
      pixels: NHWC in [0, 1], all that the network is asked about at once.
      seconds: the budget.
    """
    with torch.inference_mode():
        some = pixels[:_COMPARED_IMAGES]
        expected = torch_forms.frozen(arch)(torch_forms.normalise(some, torch.contiguous_format))

    def make(form: Form) -> Work:
        assert isinstance(form, Forward)
        ask = torch_forms.forward(arch, form)
        got = ask(pixels)[:_COMPARED_IMAGES]
        _require(arch, form, "the logits", _off(got, expected), _LOGITS_OFF)
        return lambda: ask(pixels)

    search = Search(f"{arch} forward", len(pixels), seconds, make)
    kinds = list(itertools.product(torch_forms.FORMATS, ("eager", "scripted")))
    kinds.append(("channels_last", "compiled"))  # on a CPU never NCHW, see training_form
    search.try_out(Forward(*kind, _CHUNKS[0]) for kind in kinds)
    near = [k for k in kinds if search.rate(Forward(*k, _CHUNKS[0])) > _NEAR * search.best]
    near.sort(key=lambda kind: -search.rate(Forward(*kind, _CHUNKS[0])))
    search.try_out(Forward(*kind, chunk) for kind in near for chunk in _CHUNKS[1:])
    return search.decide(), search.left_out  # type: ignore[return-value]


def training_form(
    arch: str, images: torch.Tensor, batch_size: int, seconds: float
) -> tuple[Training, int]:
    """Return the fastest form of a student's step, and how many were left out for time."""
    expected: list[torch.Tensor] = []

    def make(form: Form) -> Work:
        assert isinstance(form, Training)
        trainer = torch_forms.Trainer(images, arch, batch_size, form, None)
        loss, gradient = trainer.step(0), trainer.gradient()
        if not expected:
            expected.extend((loss, gradient))
        _require(arch, form, "the loss", _off(loss, expected[0]), _LOSS_OFF)
        _require(arch, form, "the gradient", _off(gradient, expected[1]), _GRADIENT_OFF)
        trainer.step(1)
        return lambda: trainer.step(2)

    search = Search(f"{arch} training, batch {batch_size}", batch_size, seconds, make)
    search.try_out(Training(layout, "eager") for layout in torch_forms.FORMATS)
    # On a CPU Inductor always takes channels_last (torch/_inductor/graph.py, decide_layout_opt).
    search.try_out([Training("channels_last", "compiled")])
    return search.decide(), search.left_out  # type: ignore[return-value]


def main(argv: Sequence[str]) -> None:
    """Search for one network; print its form and what it is called."""
    spec = json.loads(argv[1])
    torch.set_num_threads(os.cpu_count() or 1)
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3), np.uint8)
    )
    work, arch, batch = spec["work"], spec["arch"], spec["batch"]
    seconds = BUDGET_SECONDS[work]
    if work == "forward":
        pixels = images[:batch].to(torch.float32).div_(255.0)
        form, left_out = forward_form(arch, pixels, seconds)
    else:
        form, left_out = training_form(arch, images, batch, seconds)  # type: ignore[assignment]
    label = f"{form} (of a search cut short)" if left_out else str(form)
    print(json.dumps({"form": form, "label": label}), flush=True)


if __name__ == "__main__":
    from kd_jax.runtime import huge_pages

    huge_pages.enable()
    main(sys.argv)
