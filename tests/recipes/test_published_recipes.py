"""Recipes of the field have the published weights and protocol, alone and joined."""

import jax
import numpy as np
import pytest

from helpers import ROOT
from helpers import run as run_command
from kd_jax import config as config_lib
from kd_jax import recipes
from kd_jax.config import checks, overrides
from kd_jax.distillation import objective
from kd_jax.runtime import devices
from kd_jax.runtime.errors import UserError
from kd_jax.training import optimizer
from tiny_runs import LABELS, run, small_config

LABELS_OF_64 = np.arange(64) % 10


def softmax(logits):
    scaled = np.exp(logits - logits.max(-1, keepdims=True))
    return scaled / scaled.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def hinton(teacher, student, temperature):
    return temperature**2 * kl(softmax(teacher / temperature), softmax(student / temperature))


def dkd(teacher, student):
    p, q = softmax(teacher / 4), softmax(student / 4)
    rows = np.arange(64)
    is_label = np.eye(10, dtype=bool)[LABELS_OF_64]
    pairs = [np.stack([x[rows, LABELS_OF_64], 1 - x[rows, LABELS_OF_64]], -1) for x in (p, q)]
    among = [x[~is_label].reshape(64, 9) for x in (p, q)]
    among = [x / x.sum(-1, keepdims=True) for x in among]
    return 16 * (1.0 * kl(*pairs) + 8.0 * kl(*among))


def dist(teacher, student):
    """Twice the sum of both relations, as hunto/image_classification_sota weighs them."""
    p, q = softmax(teacher / 4), softmax(student / 4)
    over_classes = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    over_examples = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return 2.0 * 16 * (over_classes + over_examples)


def lskd(teacher, student):
    standard = [
        (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) for x in (teacher, student)
    ]
    return 9.0 * hinton(*standard, 2.0)


# The weight of the cross-entropy, and the distillation loss with its weight, in float64.
PUBLISHED = {
    "dkd": (1.0, dkd),
    "dist": (1.0, dist),
    "lskd": (0.1, lskd),
    "hinton": (0.1, lambda t, s: 0.9 * hinton(t, s, 5.0)),
    "funmatch": (0.0, lambda t, s: hinton(t, s, 5.0)),
    "crd_protocol": (0.1, lambda t, s: 0.9 * hinton(t, s, 4.0)),
    "crd_protocol+dkd": (1.0, dkd),
    "crd_protocol+dist": (1.0, dist),
    "crd_protocol+lskd": (0.1, lskd),
    "crd_protocol+funmatch": (0.0, lambda t, s: hinton(t, s, 4.0)),
}


def student_loss(config, teacher, student, warmup=1.0):
    """The loss of each example on one device."""
    label_probs = np.eye(10, dtype=np.float32)[LABELS_OF_64]

    def on_one_device(_):
        return objective.student_loss(
            config, student, (teacher,), (1.0,), label_probs, LABELS_OF_64, warmup=warmup
        )

    return jax.vmap(on_one_device, axis_name=devices.AXIS)(np.zeros(1))[0]


@pytest.mark.parametrize("names", PUBLISHED)
def test_the_loss_has_the_published_weights(names):
    """Warming up, only the distillation loss is smaller."""
    label_weight, to_teacher = PUBLISHED[names]
    config = recipes.apply(names)
    rng = np.random.default_rng(1)
    teacher, student = 3 * rng.standard_normal((2, 64, 10))
    cross_entropy = -np.log(softmax(student)[np.arange(64), LABELS_OF_64])
    for warmup in (1.0, 0.25):
        expected = label_weight * cross_entropy + warmup * to_teacher(teacher, student)
        ours = student_loss(config, np.float32(teacher), np.float32(student), warmup)
        np.testing.assert_allclose(ours, expected, rtol=3e-4, atol=1e-5)


def test_the_protocol_is_that_of_crd():
    """RepDistiller's options, and the learning rate that each of its 240 epochs has."""
    config = recipes.apply("crd_protocol")
    assert (config.batch_size, config.total_epochs, config.patience) == (64, 240, 0)
    assert (config.mixup.kind, config.augment.crop_pad_px, config.augment.flip) == ("none", 4, True)
    steps_per_epoch = 45_000 / 64
    total_steps = round(240 * steps_per_epoch)
    shape = optimizer.relative_schedule(total_steps, 0, config.schedule, steps_per_epoch)
    rates = [
        config.learning_rate * float(shape(int((epoch + 0.5) * steps_per_epoch)))
        for epoch in range(240)
    ]
    expected = np.repeat([0.05, 0.005, 0.0005, 0.00005], [150, 30, 30, 30])
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    before, after = (config.learning_rate * float(shape(step)) for step in (105_468, 105_469))
    assert before == pytest.approx(0.05)  # the drop is at the step with which epoch 151 begins
    assert after == pytest.approx(0.005)


