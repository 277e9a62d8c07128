"""A folder of images: `SPLIT/CLASS/*`, checked as a whole before any image is decoded."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from kd_jax.data import catalog, decoded_cache, folder_layout, folder_tree, image_files
from kd_jax.data.splits import Source, Split, hold_out_test
from kd_jax.runtime import memory
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

_HELD_OUT = 0.2  # of a folder that has no test split
_TEST = "test"  # the one split that need not be there
_OTHER_SPLITS = ("val", "test", "dev", "eval", "holdout")  # how they begin
_MOST_NAMES = 10  # in a sentence
_COMMON = "png, jpg, jpeg, gif, webp, tif, bmp, ppm"


def class_names(config: ConfigDict) -> list[str]:
    """Return the names of the classes in the order of their labels.

    Args:
      config: `config.dataset`.

    Raises:
      UserError: the folder is not there.
    """
    return [
        folder_tree.normal(name)
        for name in folder_tree.directories(folder_layout.train_directory(config))
    ]


def read(config: ConfigDict) -> Source:
    """Return `data_dir/train/CLASS/*` and `data_dir/test/CLASS/*`; classes in order of their names.

    Without a test directory a fifth of each class is held out as test split, always the same.

    Args:
      config: `config.dataset`.

    Raises:
      UserError: it is not such a folder, or an image cannot be read.
    """
    root, train = folder_layout.root(config), folder_layout.train_directory(config)
    classes = class_names(config)
    folder_layout.check_classes(train, classes)
    if len(set(classes)) < len(classes):
        twice = collections.Counter(classes).most_common(1)[0][0]
        raise UserError(
            f"{train} has two directories {twice!r}, which differ only in how Unicode writes them: "
            "join them"
        )
    test = root / config.test_split
    has_test = _has_test(config, root, train, test)
    skipped: folder_tree.Skipped = collections.Counter()
    splits = [_list(train, classes, skipped)]
    if has_test:
        _check_apart(train, test)
        splits.append(_list(test, classes, skipped))
        _say_what_test_lacks(test, classes, splits[1])
    _check_files(splits, skipped)
    if skipped:
        logger.warning("passed over in %s: %s", root, folder_tree.in_words(skipped))

    def decode() -> Source:
        _check_memory(root, splits, config.image_size)
        sizes: list[tuple[int, int]] = []
        broken: dict[Path, str] = {}
        read = [_decode(files, config.image_size, sizes, broken) for files in splits]
        _refuse_broken(root, broken, sum(map(len, splits)))
        if several := sum(number for _, number in read):
            logger.warning(
                "%d files in %s hold several images: the first of each is read", several, root
            )
        train, *tests = [split for split, _ in read]
        source = (
            Source(train, tests[0], len(classes))
            if tests
            else hold_out_test(train, len(classes), round(_HELD_OUT * len(train)))
        )
        sizes.sort(key=math.prod)
        return dataclasses.replace(source, file_sizes=(sizes[0], sizes[-1]))

    files = [file for files in splits for file in files]
    return decoded_cache.kept(catalog.FOLDER, files, (classes, config.image_size), decode)


def _has_test(config: ConfigDict, root: Path, train: Path, test: Path) -> bool:
    """Tell whether there is a test split; what lies beside it and is not read is pointed out."""
    there = [_real(split) for split in (train, test) if folder_tree.is_directory(split)]
    used = {path for split in there for path in (split, *split.parents)}
    beside = [name for name in folder_tree.directories(root) if _real(root / name) not in used]
    beside.sort(key=lambda name: not name.lower().startswith(_OTHER_SPLITS))
    others = ", ".join(map(folder_tree.shown, beside[:_MOST_NAMES]))
    if folder_tree.is_directory(test):
        if beside:
            logger.warning(
                "%s holds %s besides, which is not read: validation is held out of train",
                root,
                others,
            )
        return True
    if config.test_split != _TEST:
        raise UserError(
            f"config.dataset.test_split is {config.test_split!r}, and there is no directory {test}"
            f": expected one of {others or 'no further directories'}, or {_TEST!r}, which need not "
            "be there"
        )
    logger.warning("%s has no test split: a fifth of train is held out as one", root)
    if beside:
        logger.warning(
            "%s holds %s, which is not read: to test on it, give config.dataset.test_split=%s",
            root,
            others,
            folder_tree.shown(beside[0]),
        )
    return False


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # which links in circles do not stop, as in `resolve`


def _check_apart(train: Path, test: Path) -> None:
    """Raise `UserError` if one split is, or lies in, the other."""
    one, other = _real(train), _real(test)
    if one == other or one in other.parents or other in one.parents:
        raise UserError(
            f"config.dataset.train_split and config.dataset.test_split overlap: {train} and {test} "
            "lead to one directory, or one into the other; expected two that share no image"
        )


def _list(
    directory: Path, classes: list[str], skipped: folder_tree.Skipped
) -> list[decoded_cache.File]:
    """Return the images below a split's directory, each with its label."""
    found = folder_tree.directories(directory)
    names = {folder_tree.normal(name): name for name in found}
    if unknown := sorted(set(names) - set(classes)):
        raise UserError(
            f"{directory / names[unknown[0]]} is of a class that train has not: expected the "
            f"classes {', '.join(classes[:20])}"
        )
    if len(names) < len(found):
        raise UserError(
            f"{directory} has two directories of one name, which differ only in how Unicode writes "
            "them: join them"
        )
    skipped.update(folder_tree.others(directory))
    files: list[decoded_cache.File] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        if name not in names:
            continue
        images, passed_over = folder_tree.images(directory / names[name])
        if not images:
            holds = f" (it holds {folder_tree.in_words(passed_over)})" if passed_over else ""
            empty.append(f"{name}{holds}")
        skipped.update(passed_over)
        files += [
            decoded_cache.File(path, status, directory.name, label) for path, status in images
        ]
    if empty:
        more = f" and {len(empty) - _MOST_NAMES} more" if len(empty) > _MOST_NAMES else ""
        raise UserError(
            f"{directory} has no image of the class {', '.join(empty[:_MOST_NAMES])}{more}: "
            f"expected at least one file that Pillow reads ({_COMMON}) below the directory of "
            "each class; add some, or take the directory away"
        )
    if not files:
        raise UserError(f"{directory} has no image: expected CLASS/* ({_COMMON})")
    return files


