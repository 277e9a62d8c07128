"""Train one experiment.

    python -m kd_jax.main --config=configs/NAME.py[:arg] --workdir=DIR [--config.FIELD=VALUE ...]
    python -m kd_jax.main --config=configs/NAME.py[:arg] --plan [--plan_devices=8] [--plan_compile]
    python -m kd_jax.main --config=configs/NAME.py[:arg] --plan --plan_measure
    python -m kd_jax.main [--config=configs/NAME.py[:arg]] --help_config

The same command resumes a run that was stopped, and measures one that is finished. After SIGTERM
or SIGINT it saves, and exits with code 75.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from kd_jax.config import checks, document, overrides
from kd_jax.runtime import huge_pages, signals, supervise
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, run_command

_CONFIG = overrides.define()
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of the first process.")
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes that train together.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Find the other processes through Slurm, Open MPI, Kubernetes or Cloud TPU.",
)
_PLAN = flags.DEFINE_bool("plan", False, "Print what the run would need, and do not start it.")
_PLAN_DEVICES = flags.DEFINE_integer(
    "plan_devices", None, "Devices to plan for; none given: those of this machine.", lower_bound=1
)
_PLAN_COMPILE = flags.DEFINE_bool(
    "plan_compile", False, "Compile the step for CPUs too, and count its communication and memory."
)
_PLAN_MEASURE = flags.DEFINE_bool(
    "plan_measure", False, "Make steps for ten seconds, and say how long the run would take here."
)
_PLAN_RATE = flags.DEFINE_float("plan_rate", None, "Images a second that the plan assumes.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run; made when missing.")
_HELP_CONFIG = flags.DEFINE_bool(
    "help_config",
    False,
    "Print every field of the config with default, values, unit, meaning and source; behind "
    "--config and its overrides, their values too.",
)


def main(argv: Sequence[str]) -> None:
    """Train, and print the result as one JSON object."""
    del argv
    if _HELP_CONFIG.value:
        print(document.markdown(_CONFIG.value), end="")
        return
    if _CONFIG.value is None:
        raise UserError("--config is missing: expected a file such as configs/resnet44.py")
    if _PLAN.value or _PLAN_MEASURE.value:
        from kd_jax.training import plan

        devices, rate, compiled = _PLAN_DEVICES.value, _PLAN_RATE.value, _PLAN_COMPILE.value
        measured = _PLAN_MEASURE.value
        print(plan.plan(_CONFIG.value, devices, rate, compiled=compiled, measured=measured))
        return
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: expected the directory of this run")
    is_one_of_several = _is_one_of_several()
    checks.check(_CONFIG.value)  # before JAX is imported, which takes seconds
    if is_one_of_several:
        supervise.go_on_in_child()
    stop = signals.StopRequest(twice=is_one_of_several).listen()
    from kd_jax.runtime import processes
    from kd_jax.training.train import train

    if is_one_of_several:
        processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    try:
        with processes.ending_together():
            result = train(_CONFIG.value, _WORKDIR.value, stop)
        if processes.is_first():
            print(json.dumps(result))
            _say_what_next(shlex.quote(_WORKDIR.value))
    except signals.StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(signals.EXIT_STOPPED)


def _say_what_next(workdir: str) -> None:
    for purpose, command in {
        "look at the run": f"report --out=report.html run={workdir}",
        "use its student": f"predict --model={workdir} IMAGE...",
        "export it": f"export --workdir={workdir} --format=all --out=exported",
    }.items():
        logger.info("to %s: python -m kd_jax.%s", purpose, command)


def _is_one_of_several() -> bool:
    """Tell whether this process trains together with others.

    Raises:
      UserError: the flags that say so are incomplete or wrong.
    """
    present = (bool(_COORDINATOR.value), _PROCESSES.value is not None, _PROCESS.value is not None)
    if any(present) and not all(present):
        raise UserError(
            "--coordinator, --processes and --process belong together: give all, or none"
        )
    if _COORDINATOR.value and not re.fullmatch(r".+:\d+", _COORDINATOR.value):
        raise UserError(f"--coordinator={_COORDINATOR.value} is not understood: expected HOST:PORT")
    return _DISTRIBUTED.value or all(present)


if __name__ == "__main__":
    huge_pages.enable()
    run_command(main, check=overrides.check)
