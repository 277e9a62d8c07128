"""A run as Python sees it: its measures, its history, its student, its report."""

from __future__ import annotations

import dataclasses
import functools
import html
from pathlib import Path
from typing import Any

from kd_jax.api.student import Student
from kd_jax.export import request
from kd_jax.export.request import Request
from kd_jax.models import user_module, zoo
from kd_jax.report import page
from kd_jax.runtime import atomic_files, source_digest
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable
from kd_jax.training import workdir as workdir_lib
from kd_jax.training.metric_logger import METRICS_FILE
from kd_jax.weights import saved_network


@dataclasses.dataclass(frozen=True)
class Report:
    """A report page.

    Attributes:
      path: of the page.
      table: of its results, as text.
    """

    path: Path
    table: str

    def __str__(self) -> str:
        return self.table

    def _repr_html_(self) -> str:
        """Return the page inline, for a notebook."""
        text = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{text}" width="100%" height="700" frameborder="0"></iframe>'


class Run:
    """A run in its directory: finished, or stopped.

    Attributes:
      workdir: its directory.
    """

    def __init__(self, workdir: str | Path, module: Any = None):
        """Name a run.

        Args:
          workdir: its directory.
          module: of its student, where that is not of the zoo.

        Raises:
          UserError: there is no run.
        """
        self.workdir = reachable(workdir, "workdir")
        self._module = module
        workdir_lib.load_config(self.workdir)

    @property
    def config(self) -> Any:
        """The config of the run, locked."""
        return workdir_lib.load_config(self.workdir)

    @property
    def finished(self) -> bool:
        """Whether it trained to its end."""
        return (self.workdir / workdir_lib.RESULT_FILE).exists()

    @property
    def metrics(self) -> dict[str, Any]:
        """What is in `result.json`: `test_top1`, `val_top1`, `agreement`, ... of the student.

        Raises:
          UserError: it is not finished.
        """
        result = atomic_files.read_json(self.workdir / workdir_lib.RESULT_FILE)
        if result is None:
            raise UserError(
                f"the run in {self.workdir} is not finished: call kd_jax.distill again as before, "
                "which goes on from its newest checkpoint"
            )
        return dict(result)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """What its teacher reached on the test split; None without a teacher."""
        return atomic_files.read_json(self.workdir / workdir_lib.TEACHER_FILE)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of training (`kind` is `train`) and of validation (`val`), by step."""
        return atomic_files.read_json_lines(self.workdir / METRICS_FILE)

    @functools.cached_property
    def student(self) -> Student:
        """The trained student.

        Raises:
          UserError: the run is not finished, or its files are damaged.
        """
        self.metrics  # noqa: B018 -- says it if the run is not finished
        arch = self.config.student.arch
        if self._module is None and arch.startswith(zoo.PYTHON):
            raise UserError(
                f"the student of {self.workdir} is the module {arch.removeprefix(zoo.PYTHON)}, "
                "which was given from Python: give it again, kd_jax.load(workdir, module)"
            )
        network = None
        if self._module is not None:
            card = saved_network.load_card(self.workdir)
            self._check_module()
            network = user_module.wrap(
                self._module,
                num_classes=card.num_classes,
                mean=card.mean,
                std=card.std,
                image_shape=card.image_shape,
            )
        card, variables = saved_network.load(self.workdir, network)
        return Student(network or card.network(), variables, card.image_shape, card.class_names)

    def _check_module(self) -> None:
        """Raise `UserError` if the module is not the one that was trained."""
        starts = workdir_lib.starts_of(self.workdir)
        trained = starts[0].get("code", {}).get("student") if starts else None
        name = source_digest.named(self._module)
        if trained is not None and trained != name:
            raise UserError(
                f"the student of the run in {self.workdir} is the module {trained}, and this is "
                f"{name}: bring the old source back"
            )

    def report(self, out: str | Path | None = None) -> Report:
        """Write the run's page; a notebook shows it inline.

        Args:
          out: its path; None: `report.html` in the run's directory.
        """
        path = self.workdir / "report.html" if out is None else reachable(out, "out")
        return Report(path, page.write({self.workdir.name: self.workdir}, path, self.workdir.name))

    def export(
        self,
        format: str,
        out: str | Path,
        *,
        checkpoint: str | None = None,
        images: int | None = None,
        outputs: str = "logits",
        data_dir: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Write the student as a file for other programs, verified on test images.

        What `python -m kd_jax.export` does, see `docs/export.md`.

        Args:
          format: `safetensors`, `stablehlo`, `onnx`, `tflite`, `tflite-float16`, `tflite-int8`, or
            `all`.
          out: the file to write; for `all` a directory, made when missing.
          checkpoint: `best` or `last`, of a run that has checkpoints; None: the kept student.
          images: test images to verify on; None: all.
          outputs: `logits` or `probabilities`.
          data_dir: where the data set is; None: where the run found it.

        Returns:
          the cards of the files, as `FILE.card.json` has them. Of `all`, those that could be
          written; the others are told by warnings.

        Raises:
          UserError: something is wrong with what is asked for, the run or its data, or a file does
            not answer as the student does.
        """
        if self._module is not None:
            raise UserError(
                f"the student of the run in {self.workdir} is a module that was given as a Python "
                "object: only networks of the zoo are exported"
            )
        cards, problems = request.carry_out(
            Request(
                workdir=self.workdir,
                format=format,
                out=out,
                checkpoint=checkpoint,
                images=images,
                outputs=outputs,
                data_dir=None if data_dir is None else str(data_dir),
            )
        )
        for problem in problems:
            logger.warning("not written: %s", problem)
        return cards

    def __repr__(self) -> str:
        if not self.finished:
            return f"Run({str(self.workdir)!r}, not finished)"
        metrics = self.metrics
        name = "test_top1" if metrics.get("test_top1") is not None else "agreement"
        return f"Run({str(self.workdir)!r}, {name}={metrics[name]:.2f} %)"


def load(workdir: str | Path, module: Any = None) -> Run:
    """Return the run in a directory.

    Args:
      workdir: its directory.
      module: the Linen or NNX module of its student, where that is not of the zoo.

    Raises:
      UserError: there is none.
    """
    return Run(workdir, module)
