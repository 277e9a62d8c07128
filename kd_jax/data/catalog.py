"""What is known of a data set by its name: one entry each. Free of JAX and of the data itself."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of one data set; None where nobody knows them by the name alone.

    Attributes:
      num_classes: labels are in `[0, num_classes)`.
      train_examples: of the published train split.
      image_size: pixels a side, where all images are square and of one size.
      mean, std: published normalisation of pixels in [0, 1], one value a channel; the teachers'
        weights were made under it.
      class_names: in the order of the labels.
      superclass_names, superclass_of: names of groups of classes, and the group of each class.
      val_examples: `config.dataset.val_examples` for a set of any size, where nobody says another.
      own_teacher: what follows `--config=` to train a teacher, where nobody publishes any.
    """

    num_classes: int | None = None
    train_examples: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    superclass_names: tuple[str, ...] | None = None
    superclass_of: tuple[int, ...] | None = None
    val_examples: float | None = None
    own_teacher: str | None = None


DEFAULT_NAME = "cifar100"  # of `configs/teacher.py` and of the commands
DIGITS, FOLDER = "digits", "folder"
IMAGE_SIZE = 32  # of networks imported without `--image_size`

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

# Source: Krizhevsky 2009; the group of each class by the data's own coarse labels.
_SUPERCLASSES = """
aquatic mammals, fish, flowers, food containers, fruit and vegetables, household electrical
devices, household furniture, insects, large carnivores, large man-made outdoor things, large
natural outdoor scenes, large omnivores and herbivores, medium-sized mammals, non-insect
invertebrates, people, reptiles, small mammals, trees, vehicles 1, vehicles 2
"""
_SUPERCLASS_OF = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
    6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
    5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


# Normalisations by name: mean and std of pixels in [0, 1], one value a channel. `unit` leaves them
# as they are, `byte` makes them 0 to 255 again.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "half": ((0.5,) * 3, (0.5,) * 3),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # of torchvision and timm
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "byte": ((0.0,) * 3, (1 / 255,) * 3),
}

FACTS = {
    "cifar100": Facts(
        num_classes=100,
        train_examples=50_000,
        image_size=32,
        mean=NORMALISATIONS["cifar100"][0],
        std=NORMALISATIONS["cifar100"][1],
        class_names=_listed(_CIFAR100),
        superclass_names=_listed(_SUPERCLASSES),
        superclass_of=_SUPERCLASS_OF,
    ),
    "cifar10": Facts(
        num_classes=10,
        train_examples=50_000,
        image_size=32,
        mean=NORMALISATIONS["cifar10"][0],
        std=NORMALISATIONS["cifar10"][1],
        class_names=_listed(_CIFAR10),
    ),
    DIGITS: Facts(
        num_classes=10,
        train_examples=1_437,
        image_size=32,
        class_names=tuple(str(digit) for digit in range(10)),
        val_examples=144.0,
        own_teacher="configs/demo.py:teacher",
    ),
    "imagenet2012": Facts(
        num_classes=1000,
        train_examples=1_281_167,
        mean=(0.5, 0.5, 0.5),  # BiT's, as the next; others have their own
        std=(0.5, 0.5, 0.5),
    ),
    FOLDER: Facts(
        val_examples=0.1,
        own_teacher="configs/folder.py:teacher --config.dataset.data_dir=DIR",
    ),
}
_UNKNOWN = Facts()


def facts(name: str) -> Facts:
    """Return the facts of a data set by its name without a version; all None if unknown."""
    return FACTS.get(name, _UNKNOWN)


def sets_with_known_classes() -> tuple[str, ...]:
    """Return the names of the data sets whose number of classes is known."""
    return tuple(name for name, entry in FACTS.items() if entry.num_classes is not None)
