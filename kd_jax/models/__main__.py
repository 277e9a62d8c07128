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
network runs in JAX instead, in float32, and the bytes are those of the weights. Where a network
cannot be measured the exit code is 2. Accuracies are shown for the classes and images that they are
of.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
      bytes: of it, or of its weights alone where it was not written.
      p50_ms: None where it was not measured.
      runtime: that ran it; None where none did.
    """

    bytes: int
    p50_ms: float | None = None
    runtime: str | None = None


class _Sizes(NamedTuple):
    """What the networks are for.

    Attributes:
      dataset: whose accuracies are shown.
      num_classes: width of the head.
      image_size: height and width of the images.
    """

    dataset: str
    num_classes: int
    image_size: int

    @property
    def are_published(self) -> bool:
        """Whether published and certified accuracies are of such networks."""
        usual = catalog.facts(self.dataset).num_classes, zoo.IMAGE_SHAPE[0]
        return (self.num_classes, self.image_size) == usual

    def published(self, arch: str) -> str:
        """Return the published accuracy of a network, or a dash."""
        entry = published.TABLE.get((self.dataset, arch)) if self.are_published else None
        return f"{entry.top1:.2f} / {entry.top5:.2f}" if entry else "-"

    def certified(self, arch: str) -> str:
        """Return the accuracy that was measured here with the published weights, or a dash."""
        entry = published.CERTIFIED.get((self.dataset, arch)) if self.are_published else None
        return f"{entry[0]:.2f} / {entry[1]:.2f}" if entry else "-"

    def remark(self) -> str:
        """Return why no accuracy is shown; empty where there are some."""
        if self.are_published:
            return ""
        return (
            f"No accuracy is shown: those of {self.dataset} are of "
            f"{catalog.facts(self.dataset).num_classes} classes and {zoo.IMAGE_SHAPE[0]} pixels."
        )


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
    sizes = _Sizes(dataset, num_classes, _IMAGE_SIZE.value)
    if _MEASURE.value or _BUDGET_MB.value is not None:
        if not _print_budget(sizes):
            sys.exit(errors.EXIT_USER_ERROR)
        return
    if _IMAGE_SIZE.value != zoo.IMAGE_SHAPE[0]:
        raise UserError(
            f"--image_size={_IMAGE_SIZE.value} needs --budget_mb or --measure: the multiply-adds "
            f"of this table are those of {zoo.IMAGE_SHAPE[0]} pixels"
        )
    _print_zoo(sizes)


def _print_zoo(sizes: _Sizes) -> None:
    rows = [
        ("network", "parameters M", "multiply-adds M", "published top-1 / top-5", "certified",
         "reference"),
    ]  # fmt: skip
    for arch, architecture in zoo.MODELS.items():
        cost = architecture.cost
        rows.append(
            (
                arch,
                f"{cost.total_params(sizes.num_classes) / 1e6:.2f}",
                f"{cost.total_madds(sizes.num_classes) / 1e6:.2f}",
                sizes.published(arch),
                sizes.certified(arch),
                published.REFERENCES.get(arch, "none"),
            )
        )
    print(text_tables.markdown(rows))
    if remark := sizes.remark():
        print(f"\n{remark}")


class _Budget:
    """Which networks fit, told as soon as each is known."""

    def __init__(self, sizes: _Sizes):
        self._sizes = sizes
        self.failed: list[str] = []  # names of networks that could not be measured
        self._too_small = 0  # how many take no image of this size
        self._others = 0  # how many do not fit
        self._smallest: tuple[str, Mapping[str, _Form]] | None = None
        self._runtimes: set[str] = set()
        head = ["network", "parameters M", "float32 MB", "int8 MB"]
        if _MEASURE.value:
            head += ["float32 ms", "int8 ms"]
        self._head = [*head, "fits", f"published top-1 / top-5, {sizes.dataset}"]
        names = max(map(len, zoo.NAMES))
        self._widths = [names, *map(len, head[1:]), len("float32, int8"), len(self._head[-1])]
        self._is_name = [True, *[False] * (len(head) - 1), True, False]
        self._has_head = False

    def look_at_all(self) -> None:
        """Print a line for each network that fits, the smallest first."""
        size = self._sizes.num_classes, self._sizes.image_size
        counts = {name: entry.cost.total_params(*size) for name, entry in zoo.MODELS.items()}
        for arch in sorted(counts, key=lambda name: counts[name] or 0):
            params = counts[arch]
            if params is None:  # nothing is left of so small an image
                self._too_small += 1
                continue
            try:
                self._look_at(arch, params)
            except UserError as error:  # the others can be measured all the same
                errors.tell(f"{arch} is left out: {error}")
                self.failed.append(arch)

    def _look_at(self, arch: str, params: int) -> None:
        forms = {name: _Form(size * params) for name, size in _FORMS.items()}
        # A file has more bytes than its weights, so what does not fit now is not measured.
        if _MEASURE.value and any(_is_small(form) for form in forms.values()):
            from kd_jax.export import zoo_files

            size = self._sizes.num_classes, self._sizes.image_size
            for name, each in zoo_files.measure(arch, *size, processor.cores()).items():
                forms[name] = _Form(each.bytes or forms[name].bytes, each.p50_ms, each.runtime)
                self._runtimes.add(each.runtime)
        self._smallest = self._smallest or (arch, forms)
        fitting = [name for name, form in forms.items() if _is_small(form) and _is_fast(form)]
        if not fitting:
            self._others += 1
            return
        cells = [arch, f"{params / 1e6:.2f}"]
        cells += [f"{form.bytes / 1e6:.3f}" for form in forms.values()]
        if _MEASURE.value:
            cells += ["-" if f.p50_ms is None else f"{f.p50_ms:.2f}" for f in forms.values()]
        cells += [", ".join(fitting), self._sizes.published(arch)]
        if not self._has_head:
            print(text_tables.top(self._head, self._widths, self._is_name))
            self._has_head = True
        print(text_tables.line(cells, self._widths, self._is_name), flush=True)

    def tell(self) -> None:
        """Print what the numbers are of, and which networks are not among them."""
        if not self._has_head:
            print(self._nothing_fits())
        size = self._sizes.image_size
        parts = [f"{self._sizes.num_classes} classes, images of {size} x {size} pixels"]
        parts += self._how()
        for count, what in (
            (self._others, "do not fit"),
            (self._too_small, "take no image of this size"),
            (len(self.failed), "could not be measured"),
        ):
            if count:
                parts.append(f"{count} of {len(zoo.MODELS)} networks {what}")
        print(f"\n{'; '.join(parts)}.")
        if remark := self._sizes.remark():
            print(remark)

    def _nothing_fits(self) -> str:
        if self._smallest is None:
            return "No network fits: none could be looked at."
        arch, forms = self._smallest
        facts = [
            f"{form.bytes / 1e6:.3f} MB" + (f" and {form.p50_ms:.2f} ms" if form.p50_ms else "")
            + f" in {name}" for name, form in forms.items()
        ]  # fmt: skip
        return f"No network fits. The smallest is {arch}, with {', '.join(facts)}."

    def _how(self) -> list[str]:
        """Return how bytes and latencies were come by."""
        weights = "bytes of the weights alone"
        if not _MEASURE.value:
            return [f"{weights}: --measure writes the files"]
        if not self._runtimes:
            return [f"{weights}: nothing was measured"]
        from kd_jax.export import zoo_files

        how = [
            f"run by {', '.join(sorted(self._runtimes))}; median of one image, {processor.cores()} "
            f"threads, processor class {processor.describe()}"
        ]
        if zoo_files.JAX in self._runtimes:
            how.append(
                f"{weights}, and no latency in int8, because TensorFlow is not installed: pip "
                "install 'kd_jax[export]'"
            )
        return how


def _print_budget(sizes: _Sizes) -> bool:
    """Print the networks that fit; return whether all could be measured."""
    budget = _Budget(sizes)
    budget.look_at_all()
    budget.tell()
    return not budget.failed


def _is_small(form: _Form) -> bool:
    return _BUDGET_MB.value is None or form.bytes <= 1e6 * _BUDGET_MB.value


def _is_fast(form: _Form) -> bool:
    """Tell whether a form is known to be fast enough."""
    if _BUDGET_MS.value is None:
        return True
    return form.p50_ms is not None and form.p50_ms <= _BUDGET_MS.value


if __name__ == "__main__":
    run_command(main)
