"""Data sets as tfds prepares them: which of them lies in a directory, and is it whole?"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.data import decoded_cache, folder_tree, tfds_slices
from kd_jax.data.splits import Source
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, local

_VERSION = r"(\d+|\*)\.(\d+|\*)\.(\d+|\*)"
_NUMBERS = r"\d+\.\d+\.\d+"  # of a directory
_NAMED = re.compile(rf"(?P<name>.+?)[:/](?P<version>{_VERSION})")
INFO_FILE, _FEATURES_FILE = "dataset_info.json", "features.json"


def base_name(name: str) -> str:
    """Return the name of a set without its version: `cifar100` of `cifar100:3.0.2`."""
    return _split_name(name)[0]


def _split_name(name: str) -> tuple[str, str]:
    """Return a set's name and its version, `*` where none is asked for."""
    match = _NAMED.fullmatch(name)
    return (match["name"], match["version"]) if match else (name, "*")


def read(config: ConfigDict) -> Source:
    """Return an image classification set of tfds, by its name there.

    `NAME[/CONFIG][:VERSION]`; without a version the newest that is prepared.

    Args:
      config: `config.dataset`.

    Raises:
      UserError: it is not there, cannot be downloaded, or cannot be read.
    """
    try:
        version_directory = directory(config)
    except UserError:
        if not config.download:
            raise
        from kd_jax.data import tfds_reader

        tfds_reader.download(config.name, _root(config))
        version_directory = directory(config)
    logger.info("data set %s", version_directory)
    lengths = _shard_lengths(version_directory)
    counts = tfds_slices.check({f: config[f] for f in ("train_split", "test_split")}, lengths)
    files = [
        decoded_cache.File(path, path.stat())
        for path in sorted(version_directory.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]

    def decode() -> Source:
        from kd_jax.data import tfds_reader

        parts = [(config[field], counts[field]) for field in ("train_split", "test_split")]
        return tfds_reader.decode(config.name, version_directory, parts, config.image_size)

    options = (config.train_split, config.test_split, config.image_size)
    return decoded_cache.kept(base_name(config.name), files, options, decode)


def directory(config: ConfigDict) -> Path:
    """Return the directory of the version that `read` takes.

    Args:
      config: `config.dataset`.

    Raises:
      UserError: it is not there, or not whole.
    """
    return _find(config.name, _root(config))


def _root(config: ConfigDict) -> Path:
    """Return the directory that holds all sets of tfds."""
    place = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return local(place, "config.dataset.data_dir" if config.data_dir else "TFDS_DATA_DIR")


def _find(name: str, directory: Path) -> Path:
    """Return the directory of a set's version that is asked for, the newest of several.

    Raises:
      UserError: it is not there, or not whole; then it says what was found.
    """
    base, version = _split_name(name)
    set_directory = directory / base
    entries = (
        [set_directory / n for n in folder_tree.directories(set_directory)]
        if folder_tree.is_directory(set_directory)
        else []
    )
    versions = sorted(
        (path for path in entries if re.fullmatch(_NUMBERS, path.name)),
        key=lambda path: [int(part) for part in path.name.split(".")],
    )
    matches = [path for path in versions if fnmatch.fnmatchcase(path.name, version)]
    if matches:
        newest = matches[-1]
        for file in (INFO_FILE, _FEATURES_FILE):
            if not (newest / file).is_file():
                raise UserError(
                    f"{newest} has no {file}: it was not prepared or not copied to its end; copy "
                    "the file too, or remove that directory and let tfds prepare it anew with "
                    "--config.dataset.download=true"
                )
        return newest
    raise UserError(_what_is_there(name, directory, versions, entries))


def _what_is_there(name: str, directory: Path, versions: list[Path], entries: list[Path]) -> str:
    """Say what was found where a set was not."""
    base, version = _split_name(name)
    ways = (
        "let tfds download it with --config.dataset.download=true, or take "
        "config.dataset.name=folder for images of your own"
    )
    if versions:
        names = ", ".join(path.name for path in versions)
        return (
            f"no version {version} of {base} in {directory}, only {names}: give "
            f"config.dataset.name={base}:{versions[-1].name}, or {ways}"
        )
    # `incomplete.ABC123_3.0.2`, in older versions of tfds `3.0.2.incompleteABC123`.
    if remnants := [path for path in entries if "incomplete" in path.name]:
        return (
            f"no data set {base} in {directory}: {remnants[0]} was begun and not finished; "
            f"remove it and prepare the set anew: {ways}"
        )
    configs = [path.name for path in entries if _has_versions(path)]
    if configs:
        return (
            f"no data set {base} in {directory}, but there are its configs {', '.join(configs)}: "
            f"give config.dataset.name={base}/{configs[0]}"
        )
    hint = ""
    place = next((path for path in (directory, directory.parent) if path.name == base), None)
    if place is not None and ((directory / INFO_FILE).is_file() or _has_versions(place)):
        hint = f" (it is in {place.parent})"
    return (
        f"no data set {base} in {directory}{hint}: point config.dataset.data_dir or TFDS_DATA_DIR "
        f"at the directory that holds {base}/VERSION, {ways}"
    )


def _has_versions(path: Path) -> bool:
    return any(re.fullmatch(_NUMBERS, name) for name in folder_tree.directories(path))


def _shard_lengths(directory: Path) -> dict[str, list[int]]:
    """Return how many examples each file of each split has."""
    path = directory / INFO_FILE
    try:
        splits: list[dict[str, Any]] = json.loads(path.read_text())["splits"]
        lengths = {
            split["name"]: [int(n) for n in split.get("shardLengths", [])] for split in splits
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not what tfds writes ({type(error).__name__}: {error}): restore it, or "
            "remove the directory and prepare the set anew"
        ) from None
    if not any(map(sum, lengths.values())):
        raise UserError(f"{path} names no split with examples: prepare the set anew")
    return lengths
