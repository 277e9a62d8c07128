"""Views of one step: the pixels of the student and of the teacher.

They are a function of (seed, step, position in the global batch), so they do not depend on the
number of devices. The pixels of a mixup partner are computed again from its own index and position,
since the partner may be on another device; which example it is, `data.sampler` decides.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kd_jax.data.sampler import Array, Batch, Streamed
from kd_jax.distillation import augment


class Views(NamedTuple):
    """Views of one step, the part of one device.

    Attributes:
      student: pixels float32 `[n, H, W, C]` in [0, 1].
      teacher: by `distill.view`: the same array (`same`), an array of its own (`independent`), or
        None (`fixed`: the teacher's logits are known).
      lam: float32 `[n]`, mixup's weight of the example itself; 1 without mixup.
    """

    student: jax.Array
    teacher: jax.Array | None
    lam: jax.Array


def make(
    images: jax.Array | None,
    batch: Batch | Streamed,
    seed: jax.Array,
    step: jax.Array,
    config: ConfigDict,
) -> Views:
    """Make the views of one step.

    Under `independent` the crops and flips of the teacher are drawn apart from the student's. The
    mixup partner and lambda are common, so that both see a mixture of the same examples.

    Args:
      images: uint8 `[N, H, W, C]`, the training set; not read when the batch is streamed.
      batch: this device's part of the batch, `[n]` each.
      seed, step: int32 scalars.
      config: `augment`, `mixup`, `distill.view` and `batch_size` are read.
    """
    if isinstance(batch, Streamed):
        streamed, batch = batch, batch.batch
        count = len(streamed.pixels)
        pixels = (
            [streamed.pixels]
            if streamed.partner_pixels is None
            else [streamed.pixels, streamed.partner_pixels]
        )
        images = jnp.concatenate(pixels)
        rows, partner_rows = jnp.arange(count), jnp.arange(count, 2 * count)
    else:
        rows, partner_rows = jnp.asarray(batch.example), jnp.asarray(batch.partner)
    assert images is not None
    lam, mask = None, None
    if config.mixup.kind != "none":
        lam, keys = _draw_lam(batch, seed, step, config)
        if config.mixup.method == "cutmix":
            mask = augment.box_mask(keys, lam, images.shape[1:3])
            lam = jnp.mean(mask, axis=(1, 2))

    def view(stream: int) -> jax.Array:
        key = augment.stream_key(seed, step, stream)
        example = _augment(images, rows, batch.position, key, config)
        if lam is None:
            return example
        partner = _augment(images, partner_rows, batch.partner_position, key, config)
        if mask is not None:
            return jnp.where(mask[..., None], example, partner)
        return augment.mix(example, partner, lam)

    student = view(augment.STREAM_CROP_FLIP)
    teacher: jax.Array | None = student
    if config.distill.view == "independent":
        teacher = view(augment.STREAM_TEACHER_CROP_FLIP)
    elif config.distill.view == "fixed":
        teacher = None
    return Views(student, teacher, jnp.ones(len(student)) if lam is None else lam)


def _augment(
    images: jax.Array, indices: Array, positions: Array, key: jax.Array, config: ConfigDict
) -> jax.Array:
    """Return the augmented pixels of the examples at `indices`, float32 `[n, H, W, C]`."""
    options, keys = config.augment, augment.position_keys(key, positions)
    if options.crop_area < 1:
        pixels = augment.resized_crop(
            images, indices, keys, crop_area=options.crop_area, flip=options.flip
        )
    else:
        pixels = augment.crop_and_flip(
            images, indices, keys, crop_pad_px=options.crop_pad_px, flip=options.flip
        )
    return augment.to_pixels(pixels)


def _draw_lam(
    batch: Batch, seed: jax.Array, step: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Return lambda of each example, float32 `[n]`, and a key for the box of CutMix, `[n]`."""
    key = augment.stream_key(seed, step, augment.STREAM_LAMBDA)
    options = config.mixup
    if options.kind == "batch":
        keys = jnp.broadcast_to(key, batch.position.shape)
    elif options.kind == "group":
        groups = batch.position // (config.batch_size // options.groups)
        keys = augment.position_keys(key, groups)
    else:
        keys = augment.position_keys(key, batch.position)
    pairs = jax.vmap(jax.random.split)(keys)
    return jax.vmap(lambda k: augment.draw_lam(k, options.alpha))(pairs[:, 0]), pairs[:, 1]
