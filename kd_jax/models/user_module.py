"""A module of the user's own as a network: Flax Linen or NNX, nothing added to it.

What training needs beyond `__call__` is found in the module itself: the switch between training
and eval mode, the batch norms and whether it draws random numbers. Norms are synchronised over the
devices although the module does not know of any. What would train wrongly without any message is
refused in one sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.kernels import chunks, lowering
from kd_jax.models import call_signature
from kd_jax.models.network import Network, Variables
from kd_jax.runtime.errors import UserError

# Devices of the axis that a module is traced over. A prime, so that an axis of the module's own
# with the same name is not taken for it.
TRACED_DEVICES = 1009
_LONGEST = 200  # letters of somebody else's error that are shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserNetwork(Network):
    """A module that was not written for kd_jax, as a network. Make it with `wrap`.

    Attributes:
      num_classes: width of its output.
      axis_name: the pmap axis over which its batch norms are synchronised; None: over none.
      call: what its `__call__` takes.
      has_dropout: whether it draws random numbers in training.
      is_changed_by_devices: whether another number of devices would be another training: it draws
        random numbers for a whole batch at once, or keeps statistics that are not synchronised.
    """

    num_classes: int = 0
    axis_name: str | None = None
    call: call_signature.CallSignature
    has_dropout: bool = False
    is_changed_by_devices: bool = False

    def logits(self, variables: Variables, pixels: jax.Array) -> jax.Array:
        """Return float32 logits `[batch, classes]` in eval mode, with the running statistics.

        As in `Network.logits` the batch is computed in chunks on CPU. That asks nothing of the
        module which evaluation on several devices does not ask: in eval mode an image must not
        depend on the others.
        """

        def forward(pixels: jax.Array) -> jax.Array:
            with lowering.frozen():  # read by layers of kd_jax only
                return jnp.asarray(self.evaluate(variables, pixels), jnp.float32)

        return chunks.in_chunks(forward, pixels)

    def traced(self, image_shape: tuple[int, int, int]) -> UserNetwork:
        """Return the network with what only a trace of its module tells; checks the module.

        Raises:
          UserError: see `wrap`.
        """
        raise NotImplementedError

    def evaluate(self, variables: Variables, pixels: jax.Array) -> Any:
        """Return what the module makes of pixels `[batch, H, W, C]` in [0, 1], in eval mode."""
        raise NotImplementedError

    def key_of_device(self, dropout_keys: jax.Array | None) -> jax.Array | None:
        """Return the key of all random numbers of this device's part of the batch.

        It is the key of its first example, so devices draw different numbers.

        Raises:
          ValueError: there are no keys, and the module needs them.
        """
        if dropout_keys is not None:
            return dropout_keys[0]
        if self.has_dropout:
            raise ValueError(f"{self.arch} draws random numbers in training and is given no keys")
        return None

    @contextlib.contextmanager
    def explained(self, mode: str, shape: tuple[int, ...]) -> Iterator[None]:
        """Context in which errors of the user's module become one sentence each.

        The first error is the cause of the one raised, so its traceback is not lost.

        Args:
          mode: `train` or `eval`.
          shape: of the images that the module is given.

        Raises:
          UserError: the module failed.
        """
        switches = ", ".join(call_signature.SWITCHES)
        try:
            yield
        except UserError:
            raise
        except flax.errors.InvalidRngError as error:
            raise UserError(
                f"{self.arch} draws random numbers in {mode} mode ({_first_line(error)}): expected "
                f"them in training only, after one of {switches} in the module's __call__"
            ) from error
        except flax.errors.ModifyScopeVariableError as error:
            raise UserError(
                f"{self.arch} changes its variables in {mode} mode ({_first_line(error)}): "
                "expected batch norms to use their running averages there, after one of "
                f"{switches} in the module's __call__"
            ) from error
        except Exception as error:
            raise UserError(
                f"{self.arch} fails on images of the shape {shape} in {mode} mode "
                f"({type(error).__name__}: {_first_line(error)}): expected a module from "
                f"[n, H, W, C] to [n, {self.num_classes}]"
            ) from error

    def images(self, image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of the few images that the module is traced with."""
        count = 2 if self.num_classes != 2 else 3  # or swapped axes of the output would look right
        return jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)

    def check_output(self, output: Any, mode: str, images: jax.ShapeDtypeStruct) -> None:
        """Raise `UserError` unless the traced output is logits `[n, classes]` for n images."""
        count = images.shape[0]
        expected = f"expected one array of logits, [n, {self.num_classes}] for n images"
        if not hasattr(output, "shape") or not hasattr(output, "dtype"):
            raise UserError(
                f"{self.arch} returns {_description(output)} in {mode} mode: {expected}"
            )
        if output.shape != (count, self.num_classes):
            raise UserError(
                f"{self.arch} returns the shape {list(output.shape)} for {count} images in {mode} "
                f"mode: {expected}"
            )
        if not jnp.issubdtype(output.dtype, jnp.floating):
            raise UserError(f"{self.arch} returns {output.dtype} in {mode} mode: {expected}, float")

    def check_norm_axis(self, norm: Any, path: str, allowed: str) -> None:
        """Raise `UserError` if a batch norm is to be synchronised over an axis of its own."""
        if norm.axis_name not in (None, allowed):
            raise UserError(
                f"{self.arch} synchronises its norm {path} over the axis {norm.axis_name!r}, which "
                "training does not have: expected axis_name=None there, because training "
                "synchronises every nn.BatchNorm over the devices by itself"
            )
        if norm.axis_index_groups is not None:
            raise UserError(
                f"{self.arch} synchronises its norm {path} over groups of devices "
                f"(axis_index_groups={norm.axis_index_groups}): expected None there, because "
                "training synchronises over all devices"
            )

    def check_changing(self, unchanged: list[str]) -> None:
        """Raise `UserError` if a batch norm stays in eval mode in training.

        Args:
          unchanged: paths of norms whose running averages a batch in train mode does not change.
        """
        if not unchanged:
            return
        switch = (
            f"{self.call.switch} does not reach it"
            if self.call.switch
            else f"__call__ takes none of {', '.join(call_signature.SWITCHES)}"
        )
        raise UserError(
            f"{self.arch} leaves its norm {unchanged[0]} in eval mode in training ({switch}), so "
            "its statistics would stay what they are: expected use_running_average=not train "
            "there; to freeze a norm on purpose, set config.student.freeze"
        )


