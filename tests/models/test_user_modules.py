"""Any module of the user's own as a student: called rightly, synchronised, or refused by name."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn import datasets

from kd_jax import models
from kd_jax.data import sampler
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.models import norm, user_module
from kd_jax.runtime.devices import AXIS, pmap, shard
from kd_jax.runtime.errors import UserError
from kd_jax.training import student_setup
from tiny_runs import Tiny, small_config

SHAPE = (8, 8, 3)


def digits():
    """Return handwritten digits as colour images, and their labels."""
    loaded = datasets.load_digits()
    images = np.uint8(np.minimum(255, loaded.images[:512] * 16))[..., None].repeat(3, axis=-1)
    return images, loaded.target[:512].astype(np.int32)


IMAGES, LABELS = digits()


def wrap(module, **options):
    given = {"num_classes": 10, "mean": (0.5,) * 3, "std": (0.25,) * 3, "image_shape": SHAPE}
    return user_module.wrap(module, **(given | {"axis_name": AXIS} | options))


def losses_of(student, num_devices, num_steps=20, **options):
    """Train on the digits by the project's step; return the losses and the last state."""
    config = small_config(**{
        "distill.label_weight": 1.0, "mixup.kind": "none", "augment.flip": False,
        "augment.crop_pad_px": 0, **options,
    })  # fmt: skip
    config.batch_norm.sync = getattr(student, "axis_name", AXIS) is not None
    devices = jax.devices()[:num_devices]
    optimizer = optax.adam(0.01)
    state = state_lib.init_state(config, student.init(3, SHAPE), optimizer)
    step = step_lib.make_train_step(config, student, None, optimizer)
    train_step = pmap(step, devices, (False, False, True))
    losses = []
    for i in range(num_steps):
        batch = shard(sampler.batch_at(i, 32, len(IMAGES), seed=3), devices, config.accumulate)
        state, metrics = train_step(state, state_lib.Constants(IMAGES, LABELS), batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(state)


class Plain(nn.Module):
    """What anybody writes: the norm has no axis, the head is as wide as it is told."""

    classes: int = 10
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train: bool):
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), strides=2, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
            x = nn.relu(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class WithOurNorm(nn.Module):
    """The same with the norm of kd_jax, as a module of the zoo has it."""

    num_classes: int = 10
    axis_name: str | None = None
    batch_norm_momentum: float = 0.9

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        make = norm.batch_norm(train, self.axis_name, None)
        for i, features in enumerate((8, 16)):
            x = nn.Conv(features, (3, 3), strides=2, use_bias=False)(x)
            x = make(name=f"BatchNorm_{i}", activation="relu")(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


# The training switch


class Switched(nn.Module):
    """Answers with what it was told: 1 in train mode and 0 in eval mode."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.mean((1, 2))) * 0 + self.told()

    def told(self):
        return 0.0


class Train(Switched):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10)(x.mean((1, 2))) * 0 + float(train)


class Training(Switched):
    @nn.compact
    def __call__(self, x, *, training=False):
        return nn.Dense(10)(x.mean((1, 2))) * 0 + float(training)


class IsTraining(Switched):
    @nn.compact
    def __call__(self, x, is_training: bool = True):
        return nn.Dense(10)(x.mean((1, 2))) * 0 + float(is_training)


class Deterministic(Switched):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dense(10)(x.mean((1, 2))) * 0 + float(not deterministic)


class UseRunningAverage(Switched):
    @nn.compact
    def __call__(self, x, *, use_running_average):
        return nn.Dense(10)(x.mean((1, 2))) * 0 + float(not use_running_average)


class Field(Switched):
    training: bool = False

    def told(self):
        return float(self.training)


@pytest.mark.parametrize(
    "module", [Train, Training, IsTraining, Deterministic, UseRunningAverage, Field]
)
def test_the_training_switch_is_found_by_its_name(module):
    student = wrap(module(), axis_name=None)
    variables = student.init(0, SHAPE)
    pixels = np.zeros((2, *SHAPE), np.float32)
    assert (student.logits(variables, pixels) == 0).all()
    assert (student.train_logits(variables, pixels, None)[0] == 1).all()
    assert student.arch == f"python:{module.__name__}"
    assert wrap(module(), axis_name=None, name="mine").arch == "python:mine"


def test_a_sequence_of_layers_is_a_module():
    flat = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(16), nn.relu, nn.Dense(10)])
    losses, _ = losses_of(wrap(flat), 1)
    assert losses[-1] < 0.8 * losses[0]


# Batch norm


@pytest.fixture(scope="module")
def of_plain():
    """Losses and last states of the plain module by the number of devices."""
    return {n: losses_of(wrap(Plain()), n) for n in (1, 2, 4)}


def test_a_plain_batch_norm_trains_as_the_norm_of_kd_jax_on_any_number_of_devices(of_plain):
    ours = wrap(WithOurNorm())
    for devices, (losses, state) in of_plain.items():
        expected, expected_state = losses_of(ours, devices)
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        assert losses[-1] < 0.8 * losses[0]
        jax.tree.map(  # running averages too: the momentum is reached gradually by both
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            state.batch_stats,
            expected_state.batch_stats,
        )
        np.testing.assert_allclose(losses, of_plain[1][0], rtol=1e-4)
    assert not wrap(Plain()).is_changed_by_devices
    assert wrap(Plain(), axis_name=None).is_changed_by_devices


def test_without_synchronisation_the_devices_matter(of_plain):
    """So the equality above is no accident."""
    alone, _ = losses_of(wrap(Plain(), axis_name=None), 2)
    assert np.abs(alone / of_plain[1][0] - 1).max() > 1e-3


def test_parts_of_a_batch_are_normalised_over_the_devices():
    one, two = (losses_of(wrap(Plain()), n, 5, accumulate=2)[0] for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-4)


def test_a_norm_with_flaxs_momentum_can_be_evaluated_after_a_short_run():
    """At 0.99 from the start, twenty steps leave four fifths of the initial statistics."""
    student = wrap(Plain(momentum=0.99))
    _, state = losses_of(student, 1, 40)
    logits = jax.jit(student.logits)(state.variables, np.float32(IMAGES / 255))
    assert (np.argmax(logits, -1) == LABELS).mean() > 0.7


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        # No bias before a norm: its gradient is rounding noise, which Adam makes steps of.
        y = nn.Dense(8, use_bias=False)(x)
        y = nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(y)
        return x + nn.relu(y)


class Lifted(nn.Module):
    """Blocks inside one of Linen's transformations."""

    how: str

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        if self.how == "remat":
            x = nn.remat(Block)(train)(x)
        elif self.how == "jit":
            x = nn.jit(Block)(train)(x)
        elif self.how == "twice":
            block = Block(train)
            x = block(block(x))
        else:
            kept = {"params": 0, "batch_stats": 0}
            split = {"params": True}
            if self.how == "vmap":
                block = nn.vmap(Block, in_axes=None, variable_axes=kept, split_rngs=split,
                                axis_size=2)(train)  # fmt: skip
                x = block(x).sum(0)
            else:
                block = nn.scan(lambda block, x, _: (block(x), None), variable_axes=kept,
                                split_rngs=split, length=2)  # fmt: skip
                x, _ = block(Block(train), x, None)
        return nn.Dense(10)(x)


@pytest.mark.parametrize("how", ["remat", "jit", "twice", "vmap", "scan"])
def test_norms_inside_transformations_are_synchronised(how):
    student = wrap(Lifted(how))
    # Transformations that split random numbers count as drawing some, whether or not they do.
    splits = how in ("jit", "vmap", "scan")
    assert (student.is_changed_by_devices, student.has_dropout) == (splits, splits)
    (one, first), (two, second) = (losses_of(student, n, 6) for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        first.batch_stats,
        second.batch_stats,
    )


class OfEachExample(nn.Module):
    """Norms that know no batch."""

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(nn.LayerNorm()(nn.relu(x).mean((1, 2))))


class Counting(nn.Module):
    """Averages something by itself, which nobody can synchronise."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.mean((1, 2))
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        if train:
            mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
        return nn.Dense(10)(x - mean.value)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        x = nn.BatchNorm(not train, name="bn")(x, mask=x > 0)
        return nn.Dense(10)(x)


@pytest.mark.parametrize(
    ("module", "changed"), [(OfEachExample, False), (Counting, True), (Masked, True)]
)
def test_it_is_known_whether_the_number_of_devices_matters(module, changed):
    student = wrap(module())
    assert student.is_changed_by_devices == changed
    (one, first), (two, second) = (losses_of(student, n, 4) for n in (1, 2))
    if module is not Masked:  # averages of equal parts are those of the whole
        np.testing.assert_allclose(one, two, rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            first.batch_stats,
            second.batch_stats,
        )


def test_a_frozen_batch_norm_keeps_its_statistics_and_uses_them():
    student = wrap(Plain())
    kept = student_setup.frozen_norms("BatchNorm_0", student, SHAPE)
    assert kept == {"BatchNorm_0"}
    student = dataclasses.replace(student, kept_norms=kept)
    models.check_norms(student, SHAPE, 2)
    variables = student.init(0, SHAPE)
    pixels = np.random.default_rng(0).random((8, *SHAPE), np.float32)
    variables["batch_stats"]["BatchNorm_0"]["mean"] += 3.0
    logits, statistics = dataclasses.replace(student, axis_name=None).train_logits(
        variables, pixels, None
    )
    after = student.average_statistics(variables["batch_stats"], statistics, 0)
    np.testing.assert_array_equal(after["BatchNorm_0"]["mean"], 3.0)
    assert not np.array_equal(
        after["BatchNorm_1"]["mean"], variables["batch_stats"]["BatchNorm_1"]["mean"]
    )
    variables["batch_stats"]["BatchNorm_0"]["mean"] -= 3.0
    other, _ = dataclasses.replace(student, axis_name=None).train_logits(variables, pixels, None)
    assert not np.allclose(logits, other)


# First values


class Drawing(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), kernel_init=nn.initializers.constant(0.25))(x)
        x = x + self.param("embedding", nn.initializers.normal(0.02), x.shape[1:])
        return nn.Dense(10)(x.mean((1, 2)))


def test_a_module_draws_its_first_values_itself():
    student = wrap(Drawing())
    ours = student.init(7, SHAPE)
    plain = jax.jit(Drawing().init, static_argnums=2)(
        jax.random.key(7), jnp.zeros((1, *SHAPE)), False
    )
    jax.tree.map(np.testing.assert_array_equal, ours["params"], dict(plain["params"]))
    assert ours["batch_stats"] == {}
    assert not np.array_equal(student.init(8, SHAPE)["params"]["embedding"],
                              ours["params"]["embedding"])  # fmt: skip
    assert all(leaf.flags.writeable for leaf in jax.tree.leaves(ours))


def test_a_network_of_the_zoo_is_the_same_as_a_module():
    """Its drawn first values, its dropout by example, its compiled norms."""
    zoo = models.Network("tiny", Tiny(axis_name=AXIS, dropout_rate=0.3), (0.5,) * 3, (0.25,) * 3)
    student = wrap(Tiny(dropout_rate=0.3))
    jax.tree.map(np.testing.assert_array_equal, student.init(3, SHAPE), zoo.init(3, SHAPE))
    assert student.has_dropout
    assert not student.is_changed_by_devices
    assert not wrap(Tiny()).has_dropout
    expected, _ = losses_of(zoo, 1, 5)
    for devices in (1, 2):
        np.testing.assert_allclose(losses_of(student, devices, 5)[0], expected, rtol=1e-4)


def test_costs_are_counted():
    student = wrap(Plain())
    assert models.count_params(student, SHAPE) == 27 * 8 + 72 * 16 + 2 * 8 + 2 * 16 + 170
    assert models.count_madds(student, SHAPE) == 16 * 27 * 8 + 4 * 72 * 16 + 160
    assert ("params", "Dense_0", "bias") in models.flat_shapes(student, SHAPE)
    assert student.num_classes == 10


# Dropout


class Dropping(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.Dense(32)(x.reshape(len(x), -1))
        x = nn.Dropout(self.rate, deterministic=deterministic)(nn.relu(x))
        return nn.Dense(10)(x)


class AnotherStream(nn.Module):
    """Drops whole examples by a stream that nobody knows."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(10)(x.reshape(len(x), -1))
        if train:
            x *= jax.random.bernoulli(self.make_rng("drop_path"), 0.5, (len(x), 1))
        return x


class OptionalStream(nn.Module):
    """Draws only when it is given a stream."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(10)(x.reshape(len(x), -1))
        if train and self.has_rng("dropout"):
            x *= jax.random.bernoulli(self.make_rng("dropout"), 0.5, (len(x), 1))
        return x


@pytest.mark.parametrize("module", [Dropping, AnotherStream, OptionalStream])
def test_dropout_is_drawn_anew_at_each_step_and_on_each_device(module):
    student = wrap(module(), axis_name=None)
    assert student.has_dropout
    assert student.is_changed_by_devices
    assert not wrap(Dropping(rate=0.0)).has_dropout
    variables = student.init(0, SHAPE)
    pixels = np.ones((32, *SHAPE), np.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    first, again, other = (
        student.train_logits(variables, pixels, part)[0]
        for part in (keys[:32], keys[:32], keys[32:])
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(
        student.logits(variables, pixels)[0], student.logits(variables, pixels)[1]
    )
    with pytest.raises(ValueError, match="draws random numbers in training and is given no keys"):
        student.train_logits(variables, pixels, None)
    losses, _ = losses_of(student, 2)
    assert np.isfinite(losses).all()
    assert losses[-3:].mean() < losses[0]


# NNX


class PlainNNX(nnx.Module):
    def __init__(self, rngs, rate=0.0, momentum=0.9):
        self.layers = nnx.List([
            nnx.Conv(3, 8, (3, 3), strides=2, use_bias=False, rngs=rngs),
            nnx.BatchNorm(8, momentum=momentum, rngs=rngs),
            nnx.Conv(8, 16, (3, 3), strides=2, use_bias=False, rngs=rngs),
            nnx.BatchNorm(16, momentum=momentum, rngs=rngs),
        ])  # fmt: skip
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        for i in (0, 2):
            x = nnx.relu(self.layers[i + 1](self.layers[i](x)))
        return self.head(self.dropout(x.mean((1, 2))))


class TellsItsNorm(nnx.Module):
    """A norm that is switched at each call, and an MLP around it."""

    def __init__(self, rngs):
        self.first = nnx.Linear(192, 16, rngs=rngs)
        self.bn = nnx.BatchNorm(16, rngs=rngs)
        self.last = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x, train: bool):
        x = self.bn(self.first(x.reshape(len(x), -1)), use_running_average=not train)
        return self.last(nnx.relu(x))


@pytest.fixture(scope="module")
def of_nnx():
    student = wrap(PlainNNX(nnx.Rngs(0)))
    return {n: losses_of(student, n) for n in (1, 2)}


def test_an_nnx_module_trains_the_same_on_any_number_of_devices(of_nnx):
    (one, first), (two, second) = of_nnx[1], of_nnx[2]
    np.testing.assert_allclose(one, two, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        first.batch_stats,
        second.batch_stats,
    )
    assert np.isfinite(one).all()
    assert one[-1] < 0.8 * one[0]
    student = wrap(PlainNNX(nnx.Rngs(0)))
    assert not student.has_dropout
    assert not student.is_changed_by_devices
    alone, _ = losses_of(wrap(PlainNNX(nnx.Rngs(0)), axis_name=None), 2)
    assert np.abs(alone / one - 1).max() > 1e-3


def test_an_nnx_module_trains_as_the_same_module_in_linen(of_nnx):
    student = wrap(Plain())
    state = of_nnx[1][1]
    assert set(state.params["layers"]) == {"0", "1", "2", "3"}

    class FromNNX:
        """The Linen module with the first values of the other."""

        def __getattr__(self, name):
            return getattr(student, name)

        def init(self, seed, image_shape):
            values = wrap(PlainNNX(nnx.Rngs(0))).init(seed, image_shape)["params"]
            layer, head = values["layers"], values["head"]
            names = {"Conv_0": "0", "BatchNorm_0": "1", "Conv_1": "2", "BatchNorm_1": "3"}
            params = {name: layer[number] for name, number in names.items()} | {"Dense_0": head}
            return {"params": params, "batch_stats": student.init(0, SHAPE)["batch_stats"]}

    losses, _ = losses_of(FromNNX(), 1)
    np.testing.assert_allclose(losses, of_nnx[1][0], rtol=1e-4)


def test_an_nnx_module_begins_with_its_values_and_is_not_changed():
    module = PlainNNX(nnx.Rngs(5))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    student = wrap(module)
    variables = student.init(3, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, variables, student.init(4, SHAPE))
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], module.head.kernel[...])
    assert set(variables["batch_stats"]["layers"]) == {"1", "3"}
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(variables))
    _, state = losses_of(student, 1, 3)
    after = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert module.layers[1].axis_name is None
    pixels = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    trained = student.with_variables(state.variables)
    np.testing.assert_allclose(
        trained(student.normalise(pixels)),
        student.logits(state.variables, pixels),
        rtol=1e-5,
        atol=1e-5,
    )
    assert models.count_params(student, SHAPE) == models.count_params(wrap(Plain()), SHAPE)
    assert models.count_madds(student, SHAPE) == models.count_madds(wrap(Plain()), SHAPE)


def test_dropout_of_an_nnx_module_comes_from_the_keys_of_the_step():
    student = wrap(PlainNNX(nnx.Rngs(0), rate=0.5), axis_name=None)
    assert student.has_dropout
    assert student.is_changed_by_devices
    variables = student.init(0, SHAPE)
    pixels = np.ones((4, *SHAPE), np.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    first, again, other = (
        student.train_logits(variables, pixels, part)[0] for part in (keys[:4], keys[:4], keys[4:])
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    losses, _ = losses_of(wrap(PlainNNX(nnx.Rngs(0), rate=0.2)), 2)
    assert np.isfinite(losses).all()
    assert losses[-3:].mean() < losses[0]


def test_an_nnx_norm_may_be_switched_at_each_call_but_then_not_frozen():
    student = wrap(TellsItsNorm(nnx.Rngs(0)))
    (one, _), (two, _) = (losses_of(student, n, 6) for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-4)
    frozen = dataclasses.replace(student, kept_norms=frozenset({"bn"}))
    with pytest.raises(UserError, match="freezes the norm bn of python:TellsItsNorm, which would"):
        models.check_norms(frozen, SHAPE, 1)
    free = dataclasses.replace(
        wrap(PlainNNX(nnx.Rngs(0)), axis_name=None), kept_norms=frozenset({"layers/1"})
    )
    models.check_norms(free, SHAPE, 1)
    pixels = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    _, statistics = free.train_logits(free.init(0, SHAPE), pixels, None)
    np.testing.assert_array_equal(statistics.running["layers"]["1"]["mean"], 0)
    assert np.any(statistics.running["layers"]["3"]["mean"] != 0)


class RngsInCall(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(192, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.head(self.dropout(x.reshape(len(x), -1), rngs=rngs))


def test_generators_may_be_an_argument():
    student = wrap(RngsInCall(nnx.Rngs(0)))
    assert student.has_dropout
    assert np.isfinite(losses_of(student, 2, 3)[0]).all()


# Refusals


def linen(body, name="Refused", **fields):
    """Return a Linen module with this body of `__call__`."""
    annotations = {key: type(value) for key, value in fields.items()}
    body.__name__ = "__call__"
    made = {"__call__": nn.compact(body), "__annotations__": annotations, **fields}
    return type(name, (nn.Module,), made)()


def head(x):
    return nn.Dense(10)(x.mean((1, 2)))


def counts(self, x):
    self.variable("counts", "images", jnp.zeros, ())
    return head(x)


def group(self, x, train=False):
    x = nn.BatchNorm(not train, axis_name="batch", axis_index_groups=[[0]], name="bn")(x)
    return head(x)


class Collides(nn.Module):
    """An axis of the module's own has the name of the devices' axis."""

    @nn.compact
    def __call__(self, x, train=False):
        block = nn.vmap(Block, in_axes=None, variable_axes={"params": 0, "batch_stats": 0},
                        split_rngs={"params": True}, axis_size=2, axis_name="batch")  # fmt: skip
        return head(block(train)(nn.Dense(8)(x)).sum(0))


def always(self, x, train=False):
    return head(nn.BatchNorm(use_running_average=False, name="bn")(x))


REFUSED = {
    r"__call__\(self\): expected the images as its first": lambda: linen(lambda self: 1),
    "takes mask in __call__ without a default": lambda: linen(lambda self, x, mask: head(x)),
    r"takes \*\*options in __call__, and whether a training switch": lambda: linen(
        lambda self, x, **options: head(x)
    ),
    "by the argument train and by the argument deterministic, and it is not clear": lambda: linen(
        lambda self, x, train, deterministic: head(x)
    ),
    "by the argument train and by the field training=False, and it": lambda: linen(
        lambda self, x, train: head(x), training=False
    ),
    "keeps variables in counts, which training would not carry on": lambda: linen(counts),
    "has params/Dense_0/bias in bfloat16: expected parameters": lambda: linen(
        lambda self, x: nn.Dense(10, param_dtype=jnp.bfloat16)(x.mean((1, 2)))
    ),
    r"returns the shape \[2, 12\] for 2 images in eval mode: expected .* \[n, 10\]": lambda: linen(
        lambda self, x: nn.Dense(12)(x.mean((1, 2)))
    ),
    r"returns a tuple of 2 in eval mode: expected one array": lambda: linen(
        lambda self, x: (head(x), x)
    ),
    r"returns a dict of features, logits in train mode": lambda: linen(
        lambda self, x, train=False: {"logits": head(x), "features": x} if train else head(x)
    ),
    "returns None in eval mode": lambda: linen(lambda self, x: None),
    "returns int32 in eval mode": lambda: linen(lambda self, x: head(x).astype(jnp.int32)),
    r"fails on images of the shape \(2, 8, 8, 3\) in train mode \(ZeroDivisionError: ": lambda: (
        linen(lambda self, x, train=False: head(x) / (1 // (not train)))
    ),
    "leaves nothing of an image of 8 x 8 pixels": lambda: linen(
        lambda self, x: nn.Dense(10)(nn.max_pool(x, (16, 16)).reshape(len(x), -1))
    ),
    "synchronises its norm bn over the axis 'data', which training does not have": lambda: linen(
        lambda self, x, train: head(nn.BatchNorm(not train, axis_name="data", name="bn")(x))
    ),
    "synchronises its norm bn over groups of devices": lambda: linen(group),
    "calls its norm VmapBlock_0/BatchNorm_0 inside an axis 'batch' of its own": Collides,
    r"leaves its norm bn in eval mode in training \(train does not reach it\)": lambda: linen(
        lambda self, x, train: head(nn.BatchNorm(use_running_average=True, name="bn")(x))
    ),
    r"leaves its norm bn in eval mode in training \(__call__ takes none of train": lambda: linen(
        lambda self, x: head(nn.BatchNorm(use_running_average=True, name="bn")(x))
    ),
    "changes its variables in eval mode": lambda: linen(always),
    "draws random numbers in eval mode": lambda: linen(
        lambda self, x: head(nn.Dropout(0.5, deterministic=False)(x))
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_a_linen_module_would_do_wrong_without_a_word_is_refused(says):
    module = REFUSED[says]()
    with pytest.raises(UserError, match=f"^python:{type(module).__name__} .*{says}") as caught:
        wrap(module)
    assert "\n" not in str(caught.value)


class Built(nnx.Module):
    """A linear head, and whatever else is given."""

    def __init__(self, call=None, dtype=jnp.float32, features=10, **parts):
        self.head = nnx.Linear(3, features, param_dtype=dtype, rngs=nnx.Rngs(0))
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = nnx.static(call)

    def __call__(self, x, train=False):
        x = self.head(x.mean((1, 2)))
        return x if self.call is None else self.call(self, x, train)


def own_axis():
    return nnx.BatchNorm(10, axis_name="data", rngs=nnx.Rngs(0))


REFUSED_NNX = {
    "keeps an nnx.Cache in cache, which training would not": lambda: Built(cache=nnx.Cache(1.0)),
    "keeps an array in raw, which training would not": lambda: Built(raw=jnp.ones(3)),
    "has params/head/bias in bfloat16": lambda: Built(dtype=jnp.bfloat16),
    r"returns the shape \[2, 7\] for 2 images": lambda: Built(features=7),
    "returns a tuple of 2 in train mode": lambda: Built(
        lambda self, x, train: (x, x) if train else x
    ),
    "synchronises its norm bn over the axis 'data'": lambda: Built(
        lambda self, x, train: self.bn(x), bn=own_axis()
    ),
    r"leaves its norm bn in eval mode in training \(train does not reach it\)": lambda: Built(
        lambda self, x, train: self.bn(x, use_running_average=True),
        bn=nnx.BatchNorm(10, rngs=nnx.Rngs(0)),
    ),
    "draws random numbers in eval mode": lambda: Built(
        lambda self, x, train: self.dropout(x, deterministic=False),
        dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
    ),
    r"fails on images of the shape \(2, 8, 8, 3\) in eval mode": lambda: Built(
        lambda self, x, train: x @ jnp.ones((3, 3))
    ),
}


@pytest.mark.parametrize("says", REFUSED_NNX)
def test_what_an_nnx_module_would_do_wrong_without_a_word_is_refused(says):
    with pytest.raises(UserError, match=f"^python:Built .*{says}") as caught:
        wrap(REFUSED_NNX[says]())
    assert "\n" not in str(caught.value)


class WithNormOfItsOwn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        class Louder(nn.BatchNorm):
            @nn.compact
            def __call__(self, x, use_running_average=None):
                return 2 * super().__call__(x, use_running_average)

        return head(Louder(name="bn")(x, use_running_average=not train))


def test_a_norm_with_a_call_of_its_own_is_no_known_norm():
    student = wrap(WithNormOfItsOwn())
    assert student.is_changed_by_devices
    frozen = dataclasses.replace(student, kept_norms=frozenset({"bn"}))
    with pytest.raises(UserError, match="freezes the norm bn of python:WithNormOfItsOwn"):
        models.check_norms(frozen, SHAPE, 1)


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (Plain, "Plain is a class: expected an instance of it, such as Plain(...)"),
        (PlainNNX, "PlainNNX is a class: expected an instance of it"),
        ("resnet8", "a str is no module: expected an instance of flax.linen.Module or of"),
        (head, "a function is no module"),
    ],
)
def test_what_is_no_module_is_refused(thing, says):
    with pytest.raises(UserError, match=re.escape(says)):
        wrap(thing)
