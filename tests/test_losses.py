"""Losses equal their definition in float64, stay finite, and have the right limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import losses


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