def test_the_protocols_step_is_pytorchs_sgd():
    """Velocity = 0.9 * velocity + gradient + 5e-4 * weight, on biases and norms too."""
    config = recipes.apply("crd_protocol")
    rng = np.random.default_rng(2)
    shapes = {"conv": {"kernel": (3, 3, 2, 4)}, "bn": {"scale": (4,)}, "fc": {"bias": (5,)}}
    params = jax.tree.map(
        lambda shape: np.float32(rng.standard_normal(shape)),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    chain = optimizer.build(config, total_steps=100, warmup_steps=0)
    state = chain.init(params)
    expected = jax.tree.map(np.float64, params)
    velocity = jax.tree.map(np.zeros_like, expected)
    for _ in range(4):
        gradients = jax.tree.map(lambda x: np.float32(100 * rng.standard_normal(x.shape)), params)
        velocity = jax.tree.map(
            lambda v, g, w: 0.9 * v + g + 5e-4 * w, velocity, gradients, expected
        )
        expected = jax.tree.map(lambda w, v: w - 0.05 * v, expected, velocity)
        updates, state = chain.update(gradients, state, params)
        params = jax.tree.map(lambda w, u: w + u, params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), params, expected)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_possible_alone_and_joined(name):
    joined = [f"{before}+{name}" for before in ("crd_protocol", "seed") if before != name]
    for names in (name, *joined):
        config = recipes.apply(names)
        config.teacher.weights = "somewhere"
        if names == "seed+scratch":
            with pytest.raises(UserError, match="to stop early on the test split"):
                checks.check(config)
        else:
            checks.check(config)


@pytest.mark.parametrize("name", ["dkd", "dist", "lskd", "hinton", "funmatch"])
def test_the_losses_train_by_the_protocol(name):
    config = recipes.apply(f"crd_protocol+{name}")
    config.update_from_flattened_dict({"batch_size": 32, "seed": 3, "log_every_steps": 1})
    _, recorded = run(config, 1, 3, labels=LABELS)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in recorded)


def flat(names):
    return config_lib.flatten(recipes.apply(names))


def test_of_joined_recipes_the_later_one_wins():
    """The protocol and the loss: each has all of its own, and nothing is left of another loss."""
    default, protocol = flat("funmatch"), flat("crd_protocol")
    for name in ("dkd", "dist", "lskd"):
        alone, joined = flat(name), flat(f"crd_protocol+{name}")
        of_the_loss = {path for path in alone if path.startswith(("distill.", "mixup."))}
        assert {path for path in default if alone[path] != default[path]} <= of_the_loss
        for path in joined:
            assert joined[path] == (alone if path in of_the_loss else protocol)[path], path
    assert flat("crd_protocol+hinton") == protocol
    matching = flat("crd_protocol+funmatch")
    assert (matching["distill.label_weight"], matching["mixup.kind"]) == (0.0, "batch")
    assert flat("crd_protocol+seed")["warmup_epochs"] == 0.0
    assert flat("crd_protocol+seed")["mixup.partner"] == "uniform"


def test_recipes_are_joined_on_the_command_line_and_overridden_behind():
    text = f"{ROOT}/configs/resnet44.py:recipe=crd_protocol+dkd"
    config = overrides.load(text)
    assert (config.distill.loss, config.batch_size, config.teacher.arch) == ("dkd", 64, "resnet44")
    done = run_command("kd_jax.recipes", "diff", "crd_protocol", "crd_protocol+dkd")
    assert done.stdout.splitlines() == recipes.difference("crd_protocol", "crd_protocol+dkd")
    assert "distill.loss: 'forward_kl' -> 'dkd'" in done.stdout
    listed = run_command("kd_jax.recipes").stdout
    sources = {"dkd": "Zhao et al. 2022", "dist": "Huang et al. 2022", "lskd": "Sun et al. 2024",
               "crd_protocol": "Tian et al. 2020"}  # fmt: skip
    for name, source in sources.items():
        (paragraph,) = [text for text in listed.split("\n\n") if text.startswith(f"{name}: ")]
        assert source in paragraph


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("crd_protocol+dk", r"^'dk' is no recipe: expected one of funmatch, .*, or several joined"),
        ("", "^'' is no recipe: expected one of"),
        ("crd_protocol+", "^'' is no recipe: expected one of"),
        ("crd_protocol dkd", "^'crd_protocol dkd' is no recipe"),
        ("dkd+crd_protocol", r"would lose the loss of dkd, .* in crd_protocol\+dkd$"),
        ("lskd+dkd", "would lose the loss of lskd, since dkd sets the loss anew"),
        ("crd_protocol+dkd+crd_protocol", "has crd_protocol twice, expected it once"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_joined_are_one_sentence(names, says):
    with pytest.raises(UserError, match=says):
        recipes.apply(names)
    with pytest.raises(UserError, match=says):
        overrides.load(f"{ROOT}/configs/mbv2.py:recipe={names}")


def test_the_defaults_add_nothing_to_the_program():
    """So that runs from before `total_weight` and `warmup_epochs` go on in the same bits."""
    rng = np.random.default_rng(3)
    teacher, student = np.float32(3 * rng.standard_normal((2, 64, 10)))
    for weight in (0.0, 0.3):
        config = small_config(**{"distill.label_weight": weight})

        def old(student, weight=weight, options=config.distill):
            to_teacher = objective.distillation_loss(options, teacher, student, LABELS_OF_64)
            loss = (1 - weight) * 1.0 * to_teacher
            if weight > 0:
                probs = np.eye(10, dtype=np.float32)[LABELS_OF_64]
                loss += weight * objective.losses.cross_entropy(student, probs)
            return loss

        def new(student, config=config):
            probs = np.eye(10, dtype=np.float32)[LABELS_OF_64]
            return objective.student_loss(config, student, (teacher,), (1.0,), probs, LABELS_OF_64)

        np.testing.assert_array_equal(new(student), old(student))
        multiplications = [str(jax.make_jaxpr(f)(student)).count(" mul ") for f in (new, old)]
        assert multiplications[0] == multiplications[1]
