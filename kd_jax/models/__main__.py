"""Print the zoo as a table: what each network costs and what it is known to reach.

    python -m kd_jax.models [--dataset=cifar10]

Parameters and multiply-adds are those of one image of 32 x 32 pixels, and tests compare them with
the traced program. `published` is the accuracy that the authors of the weights state, `certified`
the one that this project measured with those weights. `reference` is the code that gives the same
outputs, which tests show as well. JAX is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from kd_jax.data import catalog
from kd_jax.models import zoo
from kd_jax.runtime import text_tables
from kd_jax.runtime.errors import UserError, run_command
from kd_jax.weights import published

_DATASET = flags.DEFINE_string(
    "dataset", "cifar100", "Whose heads and accuracies: cifar100 | cifar10."
)
_DATASETS = ("cifar100", "cifar10")  # whose weights somebody publishes


def main(argv: Sequence[str]) -> None:
    """Print one row for each network."""
    del argv
    dataset = _DATASET.value
    if dataset not in _DATASETS:
        raise UserError(f"--dataset={dataset}: expected one of {', '.join(_DATASETS)}")
    rows = [
        ("network", "parameters M", "multiply-adds M", "published top-1 / top-5", "certified",
         "reference"),
    ]  # fmt: skip
    num_classes = catalog.facts(dataset).num_classes
    assert num_classes is not None
    for arch, architecture in zoo.MODELS.items():
        cost = architecture.cost
        entry = published.TABLE.get((dataset, arch))
        certified = published.CERTIFIED.get((dataset, arch))
        rows.append(
            (
                arch,
                f"{cost.total_params(num_classes) / 1e6:.2f}",
                f"{cost.total_madds(num_classes) / 1e6:.2f}",
                f"{entry.top1:.2f} / {entry.top5:.2f}" if entry else "-",
                f"{certified[0]:.2f} / {certified[1]:.2f}" if certified else "-",
                published.REFERENCES.get(arch, "none"),
            )
        )
    print(text_tables.markdown(rows))


if __name__ == "__main__":
    run_command(main)
