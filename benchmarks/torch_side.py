"""The same work in PyTorch, as fast as we can write it; and the study's own way of doing it.

Best PyTorch: images in memory as bytes, crop, flip and mixup as gathers over the whole batch, the
frozen teacher in inference mode with batch norm folded into its convolutions, fused AdamW, as many
threads as cores. For each network the faster of its forms is taken: NCHW or channels_last, and for
the teacher also whole batches or chunks of 64 or 16 images, plain or frozen TorchScript.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.experimental import optimization
from torch.nn import functional

from benchmarks import torch_models

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_MEAN, _STD = (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)
_TEMPERATURE = 5.0


def normalise(pixels: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """Return NHWC pixels in [0, 1] as normalised NCHW in a memory format."""
    normalised = (pixels - torch.tensor(_MEAN)) / torch.tensor(_STD)
    return normalised.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def _seconds(work: Callable[[], Any], repeats: int = 2) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def fastest_forward(
    arch: str, pixels: torch.Tensor
) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """Return the fastest frozen forward pass on these NHWC pixels, and what it is called."""
    best: tuple[float, Callable[[torch.Tensor], torch.Tensor], str] | None = None
    for (name, memory_format), scripted in itertools.product(FORMATS.items(), (False, True)):
        model = optimization.fuse(torch_models.MODELS[arch]().eval())
        model = model.to(memory_format=memory_format)
        if scripted:
            example = normalise(pixels[:16], memory_format)
            model = torch.jit.optimize_for_inference(torch.jit.trace(model, example))
        for chunk in (len(pixels), 64, 16):

            def forward(
                x: torch.Tensor, model: Any = model, chunk: int = chunk, form: Any = memory_format
            ) -> torch.Tensor:
                with torch.inference_mode():
                    parts = [model(normalise(part, form)) for part in x.split(chunk)]
                    return torch.cat(parts)

            taken = _seconds(lambda forward=forward: forward(pixels))
            label = f"{name}{', scripted' if scripted else ''}, chunks of {chunk}"
            if best is None or taken < best[0]:
                best = (taken, forward, label)
    assert best is not None
    return best[1], best[2]


def gather_views(
    images: torch.Tensor, rng: np.random.Generator, example: np.ndarray
) -> torch.Tensor:
    """Return cropped and mirrored views, float NHWC in [0, 1]."""
    count, size = len(example), images.shape[1]
    origin = torch.from_numpy(rng.integers(-4, 5, (2, count, 1)))
    mirror = torch.from_numpy(rng.integers(0, 2, (count, 1)).astype(bool))
    line = torch.arange(size)
    rows, columns = origin[0] + line, origin[1] + line
    columns = torch.where(mirror, columns.flip(1), columns)
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[
        :, None
    ]
    index = torch.from_numpy(example)[:, None, None]
    rows, columns = rows.clamp(0, size - 1)[:, :, None], columns.clamp(0, size - 1)[:, None]
    pixels = images[index, rows, columns]
    return pixels.mul(inside[..., None]).to(torch.float32).div_(255.0)


def best_step(
    images: np.ndarray, teacher: str | None, student: str, batch_size: int
) -> tuple[Callable[[int], None], str]:
    """Return `step(n)` of PyTorch's best, and which forms it chose."""
    torch.set_num_threads(os.cpu_count() or 1)
    memory, labels = torch.from_numpy(images), torch.arange(len(images)) % 100
    rng = np.random.default_rng(0)
    sample = memory[:batch_size].to(torch.float32).div_(255.0)
    chosen, ask = [], None
    if teacher:
        ask, label = fastest_forward(teacher, sample)
        chosen.append(f"teacher {label}")

    def trainer(memory_format: torch.memory_format) -> Callable[[int], None]:
        model = torch_models.MODELS[student]().train().to(memory_format=memory_format)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4, fused=True)

        def step(number: int) -> None:
            example = rng.integers(0, len(images), batch_size)
            pixels = gather_views(memory, rng, example)
            if ask is None:
                logits = model(normalise(pixels, memory_format))
                loss = functional.cross_entropy(logits, labels[torch.from_numpy(example)])
            else:
                partner = gather_views(memory, rng, np.roll(example, -1))
                pixels = torch.lerp(partner, pixels, float(rng.random()))
                target = functional.log_softmax(ask(pixels) / _TEMPERATURE, -1).clone()
                logits = model(normalise(pixels, memory_format))
                own = functional.log_softmax(logits / _TEMPERATURE, -1)
                divergence = functional.kl_div(own, target, reduction="batchmean", log_target=True)
                loss = _TEMPERATURE**2 * divergence
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    steps = {name: trainer(memory_format) for name, memory_format in FORMATS.items()}
    name = min(steps, key=lambda name: _seconds(lambda: steps[name](0)))
    chosen.append(f"student {name}")
    return steps[name], "; ".join(chosen)


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
) -> tuple[Callable[[int], None], str]:
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
    master, pupil = torch_models.MODELS[teacher]().eval(), torch_models.MODELS[student]().train()
    optimizer = torch.optim.Adam(pupil.parameters(), 1e-3, weight_decay=1e-4)
    criterion = nn.KLDivLoss(reduction="sum")

    def step(number: int) -> None:
        first, second = (next(batches) for batches in endless)
        share = torch.rand(batch_size, 1, 1, 1)
        mixed = share * first + (1 - share) * second
        target = functional.softmax(master(mixed) / _TEMPERATURE, -1)
        own = functional.log_softmax(pupil(mixed) / _TEMPERATURE, -1)
        optimizer.zero_grad()
        criterion(own, target).backward()
        optimizer.step()

    return step, "NCHW, data loader, PIL"
