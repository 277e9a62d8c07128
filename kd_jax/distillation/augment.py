"""Crop, flip, mixup and CutMix, as pure functions of pixels and keys.

Random keys depend on an example's position in the global batch and not on the device that holds
it, so any number of devices makes the same views.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.data.sampler import Array

# Streams of random numbers of one step. Add new ones at the end: a run is reproducible only while
# the numbers stay.
STREAM_CROP_FLIP, STREAM_LAMBDA, STREAM_DROPOUT, STREAM_TEACHER_CROP_FLIP = range(4)


def stream_key(seed: jax.Array, step: jax.Array, stream: int) -> jax.Array:
    """Return the key of one stream of random numbers at one step, a function of its arguments."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stream)


def position_keys(key: jax.Array, positions: Array) -> jax.Array:
    """Return a key for each example, from its position in the global batch.

    Args:
      key: a stream's key.
      positions: int32 `[n]`, positions in the global batch.

    Returns:
      keys `[n]`.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def crop_and_flip(
    images: jax.Array,
    indices: Array,
    keys: jax.Array,
    *,
    crop_pad_px: int,
    flip: bool,
) -> jax.Array:
    """Gather examples, crop each from its zero-padded image, and mirror some of them.

    All three are one gather of rows and columns: no padded copy is made.

    Args:
      images: uint8 `[N, H, W, C]`, the whole set.
      indices: int32 `[n]` into `images`.
      keys: keys `[n]`.
      crop_pad_px: the crop's origin is uniform over `[-crop_pad_px, crop_pad_px]` in both
        directions; pixels outside the image are black. 0: no crop.
      flip: mirror left to right with probability 1/2.

    Returns:
      uint8 `[n, H, W, C]`.
    """
    if crop_pad_px == 0 and not flip:
        return images[indices]
    height, width = images.shape[1:3]

    def origin_and_mirror(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_crop, key_flip = jax.random.split(key)
        origin = jax.random.randint(key_crop, (2,), -crop_pad_px, crop_pad_px + 1)
        return origin, jax.random.bernoulli(key_flip) & flip

    origin, mirror = jax.vmap(origin_and_mirror)(keys)
    rows = origin[:, :1] + jnp.arange(height)
    columns = origin[:, 1:] + jnp.arange(width)
    columns = jnp.where(mirror[:, None], columns[:, ::-1], columns)
    row_inside = (rows >= 0) & (rows < height)
    column_inside = (columns >= 0) & (columns < width)
    pixels = images[
        indices[:, None, None],
        jnp.clip(rows, 0, height - 1)[:, :, None],
        jnp.clip(columns, 0, width - 1)[:, None, :],
    ]
    inside = row_inside[:, :, None] & column_inside[:, None, :]
    return jnp.where(inside[..., None], pixels, 0)


# Smallest width over height of a random crop, relative to the image's; the largest is its inverse.
_LEAST_ASPECT = 3 / 4


def resized_crop(
    images: jax.Array, indices: Array, keys: jax.Array, *, crop_area: float, flip: bool
) -> jax.Array:
    """Gather examples, scale a random part of each to the image's size, and mirror some of them.

    Args:
      images: uint8 `[N, H, W, C]`, the whole set.
      indices: int32 `[n]` into `images`.
      keys: keys `[n]`.
      crop_area: the area of the part, relative to the image's, is uniform over `[crop_area, 1]`.
        Its aspect ratio, relative to the image's, is log-uniform over [3/4, 4/3]. A side that would
        be longer than the image's is cut to it.
      flip: mirror left to right with probability 1/2.

    Returns:
      float32 `[n, H, W, C]` of the same range as the images, interpolated linearly.

    Source: Szegedy et al. 2014, section 6. At its border, pixels just outside the part contribute
    to the interpolation. Implementations that crop before they scale differ there.
    """
    size = images.shape[1:3]

    def crop(image: jax.Array, key: jax.Array) -> jax.Array:
        key_crop, key_flip = jax.random.split(key)
        area, aspect, *place = jax.random.uniform(key_crop, (4,))
        area = crop_area + (1.0 - crop_area) * area
        aspect = _LEAST_ASPECT ** (1.0 - 2.0 * aspect)
        sides = jnp.minimum(jnp.sqrt(area * jnp.stack([1.0 / aspect, aspect])), 1.0)
        origin = (1.0 - sides) * jnp.stack(place) * jnp.array(size)
        scaled = jax.image.scale_and_translate(
            image.astype(jnp.float32),
            image.shape,
            (0, 1),
            1.0 / sides,
            -origin / sides,
            "linear",
            antialias=False,
        )
        return jnp.where(jax.random.bernoulli(key_flip) & flip, scaled[:, ::-1], scaled)

    return jax.vmap(crop)(images[indices], keys)


def to_pixels(images: jax.Array) -> jax.Array:
    """Return uint8 images as float32 pixels in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def mix(first: jax.Array, second: jax.Array, lam: jax.Array) -> jax.Array:
    """Return `lam * first + (1 - lam) * second`; `lam` is a scalar, or `[n]` for `n` examples.

    Source: Zhang et al. 2018 (mixup).
    """
    lam = lam.reshape(lam.shape + (1,) * (first.ndim - lam.ndim)) if lam.ndim else lam
    return lam * first + (1.0 - lam) * second


def draw_lam(key: jax.Array, alpha: float) -> jax.Array:
    """Draw lambda, the weight of an example in its mixture, from Beta(alpha, alpha)."""
    if alpha == 1.0:
        return jax.random.uniform(key)
    return jax.random.beta(key, alpha, alpha)


def box_mask(keys: jax.Array, lam: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return the pixels that show the example itself, bool `[n, H, W]`: outside a box, for CutMix.

    The box has the aspect ratio of the image and `1 - lam` of its area. Its centre is uniform over
    the image, and it is cut off at the border: so the true weight of the example is the mean of the
    mask.

    Args:
      keys: keys `[n]`, from which nothing else is drawn.
      lam: float32 `[n]`.
      size: `(H, W)`.

    Source: Yun et al. 2019, section 3.1.
    """

    def inside(key: jax.Array, lam: jax.Array) -> jax.Array:
        centre = jax.random.uniform(key, (2,))
        spans = []
        for axis, length in enumerate(size):
            half = jnp.sqrt(1.0 - lam) * length / 2
            low = jnp.round(centre[axis] * length - half)
            high = jnp.round(centre[axis] * length + half)
            line = jnp.arange(length)
            spans.append((line >= low) & (line < high))
        return spans[0][:, None] & spans[1][None, :]

    return ~jax.vmap(inside)(keys, lam)
