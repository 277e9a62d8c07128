"""Recipes and options: each trains, each does what it says, and says the same on any devices."""

import jax
import numpy as np
import pytest

from helpers import run as run_command
from kd_jax import config as config_lib
from kd_jax import models, recipes
from kd_jax.data.sampler import batch_at
from kd_jax.distillation import ensemble, losses, objective
from kd_jax.runtime import devices
from kd_jax.runtime.errors import UserError
from kd_jax.training import optimizer
from tiny_runs import IMAGES, LABELS, run, small_config, tiny

PLAIN = {"mixup.kind": "none"}
OPTIONS = {
    **{name: {"distill.loss": name} for name in ("reverse_kl", "jensen_shannon", "dist")},
    "squared_error": {"distill.loss": "squared_error", "optimizer.clip_norm": 1.0},
    "hard_label": {"distill.loss": "hard_label"},
    "dkd": {"distill.loss": "dkd", **PLAIN},
    "standardized": {"distill.standardize_logits": True},
    "sum without T^2": {"distill.reduction": "sum", "distill.squared_temperature": False},
    "independent": {"distill.view": "independent"},
    "cutmix": {"mixup.method": "cutmix", "mixup.alpha": 0.5},
    "groups": {"mixup.kind": "group", "mixup.groups": 8, "mixup.partner": "permutation"},
    "uniform partners": {"mixup.kind": "example", "mixup.partner": "uniform"},
    **{name: {"optimizer.name": name} for name in optimizer.OPTIMIZERS},
    **{name: {"schedule.name": name} for name in optimizer.SCHEDULES},
    "freeze": {"student.freeze": "conv1/|layer1"},
}  # fmt: skip


def needs_labels(options):
    return options.get("distill.loss") == "dkd"


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains(name):
    """20 steps: finite throughout, and the student moves."""
    config = small_config(**OPTIONS[name])
    labels = LABELS if needs_labels(OPTIONS[name]) else None
    state, recorded = run(config, 1, 20, labels=labels)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in recorded)
    assert int(state.step) == 20
    start = tiny().init(3, (32, 32, 3))["params"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, state.params)
    frozen = optimizer.frozen(start, config.student.freeze)
    assert jax.tree.leaves(moved) == [not f for f in jax.tree.leaves(frozen)]
    assert any(jax.tree.leaves(frozen)) == (name == "freeze")


@pytest.mark.parametrize("name", ["dist", "dkd", "sum without T^2", "groups", "cutmix"])
def test_options_are_the_same_on_any_number_of_devices(name):
    labels = LABELS if needs_labels(OPTIONS[name]) else None
    config = small_config(**OPTIONS[name])
    losses = [
        [metrics["loss"] for metrics in run(config, n, 8, labels=labels)[1]] for n in (1, 2, 4)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-4)


def test_a_fixed_view_reads_the_kept_logits():
    """The loss is that of the logits given, and the teacher itself is not asked."""
    kept = np.random.default_rng(0).standard_normal((1, len(IMAGES), 10)).astype(np.float32)
    config = small_config(**PLAIN, **{"distill.view": "fixed"})
    _, recorded = run(config, 2, 3, teacher_logits=kept)
    _, other = run(config, 2, 3, teacher_logits=2 * kept)
    assert recorded[0]["loss"] != other[0]["loss"]
    with pytest.raises(AssertionError):
        run(config, 1, 1)


def test_several_teachers_have_one_gradient_either_way():
    """Forward KL to the mean of probabilities, and the mean of the KLs, differ by a constant."""
    rng = np.random.default_rng(1)
    logits = np.float32(3 * rng.standard_normal((2, 6, 10)))
    student = np.float32(rng.standard_normal((6, 10)))
    network = models.build("resnet8", 10, (0.5,) * 3, (0.25,) * 3)
    config = small_config()
    slopes, values = [], []
    for combine in ("probabilities", "losses"):
        both = ensemble.Ensemble((network, network), (0.25, 0.75), combine)
        targets, shares = both.targets(logits, "forward_kl", 4.0)
        config.distill.temperature = 4.0

        def loss(s, targets=targets, shares=shares):
            return objective.student_loss(config, s, targets, shares, None, None).sum()

        values.append(float(loss(student)))
        slopes.append(jax.grad(loss)(student))
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-3, atol=1e-5)
    assert values[1] > values[0]


def to_several(loss, logits, student, temperature, combine="probabilities"):
    """The loss of each example to teachers of equal shares."""
    network = models.build("resnet8", 10, (0.5,) * 3, (0.25,) * 3)
    count = len(logits)
    several = ensemble.Ensemble((network,) * count, (1 / count,) * count, combine)
    config = small_config(**{"distill.loss": loss, "distill.temperature": temperature})
    targets, shares = several.targets(logits, loss, temperature)

    def on_one_device(_):
        return objective.student_loss(config, student, targets, shares, None, np.arange(6) % 10)

    return jax.vmap(on_one_device, axis_name=devices.AXIS)(np.zeros(1))[0]


