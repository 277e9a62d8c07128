"""Decoded data sets, kept in the user's cache.

Starting TensorFlow and decoding 60,000 PNG files takes longer than starting everything else, and a
run that is resumed often would pay for it each time. What is kept is found again by all that the
arrays depend on: for each file its split, its class and its path, where links in that path lead,
its size and when it was written, for an image of a folder also its number in the file system and
when that changed; and the options. Of one directory and the same options only the newest is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data.splits import Source, Split
from kd_jax.runtime import caches, memory
from kd_jax.runtime.console import logger

# Of what decoding makes of the files. Another one when it makes something else of any of them.
_VERSION = 2
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a data set as it was found.

    Attributes:
      path: as it stands in the data set, links not resolved.
      stat: of what it leads to.
      split, label: what it is in; none where the file itself knows.
    """

    path: Path
    stat: os.stat_result
    split: str = ""
    label: int = -1

    def stamp(self) -> tuple[Any, ...]:
        """Return all that says whether it is still the same."""
        stat = self.stat
        stamp = (
            *(self.split, self.label, os.path.abspath(self.path), os.path.realpath(self.path)),
            *(stat.st_size, stat.st_mtime_ns),
        )
        # Two images that change names keep their sizes and times, but not their numbers. Shards
        # never do, and a copy in their place that keeps their times need not be decoded anew.
        return (*stamp, stat.st_ctime_ns, stat.st_ino) if self.split else stamp


def kept(name: str, files: Iterable[File], options: Any, decode: Callable[[], Source]) -> Source:
    """Return what `decode` gives, from the cache where these very files were decoded before.

    Args:
      name: of the data set.
      files: all that it is decoded from.
      options: what else the arrays depend on; its `repr` tells values apart.
      decode: reads the files.
    """
    files = list(files)
    stamps = [file.stamp() for file in files]
    directory = os.path.commonpath([os.path.dirname(os.path.abspath(file.path)) for file in files])
    prefix = f"{name.replace('/', '-').replace(':', '-')}-{_digest((directory, options))[:8]}"
    place = caches.directory("data")
    caches.clean(place)
    path = place / f"{prefix}-{_digest((_VERSION, stamps, options))[:16]}"
    source = _read(path)
    if source is None:
        source = decode()
        _write(path, source, old_pattern=f"{prefix}-*")
    return source


def _digest(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _read(path: Path) -> Source | None:
    """Return a kept set; None where there is none, or it is damaged.

    Raises:
      UserError: it does not fit into memory.
    """
    places = [path / f"{name}.npy" for name in _ARRAYS]
    if not all(place.is_file() for place in places):
        return None
    memory.check_fits(sum(place.stat().st_size for place in places), f"the data set in {path}")
    try:
        arrays = [np.load(place, allow_pickle=False) for place in places]
        metadata = json.loads((path / "about.json").read_text())
        ends = metadata.get("file_sizes")  # not kept before there was any use of them
        sizes = (tuple(ends[0]), tuple(ends[1])) if ends else None
        splits = Split(*arrays[:2]), Split(*arrays[2:])
        source = Source(*splits, metadata["num_classes"], sizes)
        return source if source.fingerprint() == metadata["sha256"] else None
    except Exception:  # whatever a damaged file makes of its readers: it is decoded anew
        return None


def _write(path: Path, source: Source, old_pattern: str) -> None:
    """Keep a set in place of those beside it that a pattern finds."""
    try:
        with caches.workspace(path.parent) as workspace:
            directory = workspace / "made"
            directory.mkdir()
            splits = (source.train, source.test)
            arrays = [array for split in splits for array in (split.images, split.labels)]
            for name, array in zip(_ARRAYS, arrays, strict=True):
                np.save(directory / f"{name}.npy", array)
            metadata = {
                "num_classes": source.num_classes,
                "sha256": source.fingerprint(),
                "file_sizes": source.file_sizes,
            }
            (directory / "about.json").write_text(json.dumps(metadata))
            if path.exists():  # damaged, or another process was faster: ours is as good
                path.rename(workspace / "old")
            directory.rename(path)
            for number, old_path in enumerate(path.parent.glob(old_pattern)):
                if old_path != path:
                    with contextlib.suppress(OSError):  # another process was faster
                        old_path.rename(workspace / f"older-{number}")
    except OSError as error:  # a cache that cannot be written costs time, nothing else
        logger.warning("the decoded data set is not cached: %s", error)
