"""Print the zoo as a table: what each network costs, what it reaches, and which fits a budget.

    python -m kd_jax.models [--dataset=cifar10]
    python -m kd_jax.models --budget_mb=2 --budget_ms=5 --measure [--classes=10] [--image_size=32]

Parameters and multiply-adds are those of one image of 32 x 32 pixels, and tests compare them with
the traced program. `published` is the accuracy that the authors of the weights state, `certified`
the one that this project measured with those weights. `reference` is the code that gives the same
outputs, which tests show as well. JAX is not imported.

A budget leaves the networks of which the float32 or the int8 file fits; `fits` says which. Without
`--measure` the bytes are those of the weights alone, and a file has more: about 1 % in float32, and
10 to 25 % in int8. `--measure` writes the files (TensorFlow Lite, random weights) and runs them
here: their bytes, and the median latency of one image. Where TensorFlow is not installed the
network runs in JAX instead, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import flags

from kd_jax.data import catalog
from kd_jax.models import zoo
from kd_jax.runtime import errors, processor, text_tables
from kd_jax.runtime.errors import UserError, run_command
from kd_jax.weights import published

_DATASET = flags.DEFINE_string(
    "dataset", "cifar100", "Whose heads and accuracies: cifar100 | cifar10."
)
_BUDGET_MB = flags.DEFINE_float(
    "budget_mb", None, "Largest file, in megabytes (1,000,000 bytes).", lower_bound=0.0
)
_BUDGET_MS = flags.DEFINE_float(
    "budget_ms", None, "Longest latency of one image, in milliseconds; needs --measure.",
    lower_bound=0.0,
)  # fmt: skip
_MEASURE = flags.DEFINE_bool(
    "measure", False, "Write each network as files and run them here; some seconds for each."
)
_CLASSES = flags.DEFINE_integer(
    "classes", None, "Classes of the head, instead of those of --dataset.",
    lower_bound=1, upper_bound=100_000,
)  # fmt: skip
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 32, "Height and width of the images.", lower_bound=8, upper_bound=1024
)
_DATASETS = ("cifar100", "cifar10")  # whose weights somebody publishes
_FORMS = {"float32": 4, "int8": 1}  # bytes of a weight


class _Form(NamedTuple):
    """A network as a file.

    Attributes:
      bytes: of it, or of its weights; None where there is no file.
      p50_ms: None where it was not measured.
    """

    bytes: int | None
    p50_ms: float | None


def main(argv: Sequence[str]) -> None:
    """Print one row for each network."""
    del argv
    dataset = _DATASET.value
    if dataset not in _DATASETS:
        raise UserError(f"--dataset={dataset}: expected one of {', '.join(_DATASETS)}")
    if _BUDGET_MS.value is not None and not _MEASURE.value:
        raise UserError(
            f"--budget_ms={_BUDGET_MS.value:g} needs --measure: a latency is of a machine, and no "
            "table has it"
        )
    num_classes = _CLASSES.value or catalog.facts(dataset).num_classes
    assert num_classes is not None
    if _MEASURE.value or _BUDGET_MB.value is not None:
        _print_budget(dataset, num_classes, _IMAGE_SIZE.value)
        return
    if _IMAGE_SIZE.value != zoo.IMAGE_SHAPE[0]:
        raise UserError(
            f"--image_size={_IMAGE_SIZE.value} needs --budget_mb or --measure: the multiply-adds "
            f"of this table are those of {zoo.IMAGE_SHAPE[0]} pixels"
        )
    _print_zoo(dataset, num_classes)


def _print_zoo(dataset: str, num_classes: int) -> None:
    rows = [
        ("network", "parameters M", "multiply-adds M", "published top-1 / top-5", "certified",
         "reference"),
    ]  # fmt: skip
    for arch, architecture in zoo.MODELS.items():
        cost = architecture.cost
        certified = published.CERTIFIED.get((dataset, arch))
        rows.append(
            (
                arch,
                f"{cost.total_params(num_classes) / 1e6:.2f}",
                f"{cost.total_madds(num_classes) / 1e6:.2f}",
                _published(dataset, arch),
                f"{certified[0]:.2f} / {certified[1]:.2f}" if certified else "-",
                published.REFERENCES.get(arch, "none"),
            )
        )
    print(text_tables.markdown(rows))


def _published(dataset: str, arch: str) -> str:
    entry = published.TABLE.get((dataset, arch))
    return f"{entry.top1:.2f} / {entry.top5:.2f}" if entry else "-"


def _print_budget(dataset: str, num_classes: int, image_size: int) -> None:
    """Print the networks that fit, the smallest first, each as soon as it is known."""
    names = max(map(len, zoo.NAMES))
    head = ["network", "parameters M", "float32 MB", "int8 MB"]
    if _MEASURE.value:
        head += ["float32 ms", "int8 ms"]
    head += ["fits", f"published top-1 / top-5, {dataset}"]
    widths = [names, *map(len, head[1:-2]), len("float32, int8"), len(head[-1])]
    is_name = [True, *[False] * (len(head) - 3), True, False]
    print(text_tables.top(head, widths, is_name), flush=True)
    is_usual = num_classes == catalog.facts(dataset).num_classes
    is_usual &= image_size == zoo.IMAGE_SHAPE[0]  # what the published weights are for
    left_out = 0
    for arch, params, forms in _forms(num_classes, image_size):
        fitting = [name for name, form in forms.items() if _fits(form)]
        if not fitting:
            left_out += 1
            continue
        cells = [arch, f"{params / 1e6:.2f}"]
        shown = [forms.get(name, _Form(None, None)) for name in _FORMS]
        cells += ["-" if form.bytes is None else f"{form.bytes / 1e6:.3f}" for form in shown]
        if _MEASURE.value:
            cells += ["-" if form.p50_ms is None else f"{form.p50_ms:.2f}" for form in shown]
        cells += [", ".join(fitting), _published(dataset, arch) if is_usual else "-"]
        print(text_tables.line(cells, widths, is_name), flush=True)
    print(_summary(left_out, num_classes, image_size))


def _forms(num_classes: int, image_size: int) -> Iterator[tuple[str, int, Mapping[str, _Form]]]:
    """Yield each network that takes such images, its parameters, and its forms."""
    costs = {name: entry.cost for name, entry in zoo.MODELS.items()}
    counts = {name: cost.total_params(num_classes, image_size) for name, cost in costs.items()}
    for arch in sorted(counts, key=lambda name: counts[name] or 0):
        params = counts[arch]
        if params is None:  # nothing is left of so small an image
            continue
        forms = {name: _Form(size * params, None) for name, size in _FORMS.items()}
        # A file has more bytes than its weights, so what does not fit now is not measured.
        if _MEASURE.value and any(map(_fits, forms.values())):
            from kd_jax.export import zoo_files

            try:
                measured = zoo_files.measure(arch, num_classes, image_size, processor.cores())
            except UserError as error:  # the others can be measured all the same
                errors.tell(f"{arch} is left out: {error}")
                continue
            forms = {name: _Form(*each) for name, each in measured.items()}
        yield arch, params, forms


def _fits(form: _Form) -> bool:
    most_mb, most_ms = _BUDGET_MB.value, _BUDGET_MS.value
    is_small = most_mb is None or form.bytes is None or form.bytes <= 1e6 * most_mb
    is_fast = most_ms is None or form.p50_ms is None or form.p50_ms <= most_ms
    return is_small and is_fast


def _summary(left_out: int, num_classes: int, image_size: int) -> str:
    """Return what the numbers are of, below the table."""
    of = f"{num_classes} classes, images of {image_size} x {image_size} pixels"
    how = "bytes of the weights alone: --measure writes the files"
    if _MEASURE.value:
        from kd_jax.export import zoo_files

        what = "LiteRT" if zoo_files.has_runtime() else "JAX: TensorFlow is not installed"
        how = (
            f"files run by {what}; median of one image, {processor.cores()} threads, processor "
            f"class {processor.describe()}"
        )
    others = f"; {left_out} networks do not fit" if left_out else ""
    return f"\n{of}; {how}{others}."


if __name__ == "__main__":
    run_command(main)
