"""How whole splits are looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.runtime import devices as devices_lib
from kd_jax.training.evaluator import Predictor

IMAGES = np.arange(7 * 2 * 2 * 3, dtype=np.uint8).reshape(7, 2, 2, 3)


@pytest.mark.parametrize("is_resident", [True, False])
def test_what_was_prepared_does_not_compile_when_it_is_asked(is_resident):
    traced = []

    def logits_of(variables, pixels):
        traced.append(pixels.shape)
        return variables * pixels.mean((1, 2))

    devices = jax.devices()[:1]
    variables = devices_lib.replicate(jnp.float32(2.0), devices)
    images = devices_lib.replicate(IMAGES, devices) if is_resident else IMAGES
    predictor = Predictor(logits_of, devices, batch_size=2)
    predictor.prepare(variables, images)
    assert traced == [(2, 2, 2, 3)]
    predictor.prepare(variables, images)
    logits = predictor.logits(variables, images)
    assert len(traced) == 1
    np.testing.assert_allclose(logits, 2.0 * IMAGES.mean((1, 2)) / 255.0, rtol=1e-5)
