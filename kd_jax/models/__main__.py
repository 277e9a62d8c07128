"""Print the zoo as a table: what each network costs and what it is known to reach.

    python -m kd_jax.models [--dataset=cifar10]

Parameters and multiply-adds are counted from the code, for one image of 32 x 32 pixels. `published`
is what the weights' authors state, `certified` what this project measured with those weights;
`reference` says whose code gives the same outputs, which tests show.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from kd_jax import models
from kd_jax.runtime import text_tables
from kd_jax.runtime.errors import UserError, run_command
from kd_jax.weights import published

_DATASET = flags.DEFINE_string(
    "dataset", "cifar100", "Whose heads and accuracies: cifar100 | cifar10."
)
_CLASSES = {"cifar100": 100, "cifar10": 10}
_IMAGE_SHAPE = (32, 32, 3)


def main(argv: Sequence[str]) -> None:
    """Print one row for each network."""
    del argv
    dataset = _DATASET.value
    if dataset not in _CLASSES:
        raise UserError(f"--dataset={dataset}: expected one of {', '.join(_CLASSES)}")
    rows = [
        ("network", "parameters M", "multiply-adds M", "published top-1 / top-5", "certified",
         "reference"),
    ]  # fmt: skip
    for arch in models.MODELS:
        network = models.build(arch, _CLASSES[dataset], (0.0,) * 3, (1.0,) * 3)
        entry = published.TABLE.get((dataset, arch))
        certified = published.CERTIFIED.get((dataset, arch))
        rows.append(
            (
                arch,
                f"{models.count_params(network, _IMAGE_SHAPE) / 1e6:.2f}",
                f"{models.count_madds(network, _IMAGE_SHAPE) / 1e6:.2f}",
                f"{entry.top1:.2f} / {entry.top5:.2f}" if entry else "-",
                f"{certified[0]:.2f} / {certified[1]:.2f}" if certified else "-",
                published.REFERENCES.get(arch, "none"),
            )
        )
    print(text_tables.markdown(rows))


if __name__ == "__main__":
    run_command(main)
