"""Kill a run again and again, and check that it ends with the bits of a run that was never killed.

    python -m kd_jax.torture [--kills=25] [--workdir=runs/torture]

A small teacher is trained on the embedded images twice: without a break, and with kills: SIGKILL
while it starts, while it trains and while it writes a checkpoint, and SIGTERM. At the end both runs
must have the same weights and the same metrics, bit for bit. Exit code 1 if they do not.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from kd_jax.runtime import atomic_files, signals
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError, reachable, run_command

_KILLS = flags.DEFINE_integer("kills", 25, "Number of kills.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed", None, "Seed of the moments of the kills; the time of day by default."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/torture", "New directory for the two runs.")
_STEPS_A_KILL = 20  # so that the run does not end before the last kill
_PATIENCE_SECONDS = 300.0
WAYS = ("starting", "training", "saving", "SIGTERM")


def main(argv: Sequence[str]) -> None:
    """Train both runs, and print how they compare."""
    del argv
    root = reachable(_WORKDIR.value, "--workdir")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"--workdir={root} exists: expected a new directory")
    seed = int(time.time()) if _SEED.value is None else _SEED.value
    rng = random.Random(seed)
    steps = _STEPS_A_KILL * _KILLS.value + 40
    logger.info("%d steps, %d kills, --seed=%d", steps, _KILLS.value, seed)

    unbroken_run, killed_run = root / "unbroken", root / "killed"
    _finish(_start(unbroken_run, steps))
    num_survived, num_lost = 0, 0  # kills, checkpoints
    for number in range(_KILLS.value):
        way = WAYS[number % len(WAYS)] if number < len(WAYS) else rng.choice(WAYS)
        step_before = newest_checkpoint(killed_run)
        process = _start(killed_run, steps)
        if not kill(process, killed_run, way, rng):
            logger.info("the run ended before kill %d", number + 1)
            break
        num_survived += 1
        step_after = newest_checkpoint(killed_run)
        num_lost += step_after < step_before
        logger.info("kill %d, %s: checkpoint of step %d", number + 1, way, step_after)
    _finish(_start(killed_run, steps))

    same_weights = read(killed_run / "model.safetensors") == read(
        unbroken_run / "model.safetensors"
    )
    same_metrics = logged_metrics(killed_run) == logged_metrics(unbroken_run)
    print(
        f"kills survived: {num_survived} of {_KILLS.value}; "
        f"parameters {'bit-identical' if same_weights else 'DIFFERENT'}, "
        f"metrics {'identical' if same_metrics else 'DIFFERENT'}, checkpoints lost: {num_lost}"
    )
    if not (same_weights and same_metrics) or num_lost or num_survived < _KILLS.value:
        sys.exit(1)


def _start(workdir: Path, steps: int) -> subprocess.Popen[str]:
    arguments = (
        "--config=kd_jax:demo:teacher",
        f"--config.total_steps={steps}",
        "--config.checkpoint_every_steps=7",
        "--config.log_every_steps=5",
        f"--workdir={workdir}",
    )
    return subprocess.Popen(
        [sys.executable, "-m", "kd_jax.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise UserError(f"the run failed with code {process.returncode}: {errors[-1000:]}")


def kill(process: subprocess.Popen[str], workdir: Path, way: str, rng: random.Random) -> bool:
    """Kill a process in one of `WAYS`; return False if it had ended before.

    Raises:
      UserError: it failed, or did not stop as it should.
    """
    metrics = workdir / "metrics.jsonl"
    size = len(read(metrics))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline and way != "starting":
        if way == "saving" and any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")):
            break
        if way != "saving" and len(read(metrics)) > size:
            break
        time.sleep(0.001 if way == "saving" else 0.01)
    time.sleep(rng.uniform(0.0, {"starting": 8.0, "saving": 0.05}.get(way, 1.5)))
    process.send_signal(signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode == 0:
        return False
    if process.returncode != (signals.EXIT_STOPPED if way == "SIGTERM" else -signal.SIGKILL):
        raise UserError(f"the run failed with code {process.returncode}: {errors[-1000:]}")
    return True


def read(path: Path) -> bytes:
    """Return the content of a file; empty if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def newest_checkpoint(workdir: Path) -> int:
    """Return the step of the newest whole checkpoint; -1 if there is none."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def logged_metrics(workdir: Path) -> list[dict[str, object]]:
    """Return the metrics of a run, without its speed."""
    records = atomic_files.read_json_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


if __name__ == "__main__":
    run_command(main)
