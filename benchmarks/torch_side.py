"""The same work in PyTorch, as fast as we can write it; and the study's own way of doing it.

Best PyTorch: images in memory as bytes, crop, flip and mixup as gathers over the whole batch, the
frozen teacher in inference mode with batch norm folded into its convolutions, as many threads as
cores. `torch_search` finds each network's fastest form: eager, frozen TorchScript or compiled by
Inductor, NCHW or channels_last, whole batches or chunks.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import torch_forms, torch_models
from benchmarks.torch_forms import TEMPERATURE, Forward, Training


def forward(arch: str, images: np.ndarray, form: Sequence[Any]) -> Callable[[int], Any]:
    """Return a step that asks a frozen network, in a form, about all of some images."""
    torch.set_num_threads(os.cpu_count() or 1)
    pixels = torch.from_numpy(images).to(torch.float32).div_(255.0)
    ask = torch_forms.forward(arch, Forward(*form))
    return lambda _: ask(pixels)


def best_step(
    images: np.ndarray,
    teacher: str | None,
    student: str,
    batch_size: int,
    forms: dict[str, Sequence[Any]],
) -> Callable[[int], Any]:
    """Return `step(n)` of PyTorch's best: `forms` says how `forward` and `train` are done."""
    torch.set_num_threads(os.cpu_count() or 1)
    memory, ask = torch.from_numpy(images), None
    if teacher:
        ask = torch_forms.forward(teacher, Forward(*forms["forward"]))
    trainer = torch_forms.Trainer(memory, student, batch_size, Training(*forms["train"]), ask)
    return trainer.step


class _Images(torch.utils.data.Dataset):
    """PIL images, one at a time, each turned into a tensor and normalised by (0.5, 0.5)."""

    def __init__(self, images: np.ndarray):
        from PIL import Image

        self._images = [Image.fromarray(image) for image in images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(self._images[index])).permute(2, 0, 1)
        return (tensor.to(torch.float32).div(255.0) - 0.5) / 0.5


def study_step(
    images: np.ndarray, teacher: str, student: str, batch_size: int
) -> Callable[[int], None]:
    """Return `step(n)` the way the study's code works: see seed_facts and its repository.

    A data loader that turns PIL images into tensors one by one, two of them for mixup, NCHW, Adam
    with L2, and a teacher whose graph is kept although nobody needs its gradient.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    dataset = _Images(images)
    loaders = [
        torch.utils.data.DataLoader(
            dataset, batch_size, shuffle=True, num_workers=1, drop_last=True
        )
        for _ in range(2)
    ]
    endless = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders]
    teacher_network, student_network = (
        torch_models.MODELS[teacher]().eval(),
        torch_models.MODELS[student]().train(),
    )
    optimizer = torch.optim.Adam(student_network.parameters(), 1e-3, weight_decay=1e-4)
    criterion = nn.KLDivLoss(reduction="sum")

    def step(number: int) -> None:
        first, second = (next(batches) for batches in endless)
        share = torch.rand(batch_size, 1, 1, 1)
        mixed = share * first + (1 - share) * second
        target = functional.softmax(teacher_network(mixed) / TEMPERATURE, -1)
        own = functional.log_softmax(student_network(mixed) / TEMPERATURE, -1)
        optimizer.zero_grad()
        criterion(own, target).backward()
        optimizer.step()

    return step