@pytest.mark.parametrize(
    "loss", [name for name in config_lib.choices("distill.loss") if not name.startswith("python")]
)
@pytest.mark.parametrize("combine", ["probabilities", "losses"])
def test_a_teacher_counted_twice_is_as_one(loss, combine):
    """Of any loss; squared error gave a perfect student 75 here, where 0 is true."""
    rng = np.random.default_rng(2)
    teacher, student = np.float32(5 * rng.standard_normal((2, 6, 10))) + 3
    for logits in (student, teacher):
        alone = to_several(loss, teacher[None], logits, 5.0)
        twice = to_several(loss, np.stack([teacher, teacher]), logits, 5.0, combine)
        np.testing.assert_allclose(twice, alone, rtol=1e-4, atol=1e-4)


def test_squared_error_to_several_is_to_the_mean_of_their_logits():
    rng = np.random.default_rng(3)
    teachers, student = 4 * rng.standard_normal((3, 6, 10)), rng.standard_normal((6, 10))
    for temperature in (1.0, 7.0):
        ours = to_several("squared_error", np.float32(teachers), np.float32(student), temperature)
        expected = 0.5 * ((student - teachers.mean(0)) ** 2).mean(-1)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_the_choice_of_several_teachers_does_not_depend_on_the_temperature():
    """One is very sure of class 1, two are sure of class 0, which wins at T = 1 but not at 20."""
    sure, leaning = [0.0, 20.0, 0.0], [3.0, 0.0, 0.0]
    teachers = np.float32([[sure], [leaning], [leaning]])
    student = np.float32([[0.3, -0.2, 0.1]])
    expected = float(np.log(np.exp(student).sum()) - student[0, 0])
    for temperature in (1.0, 5.0, 20.0):
        several = ensemble.Ensemble((None,) * 3, (1 / 3,) * 3, "probabilities")
        (target,), _ = several.targets(teachers, "hard_label", temperature)
        loss = losses.hard_label(target, student)
        assert float(loss[0]) == pytest.approx(expected, rel=1e-5)
    (soft,), _ = several.targets(teachers, "forward_kl", 20.0)
    assert int(soft.argmax()) == 1


@pytest.mark.parametrize("arch", [
    "resnet8", pytest.param("mobilenet_v3_small", marks=pytest.mark.proof), "mobilenetv2_x0_5",
    pytest.param("vgg11_bn", marks=pytest.mark.proof),
])  # fmt: skip
def test_bfloat16_is_close_and_keeps_its_statistics_in_float32(arch):
    normalisation = ((0.5,) * 3, (0.25,) * 3)
    exact = models.build(arch, 10, *normalisation)
    coarse = models.build(arch, 10, *normalisation, dtype="bfloat16")
    variables = exact.init(0, (32, 32, 3))
    pixels = np.random.default_rng(2).random((16, 32, 32, 3), np.float32)
    one, other = (np.asarray(net.logits(variables, pixels)) for net in (exact, coarse))
    assert other.dtype == np.float32
    # bfloat16 has 8 bits: one rounding is 0.4 %, and there are tens of layers.
    assert np.abs(one - other).max() <= 0.05 * np.abs(one).max()
    assert not np.array_equal(one, other)
    grown, statistics = coarse.train_logits(variables, pixels, None)
    assert grown.dtype == np.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(statistics)} == {"float32"}


def test_schedules_by_name():
    def values(name, **options):
        config = small_config()
        config.schedule.name = name
        config.schedule.update(options)
        return [
            float(optimizer.relative_schedule(100, 0, config.schedule, 10.0)(s)) for s in range(100)
        ]

    assert values("constant") == [1.0] * 100
    np.testing.assert_allclose(values("linear"), 1 - np.arange(100) / 100, atol=1e-6)
    step = values("step", step_at=(0.25, 0.5), step_factor=0.5)
    np.testing.assert_allclose([step[24], step[25], step[50], step[99]], [1, 0.5, 0.25, 0.25])
    wsd = values("wsd", cooldown=0.25)
    np.testing.assert_allclose([wsd[0], wsd[74], wsd[80], wsd[99]], [1, 1, 0.8, 0.04], atol=1e-6)
    # The study: CosineAnnealing(T_0 = epochs + 1), once an epoch.
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(10) / 11))
    np.testing.assert_allclose(values("cosine_by_epoch"), np.repeat(expected, 10), atol=1e-6)


def test_recipes_differ_where_they_say():
    assert "distill.squared_temperature: True -> False" in recipes.difference("funmatch", "seed")
    assert recipes.difference("funmatch", "funmatch") == []
    with pytest.raises(UserError, match="'sead' is no recipe"):
        recipes.difference("funmatch", "sead")
    with pytest.raises(ValueError, match="recipe=funmatch"):
        recipes.experiment("temperature=5")
    done = run_command("kd_jax.recipes", "diff", "funmatch", "hinton")
    assert done.stdout.splitlines() == recipes.difference("funmatch", "hinton")
    assert "Beyer et al. 2021" in run_command("kd_jax.recipes").stdout
    one = run_command("kd_jax.recipes", "hinton").stdout
    assert one.startswith("hinton: ")
    assert one.endswith(done.stdout)


def test_the_partner_in_a_run_is_the_configs():
    """Views of permuted partners differ from rolled ones, and so do their losses."""
    rolled = run(small_config(), 1, 2)[1]
    permuted = run(small_config(**{"mixup.partner": "permutation"}), 1, 2)[1]
    assert rolled[0]["loss"] != permuted[0]["loss"]
    batch = batch_at(0, 32, 200, 3, "permutation")
    assert devices.shard(batch, jax.devices()[:2]).partner.shape == (2, 16)
