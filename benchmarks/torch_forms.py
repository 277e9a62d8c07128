"""The forms in which PyTorch can run a frozen network or train one: what the search chooses from.

A form is plain data, so that one process finds it and another builds it. Weights and running
statistics come from a seed and are those of every form, so results can be compared.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.fx.experimental import optimization
from torch.nn import functional

from benchmarks import torch_models

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
TEMPERATURE = 5.0
_MEAN, _STD = (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)
_STATISTICS_IMAGES = 64
Ask = Callable[[torch.Tensor], torch.Tensor]


class Forward(NamedTuple):
    """A frozen network's form.

    Attributes:
      layout: of the images, one of `FORMATS`.
      kind: `eager` (batch norm folded), `scripted` (frozen TorchScript) or `compiled` (Inductor
        with freezing, once for chunks of all sizes).
      chunk: images at a time; 0: all.
    """

    layout: str
    kind: str
    chunk: int

    def __str__(self) -> str:
        return f"{self.layout}, {self.kind}, {f'chunks of {self.chunk}' if self.chunk else 'whole'}"


class Training(NamedTuple):
    """A training step's form.

    Attributes:
      layout: of the images, one of `FORMATS`.
      kind: `eager`; or `compiled`, views and network with its gradient by Inductor.
    """

    layout: str
    kind: str

    def __str__(self) -> str:
        return f"{self.layout}, {self.kind}"


def normalise(pixels: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """Return NHWC pixels in [0, 1] as normalised NCHW in a memory format."""
    normalised = (pixels - torch.tensor(_MEAN)) / torch.tensor(_STD)
    return normalised.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


@functools.cache
def frozen(arch: str) -> nn.Module:
    """Return a network in eval mode whose running statistics are those of its own maps."""
    torch.manual_seed(0)
    model = torch_models.MODELS[arch]().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(normalise(torch.rand(_STATISTICS_IMAGES, 32, 32, 3), torch.contiguous_format))
    return model.eval()


def forward(arch: str, form: Forward) -> Ask:
    """Return a frozen network, of NHWC pixels in [0, 1], in a form."""
    part = _part(arch, form.layout, form.kind)

    def ask(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            parts = pixels.split(form.chunk) if form.chunk else (pixels,)
            return torch.cat([part(x) for x in parts])

    return ask


@functools.cache
def _part(arch: str, layout_name: str, kind: str) -> Ask:
    """Return what answers about one chunk, of whatever size."""
    layout = FORMATS[layout_name]
    if kind != "compiled":
        model: Any = optimization.fuse(frozen(arch)).to(memory_format=layout)
        if kind == "scripted":
            example = normalise(torch.rand(16, 32, 32, 3), layout)
            model = torch.jit.optimize_for_inference(torch.jit.trace(model, example))
        return lambda x: model(normalise(x, layout))
    moved = copy.deepcopy(frozen(arch)).to(memory_format=layout)

    def whole(x: torch.Tensor) -> torch.Tensor:
        return moved(normalise(x, layout))

    # Freezing folds batch norm and packs the weights.
    compiled = torch.compile(whole, options={"freezing": True})

    def any_batch(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.mark_dynamic(x, 0)
        return compiled(x)

    return any_batch


class Draw(NamedTuple):
    """What is random about one batch of views."""

    example: torch.Tensor
    origin: torch.Tensor
    mirror: torch.Tensor

    @classmethod
    def of(cls, rng: np.random.Generator, example: np.ndarray) -> Draw:
        """Draw crops and flips for some examples."""
        count = len(example)
        origin = torch.from_numpy(rng.integers(-4, 5, (2, count, 1)))
        mirror = torch.from_numpy(rng.integers(0, 2, (count, 1)).astype(bool))
        return cls(torch.from_numpy(example), origin, mirror)


def gather_views(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Return cropped and mirrored views, float NHWC in [0, 1]."""
    size = images.shape[1]
    line = torch.arange(size)
    rows, columns = draw.origin[0] + line, draw.origin[1] + line
    columns = torch.where(draw.mirror, columns.flip(1), columns)
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[
        :, None
    ]
    rows, columns = rows.clamp(0, size - 1)[:, :, None], columns.clamp(0, size - 1)[:, None]
    pixels = images[draw.example[:, None, None], rows, columns]
    return pixels.mul(inside[..., None]).to(torch.float32).div(255.0)


def _mixed(images: torch.Tensor, one: Draw, two: Draw, share: torch.Tensor) -> torch.Tensor:
    return torch.lerp(gather_views(images, two), gather_views(images, one), share)


class Trainer:
    """A student in training, in a form."""

    def __init__(
        self, images: torch.Tensor, arch: str, batch_size: int, form: Training, ask: Ask | None
    ):
        """Set it up. `ask` gives the teacher's logits; None: train from labels."""
        torch.manual_seed(0)
        layout = FORMATS[form.layout]
        self._images, self._batch_size, self._ask = images, batch_size, ask
        self._labels = torch.arange(len(images)) % 100
        self._rng = np.random.default_rng(0)
        model = torch_models.MODELS[arch]().train().to(memory_format=layout)
        self._parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(self._parameters, 1e-3, weight_decay=1e-4, fused=True)

        def network(pixels: torch.Tensor) -> torch.Tensor:
            return model(normalise(pixels, layout))

        # Without the loss, which is small: so both tasks share what is compiled.
        take: Any = lambda work: work  # noqa: E731
        if form.kind == "compiled":
            take = functools.partial(torch.compile, dynamic=False)
        self._network, self._views, self._mixed = take(network), take(gather_views), take(_mixed)
        self._optimizer = optimizer

    def step(self, number: int) -> torch.Tensor:
        """Make one step; return its loss."""
        del number
        rng, example = self._rng, self._rng.integers(0, len(self._images), self._batch_size)
        one = Draw.of(rng, example)
        if self._ask is None:
            pixels = self._views(self._images, one)
            loss = functional.cross_entropy(self._network(pixels), self._labels[one.example])
        else:
            two = Draw.of(rng, np.roll(example, -1))
            pixels = self._mixed(self._images, one, two, torch.tensor(float(rng.random())))
            target = functional.log_softmax(self._ask(pixels) / TEMPERATURE, -1).clone()
            own = functional.log_softmax(self._network(pixels) / TEMPERATURE, -1)
            divergence = functional.kl_div(own, target, reduction="batchmean", log_target=True)
            loss = TEMPERATURE**2 * divergence
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        return loss.detach()

    def gradient(self) -> torch.Tensor:
        """Return the last step's clipped gradient as one vector."""
        return torch.cat([x.grad.flatten() for x in self._parameters if x.grad is not None])
