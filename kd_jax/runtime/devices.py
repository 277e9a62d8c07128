"""Devices: which are used, how arrays are laid over them, and the pmap of a step.

State, teacher and data are replicated once and stay unmapped (`in_axes=None`); only the batch is
mapped. A replicated array that pmap returned, or that `replicate` placed, is passed on without a
copy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax.runtime import caches, processes, processor
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

AXIS = "batch"


def prepare(num_devices: int, batch_size: int) -> None:
    """Set what JAX must know before it looks for devices: CPU devices and the compilation cache.

    On CPU one device a core is faster than one device with many threads. Nothing is changed where
    the user has chosen (`XLA_FLAGS`, `JAX_NUM_CPU_DEVICES`) or where JAX has started already.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update(
            "jax_compilation_cache_dir", str(caches.directory("xla") / processor.cache_key())
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or os.environ.get("JAX_NUM_CPU_DEVICES"):
        return
    cores = processor.cores()
    fitting = max(n for n in range(1, cores + 1) if batch_size % n == 0)
    if jax.config.jax_num_cpu_devices == (num_devices or fitting):  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", num_devices or fitting)
    except RuntimeError:
        logger.info("JAX runs already: its CPU devices are left as they are")


def select(num_devices: int, batch_size: int, parts: int = 1) -> list[jax.Device]:
    """Return this process's devices for the run.

    Args:
      num_devices: over all processes; 0 takes all there are.
      batch_size: of the whole step.
      parts: that the batch is computed in, one after another.

    Raises:
      UserError: there are not so many devices, or they do not divide the batch.
    """
    local, together = jax.local_devices(), processes.count()
    if together > 1 and num_devices not in (0, together * len(local)):
        raise UserError(
            f"config.num_devices is {num_devices}, but {together} processes share "
            f"{together * len(local)} devices: several processes take all devices, so 0"
        )
    if num_devices > together * len(local):
        raise UserError(
            f"config.num_devices is {num_devices}, but this machine has {len(local)} "
            f"{local[0].platform} device(s): take fewer, or 0 for all"
        )
    if num_devices and together == 1:
        local = local[:num_devices]
    if batch_size % (len(local) * together * parts):
        in_parts = f" in config.accumulate={parts} parts" if parts > 1 else ""
        raise UserError(
            f"config.batch_size is {batch_size}, which {len(local) * together} devices{in_parts} "
            "do not divide: choose a multiple, or fewer with --config.num_devices"
        )
    return local


def mesh_of(devices: list[jax.Device]) -> Mesh:
    """Return the one-dimensional mesh of these local devices."""
    return Mesh(np.array(devices), (AXIS,))


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """Place a tree on every device, once."""
    return jax.device_put(tree, NamedSharding(mesh_of(devices), PartitionSpec()))


def place(tree: Any, devices: list[jax.Device]) -> Any:
    """Place host arrays `[devices, ...]` so that `pmap` takes them without a further copy."""
    return jax.device_put(tree, NamedSharding(mesh_of(devices), PartitionSpec(AXIS)))


def pmap(
    step: Callable[..., Any],
    devices: list[jax.Device],
    mapped: tuple[bool, ...],
    *,
    splits_result: bool = False,
    **options: Any,
) -> Callable[..., Any]:
    """Return `step` over the devices: mapped arguments split, the others replicated.

    Args:
      step: a per-device function.
      devices: as `select` returns them.
      mapped: for each argument, whether its leading axis is split over the devices.
      splits_result: whether each device has a result of its own, and a leading axis is theirs.
        Otherwise the result must be equal on all devices (reduced over `AXIS`): only the first
        device's value is kept.
      options: further options of `jax.pmap`.
    """

    # Where there are as many leaves as arguments JAX takes the axes leaf by leaf, although one
    # argument may have two leaves and another none (jax 0.10 and 0.12, `pmap._get_in_axes_flat`).
    # An empty argument with nested axes keeps it from that.
    @functools.wraps(step)
    def step_and_nothing(*arguments: Any) -> Any:
        return step(*arguments[:-1])

    program = jax.pmap(
        step_and_nothing,
        axis_name=AXIS,
        in_axes=(*(0 if split else None for split in mapped), ()),
        out_axes=0 if splits_result else None,
        devices=None if processes.count() > 1 else devices,
        **options,
    )
    return _WithNothing(program)


class _WithNothing:
    """A program that is called without its last argument, which is empty."""

    def __init__(self, program: Any):
        self._program = program

    def __call__(self, *arguments: Any) -> Any:
        return self._program(*arguments, ())

    def lower(self, *arguments: Any) -> Any:
        """Return the lowered program, see `jax.stages.Lowered`."""
        return self._program.lower(*arguments, ())


def shard(tree: Any, devices: list[jax.Device], parts: int = 1) -> Any:
    """Cut this process's share out of global host arrays: `[batch, ...]` to `[devices, n, ...]`.

    The batch is cut into parts first, and then each part is dealt out: so a part is the same
    examples however many devices there are. A device has its shares of the parts in their order.
    """
    process = jax.process_index() if processes.count() > 1 else 0
    mine = slice(process * len(devices), (process + 1) * len(devices))

    def cut(array: np.ndarray) -> np.ndarray:
        everyone = len(devices) * processes.count()
        dealt = array.reshape(parts, everyone, -1, *array.shape[1:])[:, mine]
        return dealt.swapaxes(0, 1).reshape(len(devices), -1, *array.shape[1:])

    return jax.tree.map(cut, tree)


def unshard(array: np.ndarray, parts: int = 1) -> np.ndarray:
    """Return the global `[batch, ...]` of `shard`'s `[devices, n, ...]`; for one process."""
    dealt = array.reshape(len(array), parts, -1, *array.shape[2:])
    return dealt.swapaxes(0, 1).reshape(-1, *array.shape[2:])
