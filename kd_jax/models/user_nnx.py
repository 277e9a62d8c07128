"""A user's Flax NNX module as a network, see `user_module.wrap`.

An NNX module is born with its values. They are the first values of training, whatever its seed is,
and the instance itself is never changed: every call is made on a copy that has the values of the
step.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.models import norm as norm_lib
from kd_jax.models.network import Variables, both_collections
from kd_jax.models.user_module import TRACED_DEVICES, UserNetwork
from kd_jax.runtime.devices import AXIS
from kd_jax.runtime.errors import UserError

_COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
_KNOWN_CALL = nnx.BatchNorm.__call__
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNXNetwork(UserNetwork):
    """An NNX module that was not written for kd_jax. Make it with `user_module.wrap`."""

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> Variables:
        """Return the values that the instance has, as float32 arrays in host memory.

        `params` are its `nnx.Param`, `batch_stats` its `nnx.BatchStat`. The seed is not read.
        """
        return _nested({path: np.array(value) for path, value in self._values().items()})

    def abstract_variables(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return shapes and dtypes of what `init` returns.

        Raises:
          UserError: the module keeps something else than parameters, batch statistics and states
            of random generators, or keeps them in something else than float32.
        """
        for path, value in self._values().items():
            if value.dtype != jnp.float32:
                raise UserError(
                    f"{self.arch} has {'/'.join(path)} in {value.dtype}: expected parameters and "
                    "statistics in float32, whatever the module computes in"
                )
        return jax.eval_shape(lambda: _nested(self._values()))

    def evaluate(self, variables: Variables, pixels: jax.Array) -> Any:
        """Return what the module makes of pixels `[batch, H, W, C]` in [0, 1], in eval mode."""
        called = self._call(variables, self.normalise(pixels), jax.random.key(0), train=False)
        if called.draws:
            raise UserError(
                f"{self.arch} draws random numbers in eval mode: expected them to end with the "
                "module's eval()"
            )
        return called.output

    def train_logits(
        self,
        variables: Variables,
        pixels: jax.Array,
        dropout_keys: jax.Array | None,
        step: jax.Array | None = None,
    ) -> tuple[jax.Array, norm_lib.Statistics]:
        """Return float32 logits in train mode, and the statistics for `average_statistics`.

        Args:
          variables: `params` and `batch_stats`.
          pixels: float32 `[batch, H, W, C]` in [0, 1].
          dropout_keys: PRNG keys `[batch]`. All random numbers come from the first.
          step: as `Network.average_statistics` has it: batch norms average their statistics
            themselves, and reach their momentum gradually too.
        """
        key = self.key_of_device(dropout_keys)
        key = jax.random.key(0) if key is None else key
        called = self._call(variables, self.normalise(pixels), key, train=True, step=step)
        running = called.batch_stats
        if self.axis_name is not None and jax.tree.leaves(running):
            running = jax.lax.pmean(running, self.axis_name)
        return called.output.astype(jnp.float32), norm_lib.Statistics({}, running)

    def check_norms(self, image_shape: tuple[int, int, int], devices: int) -> None:
        """Raise `UserError` if a norm that is to be frozen changes its statistics nevertheless."""
        if not self.kept_norms:
            return
        unchanged = self._trace_training(image_shape).unchanged
        for path in sorted(self.kept_norms):
            if path not in unchanged:
                raise UserError(
                    f"config.student.freeze freezes the norm {path} of {self.arch}, which would go "
                    "on with the statistics of each batch: expected an nnx.BatchNorm there that is "
                    "called without use_running_average, or a pattern that leaves its parameters "
                    "free"
                )

    def traced(self, image_shape: tuple[int, int, int]) -> NNXNetwork:
        """Return this network with what tracing the module tells of it.

        Raises:
          UserError: see `user_module.wrap`.
        """
        variables = self.abstract_variables(image_shape)
        images = self.images(image_shape)
        with self.explained("eval", images.shape):
            self.check_output(jax.eval_shape(self.evaluate, variables, images), "eval", images)
        with self.explained("train", images.shape):
            called = self._trace_training(image_shape)
            self.check_output(called.output, "train", images)
        self.check_changing(sorted(called.unchanged))
        statistics = flax.traverse_util.flatten_dict(variables["batch_stats"])
        known = called.synchronised if self.axis_name else set()
        unsynchronised = {"/".join(path[:-1]) for path in statistics} - known
        return dataclasses.replace(
            self,
            has_dropout=called.draws,
            is_changed_by_devices=called.draws or bool(unsynchronised),
        )

    def with_variables(self, variables: Variables) -> nnx.Module:
        """Return a copy of the user's module that has these values, in eval mode."""
        module = self._merged(self.module, variables, None)
        module.eval()
        return module

    def _values(self) -> dict[Path, Any]:
        """Return the arrays of the instance by collection and path."""
        values = {}
        for path, variable in _leaves(self.module):
            collection = self._collection(path, variable)
            if collection:
                values[collection, *map(str, path)] = variable.get_value()
        return values

    def _collection(self, path: tuple[Any, ...], variable: Any) -> str | None:
        """Return where a variable belongs; None for the state of a random generator."""
        for collection, kind in _COLLECTIONS.items():
            if isinstance(variable, kind):
                return collection
        if isinstance(variable, nnx.RngState):
            return None
        word = f"nnx.{type(variable).__name__}" if isinstance(variable, nnx.Variable) else "array"
        raise UserError(
            f"{self.arch} keeps an {word} in {'/'.join(map(str, path))}, which training would not "
            "carry on: expected nnx.Param, and nnx.BatchStat for what changes by itself; constants "
            "are made in __call__, or kept as NumPy arrays in a nnx.static attribute"
        )

    def _merged(self, module: Any, variables: Variables, key: jax.Array | None) -> Any:
        """Return a copy of a module with these values, and its generators seeded from a key."""
        flat = flax.traverse_util.flatten_dict(dict(variables))
        replaced = []
        for path, variable in _leaves(module):
            collection = self._collection(path, variable)
            value = variable.get_value()
            if collection:
                value = flat[collection, *map(str, path)]
            elif key is not None and isinstance(variable, nnx.RngKey):
                seed = zlib.crc32("/".join(map(str, path)).encode())
                value = jax.random.fold_in(key, np.uint32(seed))
                value = jax.random.split(value, variable.shape) if variable.shape else value
            elif key is not None:  # how often a generator was asked
                value = jnp.zeros_like(value)
            replaced.append((path, variable.replace(value)))
        graph, _ = nnx.split(module)
        return nnx.merge(graph, nnx.from_flat_state(replaced))

    def _call(
        self,
        variables: Variables,
        images: jax.Array,
        key: jax.Array,
        *,
        train: bool,
        step: jax.Array | None = None,
    ) -> _Called:
        """Call a copy of the module in one mode."""
        module = self._merged(self.module, variables, key)
        if train:
            module.train()
        else:
            module.eval()
        norms = {
            "/".join(map(str, path)): part
            for path, part in nnx.iter_modules(module)
            if isinstance(part, nnx.BatchNorm)
        }
        for path, norm in norms.items():
            self.check_norm_axis(norm, path, AXIS)
            norm.axis_name = self.axis_name if train else None
            if train and norm.mean.ndim == 1:  # scanned norms, with another, keep their own
                weight: Any = nnx.data(norm_lib.gradual(norm.momentum, step))
                norm.momentum = weight
            if path in self.kept_norms:
                norm.use_running_average = True
        arguments: dict[str, Any] = dict(self.call.mode(train))
        counts = _counts(module)
        if "rngs" in self.call.takes:
            arguments["rngs"] = nnx.Rngs(jax.random.fold_in(key, 0))
            counts += _counts(arguments["rngs"])
        before = _statistics(module)
        output = module(images, **arguments)
        after = _statistics(module)
        same = {"/".join(path[:-1]) for path in before if after[path] is before[path]}
        return _Called(
            output=output,
            batch_stats=flax.traverse_util.unflatten_dict({path: after[path] for path in before}),
            draws=any(variable.get_value() is not value for variable, value in counts),
            unchanged=same & set(norms),
            synchronised={p for p, n in norms.items() if type(n).__call__ is _KNOWN_CALL},
        )

    def _trace_training(self, image_shape: tuple[int, int, int]) -> _Called:
        """Trace a call in train mode; arrays of the result are shapes and dtypes, or tracers."""
        calls: list[_Called] = []

        def forward(variables: Variables, images: jax.Array, key: jax.Array) -> Any:
            calls.append(self._call(variables, self.normalise(images), key, train=True))
            return calls[-1].output

        key = jax.eval_shape(lambda: jax.random.key(0))
        axes = [] if self.axis_name is None else [(self.axis_name, TRACED_DEVICES)]
        make = jax.make_jaxpr(forward, axis_env=axes, return_shape=True)
        _, output = make(self.abstract_variables(image_shape), self.images(image_shape), key)
        return calls[-1]._replace(output=output)


