"""Features by path: against a step written by hand, by shapes, and by what cannot be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import config as config_lib
from kd_jax import models
from kd_jax.config import checks, default_config
from kd_jax.data import sampler
from kd_jax.distillation import ensemble, features
from kd_jax.distillation import state as state_lib
from kd_jax.distillation import step as step_lib
from kd_jax.distillation.features import Features, Pair
from kd_jax.distillation.student import StudentSpec
from kd_jax.kernels import lowering
from kd_jax.models import capture, layers, mobilenetv2
from kd_jax.models.norm import batch_norm
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.errors import UserError
from kd_jax.training import optimizer as optimizer_lib

SHAPE = (16, 16, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)
MEAN, STD = (0.5,) * 3, (0.25,) * 3


class Small(nn.Module):
    width: int
    stride: int
    num_classes: int = 10
    kernel_std = staticmethod(layers.kernel_std)

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = nn.relu(layers.Conv(self.width, 3, self.stride, name="body.0")(x))
        x = layers.Conv(self.width, 3, 1, name="body.1")(x)
        return nn.Dense(self.num_classes, name="head")(jnp.mean(nn.relu(x), (1, 2)))


TEACHER = models.Network("teacher", Small(16, 1), MEAN, STD)
STUDENT = models.Network("student", Small(8, 2), MEAN, STD)


def by_hand(params, images, stride):
    """The logits of `Small`, and the output of its second convolution."""

    def conv(x, kernel, stride):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # fmt: skip

    x = (images.astype(np.float32) / 255 - 0.5) / 0.25
    x = jax.nn.relu(conv(x, params["body.0"]["kernel"], stride))
    x = conv(x, params["body.1"]["kernel"], 1)
    pooled = jax.nn.relu(x).mean((1, 2))
    return pooled @ params["head"]["kernel"] + params["head"]["bias"], x


@pytest.fixture(scope="module")
def teacher():
    variables = TEACHER.init(1, SHAPE)
    variables["params"]["head"]["kernel"] *= 50.0
    return variables


def config_of(**fields):
    config = default_config()
    config.batch_size = 8
    config.learning_rate = 0.1
    config.weight_decay = 0.0
    config.warmup_epochs = 0.0
    config.schedule.name = "constant"
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.0
    config.optimizer.clip_norm = 0.0
    config.mixup.kind = "none"
    config.augment.crop_pad_px, config.augment.flip = 0, False
    config.distill.features = (("body", "body.1"),)
    config.distill.feature_weight = 3.0
    config.update_from_flattened_dict(fields)
    return config


def built(config, teacher):
    optimizer = optimizer_lib.build(config, 100, 0)
    return features.build(
        config.distill, TEACHER, teacher, STUDENT, SHAPE, optimizer
    ), optimizer  # fmt: skip


def one_step(config, teacher, num_devices):
    wanted, optimizer = built(config, teacher)
    spec = StudentSpec(config, STUDENT, optimizer, None, wanted)
    group = ensemble.Ensemble((TEACHER,), (1.0,), "probabilities")
    devices = jax.devices()[:num_devices]
    step = devices_lib.pmap(
        step_lib.make_cohort_step([spec], group), devices, (False, False, True)
    )  # fmt: skip
    state = state_lib.init_state(config, STUDENT.init(0, SHAPE), optimizer, wanted)
    constants = state_lib.Constants(IMAGES, None, (teacher,))
    batch = sampler.batch_at(0, 8, len(IMAGES), seed=0, partner="roll")
    states, metrics = step(
        *devices_lib.replicate(((state,), constants), devices), devices_lib.shard(batch, devices)
    )
    return state, jax.device_get(states[0]), metrics[0], IMAGES[np.asarray(batch.example)]


@pytest.mark.parametrize("loss", ["mse", "attention"])
def test_a_step_equals_one_written_by_hand_on_any_number_of_devices(teacher, loss):
    config = config_of(**{"distill.feature_loss": loss})
    before, after, metrics, images = one_step(config, teacher, 1)
    target_logits, target = by_hand(teacher["params"], images, 1)
    target = target.reshape(8, 8, 2, 8, 2, 16).mean((2, 4))  # 16 x 16 to the student's 8 x 8
    temperature = config.distill.temperature

    def attention(x):
        energy = (x**2).sum(-1).reshape(len(x), -1)
        return energy / jnp.linalg.norm(energy, axis=1, keepdims=True)

    def loss_of(params, projectors):
        logits, ours = by_hand(params, images, 2)
        p = jax.nn.softmax(target_logits / temperature)
        log_q = jax.nn.log_softmax(logits / temperature)
        kl = temperature**2 * (p * (jnp.log(p) - log_q)).sum(-1).mean()
        if loss == "mse":
            ours = ours @ projectors["0"]["kernel"] + projectors["0"]["bias"]
            apart = ((ours - target) ** 2).mean()
        else:
            apart = ((attention(ours) - attention(target)) ** 2).mean()
        return kl + 3.0 * apart, apart

    arguments = before.params, getattr(before, "projectors", {})
    (value, apart), grads = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(*arguments)
    expected = jax.tree.map(lambda x, grad: x - 0.1 * grad, arguments, grads)
    assert (loss == "mse") == isinstance(after, state_lib.FeatureTrainState)
    ours = after.params, getattr(after, "projectors", {})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), ours, expected
    )
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-4)
    assert float(metrics["feature_loss"]) == pytest.approx(float(apart), rel=1e-4)
    assert set(after.variables) == {"params", "batch_stats"}  # what is evaluated and kept
    assert "projectors" not in after.variables["params"]
    _, two, _, _ = one_step(config, teacher, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4),
        ours, (two.params, getattr(two, "projectors", {})),
    )  # fmt: skip


def test_windows_are_those_of_adaptive_pooling():
    maps = np.random.default_rng(3).normal(size=(2, 5, 8, 3)).astype(np.float32)
    pooled = np.asarray(features._pooled(jnp.asarray(maps), 3, 4))
    rows = [maps[:, 0:2], maps[:, 1:4], maps[:, 3:5]]  # as PyTorch's, 5 to 3
    expected = np.stack([each.mean(1) for each in rows], 1).reshape(2, 3, 4, 2, 3).mean(3)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_vectors_are_maps_of_one_pixel(teacher):
    pair = Pair("head", "body.1", (10,), (8, 8, 8))
    one = Features((pair,), "mse", 1.0, None)
    projectors = one.first_projectors(0)
    assert projectors["0"]["kernel"].shape == (8, 10)
    ours = np.random.default_rng(0).normal(size=(4, 8, 8, 8)).astype(np.float32)
    target = np.ones((4, 10), np.float32)
    expected = np.square(ours.mean((1, 2)) @ projectors["0"]["kernel"] - 1).mean(1)
    losses = one.loss_of(projectors, {"head": target}, {"body.1": ours})
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"distill.features": (("bodi.1", "body.1"),)}, r"teacher has no module 'bodi.1'.* body.1"),
        ({"distill.features": (("body", "tail"),)}, r"student has no module 'tail'.*3 in all"),
        (
            {"distill.features": (("body", "head"),), "distill.feature_loss": "attention"},
            "expected maps of more than one pixel",
        ),
    ],
)
def test_a_wrong_path_names_the_near_ones(teacher, fields, says):
    with pytest.raises(UserError, match=says):
        built(config_of(**fields), teacher)


def test_what_features_cannot_be_with_is_said():
    for fields, says in (
        ({"distill.view": "fixed"}, "view=fixed"),
        ({"distill.view": "independent"}, "view=independent"),
        ({"teacher.record": "somewhere"}, "teacher.record"),
        ({"teacher.replay": "somewhere"}, "teacher.replay"),
        ({"teacher.ensemble": ("b",)}, "teacher.ensemble"),
        ({"distill.label_weight": 1.0}, "label_weight=1"),
        ({"distill.features": (("layer3",),)}, "expected pairs of a path"),
        ({"distill.features": ("ab",)}, "expected pairs of a path"),
    ):
        config = config_of(**{"teacher.weights": "a", **fields})
        with pytest.raises(UserError, match=says):
            checks.check(config)
    checks.check(config_of(**{"teacher.weights": "a"}))


def test_pairs_come_back_from_a_workdir():
    config = config_of()
    assert config_lib.from_json(config_lib.to_json(config)).distill.features == (
        ("body", "body.1"),
    )
    assert not config_lib.differences(config_lib.from_json(config_lib.to_json(config)), config)


class Block(nn.Module):
    """A block that a compiled pass computes as one on CPU, and a head."""

    num_classes: int = 10
    batch_norm_momentum: float = 0.9
    kernel_std = staticmethod(layers.kernel_std)

    @nn.compact
    def __call__(self, x, *, train=False, dropout_keys=None):
        x = layers.Conv(16, 3, 1, name="stem")(x)
        norm = batch_norm(train, None, None)
        x = mobilenetv2.InvertedResidual(2, 16, 1, norm, name="block")(x)
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def test_outputs_under_compiled_passes_are_those_of_plain_layers():
    """Parts of a block that is one pass are had by plain layers; chunks are put together."""
    network = models.Network("block", Block(), MEAN, STD)
    variables = network.init(0, SHAPE)
    pixels = IMAGES.astype(np.float32) / 255
    paths = ("block", "block/conv.1.0")
    for count in (40, 3):
        given = jnp.asarray(pixels[:count])
        with lowering.forced("plain"):
            expected, outputs = capture.outputs(lambda x=given: network.logits(variables, x))
        ask = jax.jit(
            lambda x, p: capture.logits_and_outputs(network, variables, x, p), static_argnums=1
        )
        for wanted in (paths[:1], paths):
            logits, found = ask(given, wanted)
            np.testing.assert_allclose(logits, expected, atol=1e-4)
            assert set(found) == set(wanted)
            for path in wanted:
                np.testing.assert_allclose(found[path], outputs[path], atol=1e-4)


def test_modules_within_a_transformation_are_not_to_be_had():
    class Inside(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.Conv(8, 3, 1, name="conv")(x)

    class Rematerialised(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x, *, train=False, dropout_keys=None):
            return nn.Dense(10, name="head")(nn.remat(Inside)(name="body")(x).mean((1, 2)))

    network = models.Network("remat", Rematerialised(), MEAN, STD)
    known = capture.shapes(network, network.abstract_variables(SHAPE), SHAPE)
    assert known == {"head": (10,)}
    with pytest.raises(UserError, match="remat has no module 'body'"):
        capture.resolve("body", known, network.arch)