def _say_what_test_lacks(test: Path, classes: list[str], files: list[decoded_cache.File]) -> None:
    there = {file.label for file in files}
    if lacking := [name for label, name in enumerate(classes) if label not in there]:
        logger.warning(
            "%s has no image of %d of the %d classes: %s",
            *(
                test,
                len(lacking),
                len(classes),
                ", ".join(map(folder_tree.shown, lacking[:_MOST_NAMES])),
            ),
        )


def _check_files(splits: list[list[decoded_cache.File]], skipped: folder_tree.Skipped) -> None:
    """Raise `UserError` if one file is in both splits; count those that are twice in one."""
    in_earlier_splits: dict[tuple[int, int], decoded_cache.File] = {}
    for number, files in enumerate(splits):
        in_split: dict[tuple[int, int], decoded_cache.File] = {}
        for file in files:
            identity = (file.stat.st_dev, file.stat.st_ino)
            if not file.stat.st_ino:  # a file system that does not number its files
                continue
            if number and identity in in_earlier_splits:
                raise UserError(
                    f"{in_earlier_splits[identity].path} and {file.path} are one file: "
                    "expected no image to be in both train and test; take one of the links away"
                )
            if identity in in_split:
                which = "the same" if in_split[identity].label == file.label else "another"
                skipped[f"links to an image of {which} class (read all the same)"] += 1
            in_split[identity] = file
        in_earlier_splits |= in_split


def _check_memory(root: Path, splits: list[list[decoded_cache.File]], size: int) -> None:
    files = [file for split in splits for file in split]
    for file in files:
        try:
            shape = image_files.shape(file.path, size)
        except Exception:  # Pillow raises many kinds; `_decode` tells all of them
            continue
        return memory.check_fits(
            len(files) * int(np.prod(shape)), f"the folder {root}, {len(files):,} images,"
        )


def _refuse_broken(root: Path, broken: dict[Path, str], count: int) -> None:
    """Raise `UserError` if files cannot be read, each told in a sentence of its own."""
    if not broken:
        return
    first, *others = broken
    if not others:
        raise UserError(broken[first])
    for sentence in list(broken.values())[:_MOST_NAMES]:
        logger.error("%s", sentence)
    shown = f"the first {_MOST_NAMES} are told above" if len(broken) > _MOST_NAMES else "see above"
    raise UserError(
        f"{len(broken):,} of the {count:,} images in {root} cannot be read ({shown}; the first is "
        f"{first}): mend them or take them away"
    )


def _decode(
    files: list[decoded_cache.File],
    size: int,
    sizes: list[tuple[int, int]],
    broken: dict[Path, str],
) -> tuple[Split, int]:
    """Return the images of files, and how many of these hold further ones.

    Height and width of each, before it is scaled, are added to `sizes`; of each that cannot be
    read, the sentence that says so, to `broken`.
    """
    images: np.ndarray | None = None
    first, several = "", 0
    for number, file in enumerate(files):
        try:
            pixels, has_more, file_size = image_files.read(file.path, size)
        except Exception as error:  # Pillow raises many kinds
            broken[file.path] = str(image_files.unreadable(file.path, error))
            continue
        if images is None:
            images, first = np.empty((len(files), *pixels.shape), np.uint8), str(file.path)
        if pixels.shape != images.shape[1:]:
            raise UserError(
                f"{file.path} has {pixels.shape[0]} x {pixels.shape[1]} pixels, {first} "
                f"has {images.shape[1]} x {images.shape[2]}: give config.dataset.image_size, and "
                "all are scaled and cropped to it"
            )
        images[number] = pixels
        several += has_more
        sizes.append(file_size)
    labels = np.array([file.label for file in files], np.int32)
    return Split(np.empty(0, np.uint8) if images is None else images, labels), several
