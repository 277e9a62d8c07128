"""What the classes of a data set are called, for people to read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kd_jax.data import image_folder, sources, tfds_source

# Source: Krizhevsky 2009, in the order of the data's own labels.
_CIFAR100 = """
apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus,
butterfly, camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach,
couch, crab, crocodile, cup, dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster,
house, kangaroo, keyboard, lamp, lawn mower, leopard, lion, lizard, lobster, man, maple tree,
motorcycle, mountain, mouse, mushroom, oak tree, orange, orchid, otter, palm tree, pear,
pickup truck, pine tree, plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray, road, rocket,
rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, streetcar,
sunflower, sweet pepper, table, tank, telephone, television, tiger, tractor, train, trout, tulip,
turtle, wardrobe, whale, willow tree, wolf, woman, worm
"""
_CIFAR10 = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


NAMES = {
    "cifar100": _listed(_CIFAR100),
    "cifar10": _listed(_CIFAR10),
    sources.DIGITS: tuple(str(digit) for digit in range(10)),
}


def of(options: Any) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of their labels; None where nobody knows them.

    Args:
      options: `config.dataset`.
    """
    if options.name == sources.FOLDER:
        return tuple(image_folder.class_names(options))
    return NAMES.get(tfds_source.base_name(options.name)) or _as_tfds_wrote_them(options)


def known(options: Any, num_classes: int) -> tuple[str, ...] | None:
    """Return `of` the data set, if it has a name of its own for each of so many classes."""
    names = of(options)
    return names if names and len(names) == len(set(names)) == num_classes else None


def _as_tfds_wrote_them(options: Any) -> tuple[str, ...] | None:
    """Return the names that lie beside a prepared data set, if its versions agree on them."""
    root = options.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    found = (Path(root).expanduser() / tfds_source.base_name(options.name)).rglob(
        "label.labels.txt"
    )
    try:
        texts = {path.read_text(encoding="utf-8") for path in found}
    except (OSError, UnicodeError):  # whoever wrote them
        return None
    return tuple(texts.pop().splitlines()) if len(texts) == 1 else None
