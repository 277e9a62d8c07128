"""The number of devices does not matter, up to eight and over an epoch; see also test_step.py."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from helpers import ROOT


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
