"""Losses equal their definition in float64, stay finite, and have the right limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import config as config_lib
from kd_jax.distillation import losses


def random_logits(seed, scale=3.0, shape=(64, 10)):
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal(shape), scale * rng.standard_normal(shape)


def kl_in_float64(teacher, student, temperature):
    def probs(logits):
        scaled = np.exp(logits / temperature - (logits / temperature).max(-1, keepdims=True))
        return scaled / scaled.sum(-1, keepdims=True)

    p, q = probs(teacher), probs(student)
    return temperature**2 * np.sum(p * np.log(p / q), axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 10.0])
def test_kl_equals_its_definition(temperature):
    teacher, student = random_logits(0)
    ours = losses.kl_divergence(jnp.float32(teacher), jnp.float32(student), temperature)
    assert ours.shape == (64,)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, kl_in_float64(teacher, student, temperature), rtol=1e-4)


def test_kl_is_forward_and_sums_over_classes():
    teacher, student = jnp.array([[4.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 0.0]])
    p = np.exp([4.0, 0.0, 0.0]) / np.exp([4.0, 0.0, 0.0]).sum()
    forward = np.sum(p * np.log(3 * p))
    assert losses.kl_divergence(teacher, student, 1.0)[0] == pytest.approx(forward, rel=1e-5)
    assert losses.kl_divergence(student, teacher, 1.0)[0] != pytest.approx(forward, rel=0.1)


def test_kl_gradient_is_t_times_the_difference_of_probabilities():
    teacher, student = (jnp.float32(x) for x in random_logits(1))
    for temperature in (1.0, 4.0):
        gradient = jax.grad(lambda s, t=temperature: losses.kl_divergence(teacher, s, t).sum())(
            student
        )
        difference = jax.nn.softmax(student / temperature) - jax.nn.softmax(teacher / temperature)
        np.testing.assert_allclose(gradient, temperature * difference, rtol=1e-3, atol=1e-5)


def test_kl_tends_to_matching_centred_logits():
    """Hinton et al. 2015, equation 4: as T grows, T^2 KL's gradient is (s - t) / classes."""
    teacher, student = random_logits(2, scale=1.0)
    teacher, student = (x - x.mean(-1, keepdims=True) for x in (teacher, student))
    gradient = jax.grad(
        lambda s: losses.kl_divergence(jnp.float32(teacher), s, 1000.0).sum()
    )(jnp.float32(student))  # fmt: skip
    np.testing.assert_allclose(gradient, (student - teacher) / 10, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_kl_is_zero_for_a_perfect_student_and_finite_at_extremes(temperature):
    logits = jnp.array([[1e4, -1e4, 0.0], [0.0, 1e4, 1e4]])
    np.testing.assert_allclose(losses.kl_divergence(logits, logits, temperature), 0.0, atol=1e-3)
    value, gradient = jax.value_and_grad(
        lambda s: losses.kl_divergence(logits, s, temperature).sum()
    )(-logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_bfloat16_logits_are_compared_in_float32():
    teacher, student = (jnp.asarray(x, jnp.bfloat16) for x in random_logits(3))
    ours = losses.kl_divergence(teacher, student, 2.0)
    assert ours.dtype == jnp.float32
    reference = kl_in_float64(np.float64(teacher), np.float64(student), 2.0)
    np.testing.assert_allclose(ours, reference, rtol=1e-4)


def test_cross_entropy_equals_its_definition():
    logits, _ = random_logits(4)
    labels = np.arange(64) % 10
    soft = 0.7 * np.eye(10)[labels] + 0.3 * np.eye(10)[(labels + 1) % 10]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ours = losses.cross_entropy(jnp.float32(logits), soft)
    np.testing.assert_allclose(ours, -(soft * log_probs).sum(-1), rtol=1e-4)


# Every loss again, in float64, from probabilities.
T, TARGETS = 3.0, np.arange(64) % 10


def softmax(logits):
    scaled = np.exp(logits - logits.max(-1, keepdims=True))
    return scaled / scaled.sum(-1, keepdims=True)


def js_in_float64(teacher, student):
    p, q = softmax(teacher / T), softmax(student / T)
    m = (p + q) / 2
    return T**2 * 0.5 * ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1))


def dist_in_float64(teacher, student):
    p, q = softmax(teacher / T), softmax(student / T)
    over_classes = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    over_examples = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return T**2 * (2.0 * np.array(over_classes) + 0.5 * np.mean(over_examples))


def dkd_in_float64(teacher, student):
    p, q = softmax(teacher / T), softmax(student / T)
    rows = np.arange(64)
    pt, qt = p[rows, TARGETS], q[rows, TARGETS]
    about = pt * np.log(pt / qt) + (1 - pt) * np.log((1 - pt) / (1 - qt))
    others = np.ones((64, 10), bool)
    others[rows, TARGETS] = False
    p, q = (x[others].reshape(64, 9) for x in (p, q))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return T**2 * (1.5 * about + 4.0 * (p * np.log(p / q)).sum(-1))


