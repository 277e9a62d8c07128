"""Views: what crop, flip and mixup do, and that no device count can change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.config import default_config
from kd_jax.data import sampler, splits
from kd_jax.distillation import augment, views

IMAGES = np.random.default_rng(0).integers(1, 256, (50, 8, 8, 3), np.uint8)


def view(step=0, batch_size=16, **options):
    config = default_config()
    config.update_from_flattened_dict(options)
    config.batch_size = batch_size
    batch = sampler.batch_at(step, batch_size, len(IMAGES), 0, config.mixup.partner)

    def make(part):
        made = views.make(jnp.asarray(IMAGES), part, 7, step, config)
        return made.student, made.lam

    return jax.jit(make), batch


PLAIN = {"mixup.kind": "none", "augment.crop_pad_px": 0, "augment.flip": False}


def test_without_augmentation_pixels_are_the_images():
    make, batch = view(**PLAIN)
    pixels, lam = make(batch)
    np.testing.assert_allclose(pixels, IMAGES[batch.example] / 255.0, rtol=1e-6)
    assert (lam == 1).all()


def test_crop_and_flip_equal_padding_and_cutting():
    keys = jax.random.split(jax.random.key(3), 50)
    ours = augment.crop_and_flip(
        jnp.asarray(IMAGES), jnp.arange(50), keys, crop_pad_px=2, flip=True
    )
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, candidates in zip(np.asarray(ours), padded, strict=True):
        cuts = {
            (row, column, flip): candidates[row : row + 8, column : column + 8][:, ::flip]
            for row in range(5)
            for column in range(5)
            for flip in (1, -1)
        }
        matches = [where for where, cut in cuts.items() if np.array_equal(image, cut)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {1, -1}


def test_a_resized_crop_is_a_part_of_the_image_scaled_linearly():
    """Told from an image that holds its own rows and columns, and noise."""
    size, count, least = 32, 400, 0.3
    ramp = np.broadcast_to(8 * np.arange(size), (size, size))
    noise = np.random.default_rng(0).integers(0, 256, (size, size))
    image = np.stack([ramp.T, ramp, noise], axis=-1).astype(np.uint8)[None]
    keys = jax.random.split(jax.random.key(5), count)
    indices = jnp.zeros(count, jnp.int32)
    crop = jax.jit(lambda *args: augment.resized_crop(*args, crop_area=least, flip=True))
    got = np.asarray(crop(jnp.asarray(image), indices, keys))
    middle = slice(4, -4)  # where no pixel outside of the image is asked for
    rows, columns = got[:, middle, 9, 0] / 8, got[:, 9, middle, 1] / 8
    steps = [np.diff(line, axis=1).mean(1) for line in (rows, columns)]
    mirrored = steps[1] < 0
    assert 0.4 < mirrored.mean() < 0.6
    sides = np.abs(steps)  # pixels of the image to one of the crop
    firsts = np.stack([rows[:, 0], np.where(mirrored, columns[:, -1], columns[:, 0])])
    origins = firsts + 0.5 - 4.5 * sides
    assert (origins > -1e-3).all()
    assert (origins + size * sides < size + 1e-3).all()
    for origin, side in zip(origins, sides, strict=True):
        free = side < 0.9
        place = origin[free] / (size * (1 - side[free]))
        assert place.min() < 0.02
        assert place.max() > 0.98
        assert place.mean() == pytest.approx(0.5, abs=0.05)
    area, aspect = sides[0] * sides[1], sides[1] / sides[0]
    assert least - 1e-3 < area.min() < least + 0.05
    assert area.max() <= 1 + 1e-5
    assert 3 / 4 - 1e-3 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 4 / 3 + 1e-3
    for i in range(0, count, 40):
        lines = []
        for axis in (0, 1):
            place = origins[axis, i] + (np.arange(size)[middle] + 0.5) * sides[axis, i] - 0.5
            low = np.floor(place).astype(int)
            lines.append((low, np.minimum(low + 1, size - 1), place - low))
        (top, bottom, down), (left, right, across) = lines
        above = noise[top][:, left] * (1 - across) + noise[top][:, right] * across
        below = noise[bottom][:, left] * (1 - across) + noise[bottom][:, right] * across
        expected = above * (1 - down)[:, None] + below * down[:, None]
        ours = got[i, middle, :, 2][:, ::-1] if mirrored[i] else got[i, middle, :, 2]
        np.testing.assert_allclose(ours[:, middle], expected, atol=0.1)


SPLIT = {
    "none": {"mixup.kind": "none"},
    "batch": {},
    "example": {"mixup.kind": "example", "mixup.alpha": 0.3, "mixup.partner": "permutation"},
    "group": {"mixup.kind": "group", "mixup.groups": 8, "mixup.partner": "uniform"},
    "cutmix": {"mixup.method": "cutmix", "mixup.kind": "example"},
    "resized": {"augment.crop_pad_px": 0, "augment.crop_area": 0.2},
}


@pytest.mark.parametrize("options", SPLIT.values(), ids=SPLIT)
def test_a_view_does_not_depend_on_how_the_batch_is_split(options):
    make, batch = view(**options)
    whole, lam = make(batch)
    for parts in (2, 4):
        pieces = [
            make(sampler.Batch(*(np.split(field, parts)[i] for field in batch)))
            for i in range(parts)
        ]
        np.testing.assert_array_equal(whole, np.concatenate([pixels for pixels, _ in pieces]))
        np.testing.assert_array_equal(lam, np.concatenate([lam for _, lam in pieces]))


@pytest.mark.parametrize("kind", ["batch", "example"])
def test_mixup_is_a_line_between_an_example_and_its_neighbour(kind):
    make, batch = view(**(PLAIN | {"mixup.kind": kind}))
    pixels, lam = make(batch)
    own, partner = IMAGES[batch.example] / 255.0, IMAGES[np.roll(batch.example, -1)] / 255.0
    lam = np.asarray(lam)[:, None, None, None]
    np.testing.assert_allclose(pixels, lam * own + (1 - lam) * partner, rtol=1e-5, atol=1e-6)
    assert len(np.unique(lam)) == (1 if kind == "batch" else 16)


def test_the_partner_is_augmented_as_it_is_for_itself():
    """At lambda 0 and 1 the mixed image is one of the unmixed views, crop and flip included."""
    make, batch = view(**{"mixup.kind": "none"})
    unmixed, _ = make(batch)
    mixing, _ = view(**{"mixup.kind": "example"})
    mixed, lam = mixing(batch)
    lam = np.asarray(lam)[:, None, None, None]
    expected = lam * unmixed + (1 - lam) * np.roll(unmixed, -1, axis=0)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)


def test_lambda_is_uniform_and_new_at_every_step():
    config = default_config()
    keys = jax.vmap(lambda step: augment.stream_key(3, step, augment.STREAM_LAMBDA))
    lam = np.asarray(jax.vmap(jax.random.uniform)(keys(jnp.arange(4000))))
    assert config.mixup.kind == "batch"
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(1 / 12, abs=0.005)
    assert abs(np.corrcoef(lam[:-1], lam[1:])[0, 1]) < 0.05
    assert len(np.unique(lam)) > 3990  # float32 has 2^23 steps: few may meet by chance


def test_streams_steps_and_seeds_are_independent():
    draws = {
        float(jax.random.uniform(augment.stream_key(seed, step, stream)))
        for seed in range(3)
        for step in range(3)
        for stream in range(4)
    }
    assert len(draws) == 36


@pytest.mark.parametrize("kind", ["batch", "group", "example"])
def test_a_box_is_drawn_from_a_key_that_nothing_else_was_drawn_from(kind, monkeypatch):
    """Lambda splits its key, unless alpha is 1: `fold_in(key, 1)` is one of the halves."""
    config = default_config()
    config.batch_size = 16
    config.update_from_flattened_dict({"mixup.kind": kind, "mixup.method": "cutmix"})
    config.mixup.groups = 4 if kind == "group" else 1
    monkeypatch.setattr(augment, "draw_lam", lambda key, alpha: jax.random.key_data(key))
    used, boxes = views._draw_lam(sampler.batch_at(0, 16, 50, 0), 7, 0, config)
    halves = jax.vmap(jax.random.split)(jax.random.wrap_key_data(used))
    drawn_from, for_boxes = (
        {tuple(data) for data in np.asarray(each).reshape(-1, 2).tolist()}
        for each in (
            np.concatenate([used, jax.random.key_data(halves).reshape(-1, 2)]),
            jax.random.key_data(boxes),
        )
    )
    distinct = {"batch": 1, "group": 4, "example": 16}[kind]
    assert len(for_boxes) == distinct
    assert len(drawn_from) == 3 * distinct
    assert not for_boxes & drawn_from
    one = jax.random.key(3)  # what made a key of its own out of a key that is split
    assert jax.random.fold_in(one, 1) == jax.random.split(one)[1]


def test_the_hold_out_and_the_order_of_examples_are_drawn_apart():
    """NumPy's seeds 0 and (0, 0) are one stream: the hold-out was the first epoch's beginning."""
    assert np.random.default_rng(0).random() == np.random.default_rng([0, 0]).random()
    count = 1000
    held_out = np.random.default_rng(0).permutation(count)  # `dataset`, of the default split_seed
    first_epoch = sampler.examples_at(0, count, count, seed=0)
    assert (held_out == first_epoch).mean() < 0.02
    labels = np.zeros(count, int)
    chosen = splits.stratified_indices(labels, count // 10, 0)
    assert len(set(chosen) & set(first_epoch[: count // 10])) < 30


def test_every_example_is_seen_once_an_epoch():
    size, count = 7, 50
    line = np.concatenate([sampler.examples_at(step, size, count, seed=1) for step in range(30)])
    for epoch in range(4):
        part = line[epoch * count : (epoch + 1) * count]
        np.testing.assert_array_equal(np.sort(part), np.arange(count))
    assert not np.array_equal(line[:count], line[count : 2 * count])


def test_a_batch_may_be_larger_than_the_set():
    batch = sampler.batch_at(2, 128, 50, seed=0)
    assert np.bincount(batch.example, minlength=50).min() >= 2


def test_partners_are_neighbours_and_pairs_do_not_repeat():
    batch = sampler.batch_at(0, 16, 50, seed=0)
    pairs = {frozenset(pair) for pair in zip(batch.example, batch.partner, strict=True)}
    assert len(pairs) == 16
    np.testing.assert_array_equal(batch.partner_position, (np.arange(16) + 1) % 16)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 4), (0.25, 1), (2, 8), (3, 12), (1.01, 5)])
def test_steps_in_epochs(epochs, expected):
    assert sampler.steps_in(epochs, 25, 100) == expected


def lams(batch_size=4000, **options):
    config = default_config()
    config.batch_size = batch_size
    config.update_from_flattened_dict({"mixup.kind": "example"} | PLAIN_AUGMENT | options)
    batch = sampler.batch_at(0, batch_size, len(IMAGES), 0, config.mixup.partner)
    return np.asarray(views.make(jnp.asarray(IMAGES), batch, 7, 0, config).lam)


PLAIN_AUGMENT = {"augment.crop_pad_px": 0, "augment.flip": False}


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_lambda_has_the_moments_of_its_beta_distribution(alpha):
    lam = lams(**{"mixup.alpha": alpha})
    assert (lam >= 0).all()
    assert (lam <= 1).all()
    assert lam.mean() == pytest.approx(0.5, abs=0.03)
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_groups_share_a_lambda_and_differ():
    lam = lams(64, **{"mixup.kind": "group", "mixup.groups": 8})
    groups = lam.reshape(8, 8)
    assert (groups == groups[:, :1]).all()
    assert len(np.unique(lam)) == 8


def test_a_permuted_partner_is_anyone_of_the_batch():
    pairs = np.zeros((16, 16))
    for step in range(2000):
        batch = sampler.batch_at(step, 16, 50, 0, "permutation")
        np.testing.assert_array_equal(np.sort(batch.partner_position), np.arange(16))
        np.testing.assert_array_equal(batch.partner, batch.example[batch.partner_position])
        pairs[batch.position, batch.partner_position] += 1
    np.testing.assert_allclose(pairs / 2000, 1 / 16, atol=0.03)


def test_a_uniform_partner_is_anyone_of_the_training_set():
    drawn = [sampler.batch_at(step, 16, 50, 0, "uniform") for step in range(2000)]
    counts = np.bincount(np.concatenate([batch.partner for batch in drawn]), minlength=50)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 50, rtol=0.2)
    assert all((batch.partner_position >= 16).all() for batch in drawn)
    again = sampler.batch_at(7, 16, 50, 0, "uniform")
    np.testing.assert_array_equal(again.partner, drawn[7].partner)


def test_cutmix_pastes_one_box_and_tells_its_share():
    make, batch = view(**(PLAIN | {"mixup.kind": "example", "mixup.method": "cutmix"}))
    pixels, lams_of_batch = make(batch)
    own, partner = IMAGES[batch.example] / 255.0, IMAGES[batch.partner] / 255.0
    for mixed, mine, other, lam in zip(
        np.asarray(pixels), own, partner, lams_of_batch, strict=True
    ):
        from_own = np.isclose(mixed, mine, atol=1e-6).all(-1)
        assert np.isclose(mixed, other, atol=1e-6).all(-1)[~from_own].all()
        assert from_own.mean() == pytest.approx(float(lam), abs=1e-6)
        rows, columns = np.flatnonzero(~from_own.all(1)), np.flatnonzero(~from_own.all(0))
        assert (~from_own).sum() == len(rows) * len(columns)
    many = lams(**{"mixup.method": "cutmix"})
    # A box that is cut off at the border is smaller than its lambda says.
    assert 0.55 < many.mean() < 0.75
    assert many.min() < 0.1
    assert many.max() == 1.0


def both_views(**options):
    config = default_config()
    config.batch_size = 16
    config.update_from_flattened_dict(options)
    batch = sampler.batch_at(0, 16, len(IMAGES), 0)
    return views.make(jnp.asarray(IMAGES), batch, 7, 0, config)


@pytest.mark.parametrize("kind", ["none", "batch"])
def test_same_is_one_array_and_independent_are_two(kind):
    same = both_views(**{"mixup.kind": kind})
    assert same.teacher is same.student
    apart = both_views(**{"mixup.kind": kind, "distill.view": "independent"})
    np.testing.assert_array_equal(apart.student, same.student)
    differ = (np.asarray(apart.student) != np.asarray(apart.teacher)).any((1, 2, 3))
    assert differ.mean() > 0.8
    still = both_views(**{"mixup.kind": kind, "distill.view": "independent", **PLAIN_AUGMENT})
    np.testing.assert_array_equal(still.student, still.teacher)


def test_fixed_leaves_the_teacher_to_its_logits():
    fixed = both_views(**{"mixup.kind": "none", "distill.view": "fixed"})
    assert fixed.teacher is None
