"""A user's Flax Linen module as a network, see `user_module.wrap`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from kd_jax.kernels import jaxprs
from kd_jax.models import norm as norm_lib
from kd_jax.models.network import Variables, both_collections
from kd_jax.models.user_module import TRACED_DEVICES, UserNetwork
from kd_jax.runtime.devices import AXIS
from kd_jax.runtime.errors import UserError

# Only these methods are known to follow `axis_name` and `use_running_average`.
_KNOWN_NORMS = (nn.BatchNorm.__call__, norm_lib.BatchNorm.__call__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinenNetwork(UserNetwork):
    """A Linen module that was not written for kd_jax. Make it with `user_module.wrap`."""

    def first_variables(self, key: jax.Array, images: jax.Array) -> Variables:
        """Return what the module draws from a key. Its switch is in eval mode."""
        return self._in_mode(False).init(key, images, **self._arguments(False))

    def trace(self, image_shape: tuple[int, int, int]) -> tuple[Variables, norm_lib.Norms]:
        """Return shapes and dtypes of the module's variables, and its norms."""
        with self.explained("eval", (1, *image_shape)):
            return super().trace(image_shape)

    def evaluate(self, variables: Variables, pixels: jax.Array) -> Any:
        """Return what the module makes of pixels `[batch, H, W, C]` in [0, 1], in eval mode."""
        with self._norms_adapted(None, None):
            return self._in_mode(False).apply(
                variables, self.normalise(pixels), **self._arguments(False)
            )

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
          dropout_keys: PRNG keys `[batch]`. A module that takes `dropout_keys` gets them all. The
            random numbers of Flax are for the whole batch, and all come from the first key.
          step: as `Network.average_statistics` has it: batch norms of Flax average their statistics
            themselves, and reach their momentum gradually too.
        """
        key = self.key_of_device(dropout_keys)
        rngs = {} if key is None else _rngs(key)
        logits, batch_stats, norms, _ = self._train(variables, pixels, rngs, dropout_keys, step)
        statistics = norm_lib.split_statistics(batch_stats, norms)
        if self.axis_name is not None and jax.tree.leaves(statistics.running):
            running = jax.lax.pmean(statistics.running, self.axis_name)
            statistics = norm_lib.Statistics(statistics.of_batch, running)
        return logits.astype(jnp.float32), statistics

    def check_norms(self, image_shape: tuple[int, int, int], devices: int) -> None:
        """Raise `UserError` if a norm that is to be frozen is not one that can be."""
        if not self.kept_norms:
            return
        _, norms = self.trace(image_shape)
        for path in sorted(self.kept_norms):
            if path not in norms or type(norms[path]).__call__ not in _KNOWN_NORMS:
                raise UserError(
                    f"config.student.freeze freezes the norm {path} of {self.arch}, which would go "
                    "on with the statistics of each batch: expected nn.BatchNorm itself there, or "
                    "a pattern that leaves its parameters free"
                )

    def traced(self, image_shape: tuple[int, int, int]) -> LinenNetwork:
        """Return this network with what tracing the module tells of it.

        Raises:
          UserError: see `user_module.wrap`.
        """
        variables = self.abstract_variables(image_shape)
        images = self.images(image_shape)
        with self.explained("eval", images.shape):
            self.check_output(jax.eval_shape(self.evaluate, variables, images), "eval", images)
        with self.explained("train", images.shape):
            whole = self._trace_training(variables, images)
            self.check_output(whole.output, "train", images)
            draws = self._changes(whole, variables, images, rngs=False)
            takes_keys = self._changes(whole, variables, images, dropout_keys=False)
        self.check_changing(whole.unchanged)
        return dataclasses.replace(
            self,
            has_dropout=draws or takes_keys,
            is_changed_by_devices=draws or bool(whole.unsynchronised),
        )

    def _train(
        self,
        variables: Variables,
        pixels: jax.Array,
        rngs: dict[str, jax.Array],
        dropout_keys: jax.Array | None,
        step: jax.Array | None,
    ) -> tuple[Any, Any, norm_lib.Norms, set[str]]:
        """Return the output in train mode, `batch_stats`, the norms, and which are synchronised."""

        def forward() -> Any:
            return self._in_mode(True).apply(
                variables,
                self.normalise(pixels),
                **self._arguments(True, dropout_keys),
                rngs=rngs,
                mutable=["batch_stats"],
            )

        with norm_lib.keeping(self.kept_norms), self._norms_adapted(self.axis_name, step) as known:
            (output, updates), norms = norm_lib.record_norms(forward)
        return output, both_collections(updates)["batch_stats"], norms, known

    def _in_mode(self, train: bool) -> nn.Module:
        """Return the module, with the field that is its training switch set."""
        return self.module.clone(**self.call.mode(train)) if self.call.is_field else self.module

    def _arguments(self, train: bool, dropout_keys: jax.Array | None = None) -> dict[str, Any]:
        """Return the arguments of `__call__` besides the images."""
        arguments: dict[str, Any] = {} if self.call.is_field else self.call.mode(train)
        return arguments | dict.fromkeys(self.call.takes & {"dropout_keys"}, dropout_keys)

    @contextlib.contextmanager
    def _norms_adapted(self, axis_name: str | None, step: jax.Array | None) -> Iterator[set[str]]:
        """Context in which every batch norm that is called is synchronised over `axis_name`.

        A norm is not in the module before it is called, and it is frozen then, as every Linen
        module. So its fields are set around the call, which no method of Linen's can do.

        Yields:
          The paths of norms that follow `axis_name`, once they were called. Others are subclasses
          with a `__call__` of their own, and norms that are called with a mask.
        """
        known: set[str] = set()
        devices = None if axis_name is None else jax.lax.axis_size(axis_name)

        def adapt(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            norm = context.module
            if not isinstance(norm, nn.BatchNorm) or norm.is_initializing():
                return method(*args, **kwargs)
            path = "/".join(norm.path)
            self.check_norm_axis(norm, path, AXIS)
            if axis_name is not None and jax.lax.axis_size(axis_name) != devices:
                raise UserError(
                    f"{self.arch} calls its norm {path} inside an axis {axis_name!r} of its own: "
                    "expected another name, because that is the axis of the devices"
                )
            fields: dict[str, Any] = {"axis_name": axis_name}
            if type(norm).__call__ in _KNOWN_NORMS and kwargs.get("mask") is None:
                known.add(path)
            if not isinstance(norm, norm_lib.BatchNorm):
                fields["momentum"] = norm_lib.gradual(norm.momentum, step)
                if path in self.kept_norms:
                    fields["use_running_average"] = True
                    args, kwargs = args[:1], {k: v for k, v in kwargs.items() if k in ("x", "mask")}
            before = {name: getattr(norm, name) for name in fields}
            try:
                _set(norm, fields)
                return method(*args, **kwargs)
            finally:
                _set(norm, before)

        with nn.intercept_methods(adapt):
            yield known

    def _trace_training(
        self,
        variables: Variables,
        images: jax.ShapeDtypeStruct,
        *,
        rngs: bool = True,
        dropout_keys: bool = True,
    ) -> _TrainTrace:
        """Trace the module in train mode, with or without the random numbers that it could have."""
        known: set[str] = set()
        norms: norm_lib.Norms = {}

        def forward(variables: Variables, images: jax.Array, keys: jax.Array) -> Any:
            given = _rngs(keys[0])  # in any case, or the equations could not be compared
            output, batch_stats, called, synchronised = self._train(
                variables, images, given if rngs else {}, keys if dropout_keys else None, None
            )
            known.update(synchronised)
            norms.update(called)
            return output, batch_stats

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images.shape[0]))
        axes = [] if self.axis_name is None else [(self.axis_name, TRACED_DEVICES)]
        make = jax.make_jaxpr(forward, axis_env=axes, return_shape=True)
        program, (output, batch_stats) = make(variables, images, keys)
        flat = ["/".join(path[:-1]) for path in flax.traverse_util.flatten_dict(batch_stats)]
        results = program.jaxpr.outvars[len(jax.tree.leaves(output)) :]
        # An output that is an input was passed through.
        through = [p for p, var in zip(flat, results, strict=True) if var in program.jaxpr.invars]
        return _TrainTrace(
            output=output,
            equations=sum(1 for _ in jaxprs.equations(program.jaxpr)),
            unchanged=sorted(set(through) & set(norms)),
            unsynchronised=sorted(set(flat) - (known if self.axis_name else set())),
        )

    def _changes(
        self, whole: _TrainTrace, variables: Variables, images: jax.ShapeDtypeStruct, **less: bool
    ) -> bool:
        """Tell whether a module computes something else when it is given less."""
        try:
            return self._trace_training(variables, images, **less).equations != whole.equations
        except flax.errors.InvalidRngError:
            return True


class _TrainTrace(NamedTuple):
    """What tracing a module in train mode tells.

    Attributes:
      output: shape and dtype.
      equations: their number in the traced program.
      unchanged: paths of batch norms whose statistics stay as they are.
      unsynchronised: paths of statistics that belong to no norm that is synchronised.
    """

    output: Any
    equations: int
    unchanged: list[str]
    unsynchronised: list[str]


def _rngs(key: jax.Array) -> dict[str, jax.Array]:
    """Return the random numbers of a call; streams of any other name come from `params`."""
    return {"params": jax.random.fold_in(key, 0), "dropout": key}


def _set(module: nn.Module, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        object.__setattr__(module, name, value)