LOSSES = {
    "forward_kl": (
        lambda t, s: losses.kl_divergence(t, s, T), lambda t, s: kl_in_float64(t, s, T)
    ),
    "reverse_kl": (lambda t, s: losses.reverse_kl(t, s, T), lambda t, s: kl_in_float64(s, t, T)),
    "jensen_shannon": (lambda t, s: losses.jensen_shannon(t, s, T), js_in_float64),
    "squared_error": (losses.squared_error, lambda t, s: ((t - s) ** 2).mean(-1) / 2),
    "hard_label": (
        losses.hard_label, lambda t, s: -np.log(softmax(s)[np.arange(64), t.argmax(-1)])
    ),
    "dist": (lambda t, s: losses.dist(t, s, T, inter=2.0, intra=0.5), dist_in_float64),
    "dkd": (lambda t, s: losses.dkd(t, s, T, TARGETS, target=1.5, others=4.0), dkd_in_float64),
}  # fmt: skip


def test_every_loss_has_a_reference():
    users = ("python", "python_with_labels")  # functions of the user, see `objective.user_loss`
    assert (*LOSSES, *users) == config_lib.choices("distill.loss")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_teacher_whose_answer_is_not_finite_gives_no_finite_loss(name, bad):
    """Arg-max takes a NaN for the largest: `hard_label` went on with it."""
    teacher, student = map(jnp.float32, random_logits(5))
    assert not np.isfinite(LOSSES[name][0](teacher.at[3, 2].set(bad), student)[3])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_equal_float64(name):
    ours, reference = LOSSES[name]
    teacher, student = random_logits(5)
    value = ours(jnp.float32(teacher), jnp.float32(student))
    assert value.shape == (64,)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, reference(teacher, student), rtol=2e-4, atol=1e-5)
    gradient = jax.grad(lambda s: ours(jnp.float32(teacher), s).sum())(jnp.float32(student))
    rng, step = np.random.default_rng(6), 1e-6
    for _ in range(5):
        direction = rng.standard_normal(student.shape)
        ends = [reference(teacher, student + sign * step * direction).sum() for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(jnp.vdot(gradient, direction)) == pytest.approx(slope, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_finite_at_extremes(name):
    ours, _ = LOSSES[name]
    rng = np.random.default_rng(7)
    extremes = jnp.float32(rng.choice([-1e4, 0.0, 1e4], (64, 10)))
    for teacher, student in ((extremes, -extremes), (extremes, extremes), (0 * extremes, extremes)):
        value, gradient = jax.value_and_grad(lambda s, t=teacher: ours(t, s).sum())(student)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"hard_label"}))
def test_a_student_that_equals_its_teacher_loses_nothing(name):
    ours, _ = LOSSES[name]
    teacher, _ = (jnp.float32(x) for x in random_logits(8))
    np.testing.assert_allclose(ours(teacher, teacher), 0.0, atol=1e-4)
    slope = jax.grad(lambda s: ours(teacher, s).sum())(teacher)
    np.testing.assert_allclose(slope, 0.0, atol=1e-3)


def test_dkd_contains_ordinary_kd():
    """With the teacher's own weight on the other classes the two parts are the KL."""
    teacher, student = (jnp.float32(x) for x in random_logits(9))
    probs = jax.nn.softmax(teacher / T)
    rest = 1 - probs[jnp.arange(64), TARGETS]
    parts = [
        losses.dkd(teacher, student, T, TARGETS, target=a, others=b) for a, b in ((1, 0), (0, 1))
    ]
    whole = losses.kl_divergence(teacher, student, T)
    np.testing.assert_allclose(parts[0] + rest * parts[1], whole, rtol=1e-3, atol=1e-4)


def test_standardized_logits_forget_shift_and_scale():
    student = jnp.float32(random_logits(10)[1])
    made = losses.standardize(student)
    np.testing.assert_allclose(made.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(made.std(-1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(losses.standardize(5 * student + 3), made, rtol=1e-3, atol=1e-4)
    constant = jax.grad(lambda s: losses.standardize(s).sum())(jnp.zeros((2, 10)))
    assert np.isfinite(constant).all()


def test_an_ensemble_is_the_mean_of_probabilities():
    logits = jnp.float32(np.stack(random_logits(11)))
    shares = jnp.array([0.3, 0.7])
    for temperature in (1.0, 4.0):
        mean = losses.mean_of_probabilities(logits, shares, temperature)
        expected = (shares[:, None, None] * jax.nn.softmax(logits / temperature)).sum(0)
        np.testing.assert_allclose(jax.nn.softmax(mean / temperature), expected, rtol=1e-4)
    extremes = losses.mean_of_probabilities(1e3 * logits, shares, 1.0)
    assert np.isfinite(extremes).all()
