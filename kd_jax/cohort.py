"""Runs that are trained together. A stand-in: one after another, and nothing belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax import interrupt
from kd_jax.train import train as train_one


def key(config: ConfigDict) -> str | None:
    """Return what the runs that may be trained together have in common; None: alone."""
    del config
    return None


def train(
    configs: Sequence[ConfigDict], directories: Sequence[Path], stop: interrupt.StopRequest
) -> list[dict[str, Any]]:
    """Train several runs, and return the result of each."""
    return [
        train_one(config, path, stop) for config, path in zip(configs, directories, strict=True)
    ]