class _Called(NamedTuple):
    """What a call of a module gave.

    Attributes:
      output: of the module.
      batch_stats: after the call.
      draws: whether it asked a random generator.
      unchanged: paths of batch norms whose statistics stay as they were.
      synchronised: paths of norms that follow their `axis_name`. A subclass with a `__call__` of
        its own may not.
    """

    output: Any
    batch_stats: Any
    draws: bool
    unchanged: set[str]
    synchronised: set[str]


def _leaves(module: nnx.Module) -> list[tuple[tuple[Any, ...], Any]]:
    """Return the variables and arrays of a module with their paths."""
    return list(nnx.to_flat_state(nnx.state(module)))


def _statistics(module: nnx.Module) -> dict[Path, Any]:
    flat = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
    return {tuple(map(str, path)): variable.get_value() for path, variable in flat}


def _counts(generators: Any) -> list[tuple[Any, Any]]:
    """Return how often each random generator was asked: the variable, and its value now."""
    parts = (part for _, part in nnx.iter_graph(generators))
    return [(part, part.get_value()) for part in parts if isinstance(part, nnx.RngCount)]


def _nested(flat: dict[Path, Any]) -> dict[str, Any]:
    return both_collections({"params": {}, **flax.traverse_util.unflatten_dict(flat)})
