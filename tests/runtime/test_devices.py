"""The number of devices does not matter, up to eight and over an epoch; see also test_step.py."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from helpers import ROOT
from kd_jax.runtime import devices as devices_lib


@pytest.mark.slow
def test_an_epoch_is_the_same_on_1_2_4_and_8_devices():
    """20 steps with mixup and synchronised batch norm, on real images where they are at hand."""
    done = subprocess.run(
        [sys.executable, "tests/runtime/eight_devices.py"],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    one, *others = map(json.loads, done.stdout.splitlines())
    assert one["devices"] == 1
    assert len(one["losses"]) == 20
    assert np.ptp(one["losses"]) > 0.1
    assert [other["devices"] for other in others] == [2, 4, 8]
    for other in others:
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-4)
        assert other["norm"] == pytest.approx(one["norm"], rel=1e-5)


def test_axes_belong_to_arguments_however_many_leaves_they_have():
    """JAX alone would split the images here: four leaves, four arguments."""
    devices = jax.devices()[:2]

    def look(pair, images, index, nothing):
        assert nothing is None
        return images[index] * pair[0] + pair[1]

    mapped = devices_lib.pmap(look, devices, (False, False, True, False), splits_result=True)
    images, index = np.arange(6.0, dtype=np.float32), np.array([[0, 5], [4, 1]])
    pair = (np.float32(2), np.float32(1))
    np.testing.assert_array_equal(mapped(pair, images, index, None), 2 * images[index] + 1)