def wrap(
    module: Any,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_shape: tuple[int, int, int],
    axis_name: str | None = None,
    name: str | None = None,
) -> UserNetwork:
    """Return a user's module as a network. Traces it, and computes nothing.

    Args:
      module: an instance of `flax.linen.Module` or of `flax.nnx.Module`, from normalised images
        `[n, H, W, C]` to logits `[n, classes]`. It is not changed.
      num_classes: what its output must be wide.
      mean, std: normalisation of pixels in [0, 1], one value for each channel.
      image_shape: `(H, W, C)` of the images.
      axis_name: the pmap axis over which batch norm is synchronised in training.
      name: of the network, after `python:`; the name of the module's class by default.

    Raises:
      UserError: it is no module, it fails on such images, its output is not logits, or training it
        would give wrong results without any message.
    """
    from kd_jax.models import user_linen, user_nnx  # both subclass UserNetwork

    makers = {nn.Module: user_linen.LinenNetwork, nnx.Module: user_nnx.NNXNetwork}
    for kind, make in makers.items():
        if isinstance(module, type) and issubclass(module, kind):
            raise UserError(
                f"{module.__name__} is a class: expected an instance of it, such as "
                f"{module.__name__}(...)"
            )
        if isinstance(module, kind):
            arch = f"python:{name or type(module).__name__}"
            network = make(
                arch,
                module,
                tuple(map(float, mean)),
                tuple(map(float, std)),
                num_classes=num_classes,
                axis_name=axis_name,
                call=call_signature.read(arch, module),
            )
            return network.traced(image_shape)
    raise UserError(
        f"{_description(module)} is no module: expected an instance of flax.linen.Module or of "
        "flax.nnx.Module, from images [n, H, W, C] to logits [n, classes]"
    )


def _description(value: Any) -> str:
    """Return what an output is, where it is not one array."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:_LONGEST]
