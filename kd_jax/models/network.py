"""A network as the rest of the project uses it: a Flax module and the normalisation of its pixels.

Images stay pixels in [0, 1] until a network receives them. So teacher and student always see the
same view, each under its own normalisation.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.kernels import chunks, jaxprs, lowering
from kd_jax.models import initialization, module_checks, norm, quantize, zoo
from kd_jax.runtime.errors import UserError

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A module and the normalisation that belongs to it.

    Attributes:
      arch: its name in the zoo; `python:` and a name for a module of the user's own.
      module: `module.apply(variables, normalised_images, train=...)` gives logits.
      mean, std: of the pixels in [0, 1], one value for each channel.
      kept_norms: paths, joined by `/`, of batch norms that stay in eval mode in training: their
        running statistics are used and do not change.
      quantized: whether it computes with int8's numbers, see `quantize`; only networks of the zoo.
    """

    arch: str
    module: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kept_norms: frozenset[str] = frozenset()
    quantized: bool = False

    @property
    def num_classes(self) -> int:
        """Width of the head."""
        return self.module.num_classes

    @property
    def has_dropout(self) -> bool:
        """Whether `train_logits` needs `dropout_keys`."""
        return bool(getattr(self.module, "dropout_rate", 0.0))

    @property
    def is_changed_by_devices(self) -> bool:
        """Whether another number of devices would be another training, with norms synchronised."""
        return False

    def normalise(self, pixels: jax.Array) -> jax.Array:
        """Return `(pixels - mean) / std`; `pixels` is `[batch, H, W, C]` in [0, 1]."""
        normalised = (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        darkest, brightest = ((value - np.array(self.mean)) / self.std for value in (0.0, 1.0))
        return quantize.within(normalised, (darkest.min(), brightest.max()))

    def as_trained(self, variables: Variables) -> Network:
        """Return this network with the numbers that its variables were trained with."""
        return dataclasses.replace(self, quantized=quantize.have_ranges(variables))

    def _numbers(self, train: bool = False) -> contextlib.AbstractContextManager[None]:
        """Return the context that the module is traced in."""
        if not self.quantized:
            return contextlib.nullcontext()
        return quantize.active(train, getattr(self.module, "axis_name", None))

    def init(self, seed: int, image_shape: tuple[int, int, int]) -> Variables:
        """Return fresh float32 variables in host memory, for images of shape `[H, W, C]`.

        NumPy draws each leaf from the seed and the path of the leaf. So the values are the same on
        every platform and under every version of JAX, and no program of a hundred random generators
        is compiled. A module without `kernel_std` uses its own initialisers.

        Raises:
          UserError: see `abstract_variables`.
        """
        shapes = self.abstract_variables(image_shape)
        if initialization.has_own_initializers(self.module):
            drawn = initialization.run_initializers(self.first_variables, seed, image_shape)
            return both_collections(drawn)
        flat = {
            path: initialization.first_value(self.arch, self.module, path, leaf.shape, seed)
            for path, leaf in flax.traverse_util.flatten_dict(shapes).items()
        }
        return both_collections(flax.traverse_util.unflatten_dict(flat))

    def first_variables(self, key: jax.Array, images: jax.Array) -> Variables:
        """Return the variables that the module draws by itself."""
        with self._numbers():
            return self.module.init(key, images)

    def abstract_variables(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return shapes and dtypes of what `init` returns. Draws and computes nothing.

        Raises:
          UserError: the strides of the network leave no pixel of such an image, or training the
            module would give wrong results, see `module_checks.check`.
        """
        tree, norms = self.trace(image_shape)
        module_checks.check(self.arch, self.module, tree, norms)
        return both_collections(tree)

    def check_norms(self, image_shape: tuple[int, int, int], devices: int) -> None:
        """Raise `UserError` if a norm cannot do what a run on so many devices needs.

        See `module_checks.check_norms`.
        """
        if devices > 1 or self.kept_norms:
            _, norms = self.trace(image_shape)
            module_checks.check_norms(self.arch, self.module, norms, devices, self.kept_norms)

    def check_quantized(self, image_shape: tuple[int, int, int]) -> None:
        """Raise `UserError` unless int8 can hold the network, see `module_checks`."""
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        module_checks.check_quantized(
            self.arch,
            lambda: jax.eval_shape(lambda x: self.first_variables(jax.random.key(0), x), images),
        )

    def with_ranges(self, variables: Variables, image_shape: tuple[int, int, int]) -> Variables:
        """Return variables with an empty range for each result that int8 keeps, see `quantize`."""
        quantized = dataclasses.replace(self, quantized=True)
        shapes = quantized.abstract_variables(image_shape)
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        return quantize.with_ranges_of(variables, empty)

    def trace(self, image_shape: tuple[int, int, int]) -> tuple[Variables, norm.Norms]:
        """Return shapes and dtypes of a Linen module's variables, and its norms."""
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        try:
            tree, norms = norm.record_norms(
                lambda: jax.eval_shape(lambda x: self.first_variables(jax.random.key(0), x), images)
            )
        except ZeroDivisionError:  # an initialiser divided by a fan-in of 0
            tree, norms = None, {}
        if tree is None or not all(all(leaf.shape) for leaf in jax.tree.leaves(tree)):
            raise UserError(
                f"{self.arch} leaves nothing of an image of {image_shape[0]} x {image_shape[1]} "
                "pixels: expected larger images, or a network with fewer strides"
            )
        return tree, norms

    def logits(self, variables: Variables, pixels: jax.Array) -> jax.Array:
        """Return float32 logits `[batch, classes]` in eval mode, with the running statistics."""

        def forward(pixels: jax.Array) -> jax.Array:
            with lowering.frozen():
                logits = self.module.apply(variables, self.normalise(pixels), train=False)
            return jnp.asarray(logits, jnp.float32)

        with self._numbers():
            return chunks.in_chunks(forward, pixels)

    def train_logits(
        self,
        variables: Variables,
        pixels: jax.Array,
        dropout_keys: jax.Array | None,
        step: jax.Array | None = None,
    ) -> tuple[jax.Array, norm.Statistics]:
        """Return float32 logits in train mode, and the statistics for `average_statistics`.

        Args:
          variables: `params` and `batch_stats`. Train mode reads only the statistics of
            `kept_norms` and of norms that are not from kd_jax.
          pixels: float32 `[batch, H, W, C]` in [0, 1].
          dropout_keys: PRNG keys `[batch]`, or None for no dropout.
          step: not read here, see `user_linen.LinenNetwork`.
        """

        def forward() -> Any:
            return self.module.apply(
                variables,
                self.normalise(pixels),
                train=True,
                dropout_keys=dropout_keys,
                mutable=["batch_stats"],
            )

        with norm.keeping(self.kept_norms), self._numbers(train=True):
            (logits, updates), norms = norm.record_norms(forward)
        statistics = norm.split_statistics(both_collections(updates)["batch_stats"], norms)
        axis = getattr(self.module, "axis_name", None)
        if axis is not None and jax.tree.leaves(statistics.running):
            # Even if the module does not synchronise them itself.
            running = jax.lax.pmean(statistics.running, axis)
            statistics = norm.Statistics(statistics.of_batch, running)
        return logits.astype(jnp.float32), statistics

    def average_statistics(
        self, running: Variables, new: norm.Statistics, step: jax.Array | None
    ) -> Variables:
        """Return the running statistics after one more batch.

        Args:
          running: `batch_stats` before this batch.
          new: statistics that `train_logits` returned.
          step: see `norm.running_average`.
        """
        of_batch = flax.traverse_util.flatten_dict(new.of_batch)
        if of_batch:
            flat = flax.traverse_util.flatten_dict(dict(running))
            before = {path: flat[path] for path in of_batch}
            momentum = self.module.batch_norm_momentum
            of_batch = norm.running_average(before, of_batch, step, momentum)
            norms = {path: "/".join(path[:-1]) for path in before}
            kept = [path for path in before if self.quantized or norms[path] in self.kept_norms]
            of_batch |= {path: before[path] for path in kept}
        averaged_by_module = flax.traverse_util.flatten_dict(new.running)
        return flax.traverse_util.unflatten_dict({**averaged_by_module, **of_batch})


def build(
    arch: str,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    axis_name: str | None = None,
    dropout_rate: float = 0.0,
    dtype: str = "float32",
    quantized: bool = False,
) -> Network:
    """Return the network `arch` with a head of `num_classes`.

    Args:
      arch: a name in the zoo.
      num_classes: width of the head.
      mean, std: normalisation of pixels in [0, 1], one value for each channel.
      axis_name: the pmap axis over which batch norm is synchronised in training.
      dropout_rate: before the head, in training.
      dtype: of the computations; parameters, batch statistics and logits stay float32.
      quantized: whether it computes with int8's numbers.

    Raises:
      UserError: `arch` is not in the zoo.
    """
    module = zoo.constructor(arch)(
        num_classes=num_classes,
        axis_name=axis_name,
        dropout_rate=dropout_rate,
        dtype=jnp.bfloat16 if dtype == "bfloat16" else None,
    )
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    return Network(arch, module, mean, std, quantized=quantized)


def both_collections(variables: Variables) -> dict[str, Any]:
    """Return variables with `batch_stats`, which Flax leaves out for networks without any."""
    return {"batch_stats": {}, **variables}


def count_params(network: Network, image_shape: tuple[int, int, int]) -> int:
    """Return the number of trained parameters. Computes nothing on a device."""
    variables = abstract_variables(network, image_shape)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count_madds(network: Network, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of the forward pass of one image: convolutions and linear layers.

    The number is counted in the traced program, so it cannot disagree with the code. See
    `jaxprs.multiply_adds`.
    """
    variables = abstract_variables(network, image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with lowering.forced("plain"):
        traced = jax.make_jaxpr(network.logits)(variables, images)
    return sum(
        repeats * jaxprs.multiply_adds(equation)
        for equation, repeats in jaxprs.equations(traced.jaxpr)
    )


def abstract_variables(network: Network, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return `network.abstract_variables(image_shape)`."""
    return network.abstract_variables(image_shape)


def check_norms(network: Network, image_shape: tuple[int, int, int], devices: int) -> None:
    """Call `network.check_norms(image_shape, devices)`."""
    network.check_norms(image_shape, devices)


def flat_shapes(
    network: Network, image_shape: tuple[int, int, int]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shape of every leaf by its path. Computes nothing on a device."""
    tree = network.abstract_variables(image_shape)
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree).items()}
