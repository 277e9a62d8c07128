"""A training set that is streamed gives the same training as one on the devices."""

import jax
import numpy as np
import pytest

from helpers import run as run_command
from kd_jax.config import default_config
from kd_jax.data import prefetch, sampler
from kd_jax.runtime import devices as devices_lib
from kd_jax.runtime.atomic_files import read_json_lines
from tiny_runs import IMAGES, LABELS, set_up, small_config


def feeder(config, devices, steps, *, streamed):
    return prefetch.Feeder(
        lambda step: sampler.batch_at(
            step, config.batch_size, len(IMAGES), 3, config.mixup.partner
        ),
        IMAGES if streamed else None,
        devices,
        partners=config.mixup.kind != "none",
        calls=[range(n, n + 1) for n in steps],
    )


def losses(config, num_devices, *, streamed, steps=50):
    devices = jax.devices()[:num_devices]
    step, state, constants = set_up(config)
    labels = LABELS if config.distill.label_weight else None
    constants = constants._replace(labels=labels, images=None if streamed else constants.images)
    train_step = devices_lib.pmap(step, devices, (False, False, True), donate_argnums=0)
    state, constants = devices_lib.replicate((state, constants), devices)
    fed = feeder(config, devices, range(steps), streamed=streamed)
    recorded = []
    for _ in range(steps):
        state, metrics = train_step(state, constants, fed.next())
        recorded.append(float(metrics["loss"]))
    fed.close()
    return recorded


@pytest.mark.slow
@pytest.mark.parametrize(("options", "devices"), [
    ({}, 2),
    ({"mixup.partner": "uniform", "mixup.kind": "example", "distill.label_weight": 0.3}, 1),
    ({"mixup.kind": "none", "distill.view": "independent"}, 2),
    pytest.param({"mixup.method": "cutmix"}, 1, marks=pytest.mark.proof),
])  # fmt: skip
def test_the_losses_of_50_steps_are_the_same(options, devices):
    config = small_config(**options)
    resident = losses(config, devices, streamed=False)
    np.testing.assert_allclose(losses(config, devices, streamed=True), resident, rtol=1e-4)


def test_it_goes_on_at_the_very_example_and_stops_at_the_last():
    config = small_config()
    devices = jax.devices()[:2]
    whole = feeder(config, devices, range(7), streamed=True)
    all_of_them = [whole.next() for _ in range(7)]
    later = feeder(config, devices, range(4, 7), streamed=True)
    for expected in all_of_them[4:]:
        got = later.next()
        assert isinstance(got, sampler.Streamed)
        assert got.pixels.shape == (2, 16, 32, 32, 3)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got.partner_pixels, IMAGES[np.asarray(got.batch.partner)])
    later.close()
    whole.close()


def test_what_fits_the_budget_is_resident():
    options = default_config().dataset
    assert prefetch.is_resident(options, 150_000_000)
    assert not prefetch.is_resident(options, 150_000_000_000)
    for choice in ("always", "never"):
        options.resident = choice
        assert prefetch.is_resident(options, 10**12) == (choice == "always")


@pytest.mark.slow
def test_a_streamed_run_is_the_resident_run(tmp_path):
    records = {}
    for name in ("always", "never"):
        command = (
            "--config=configs/demo.py:teacher", f"--workdir={tmp_path}/{name}",
            "--config.total_steps=30", "--config.mixup.kind=batch",
            f"--config.dataset.resident={name}", "--config.log_every_steps=5",
        )  # fmt: skip
        done = run_command("kd_jax.main", *command)
        assert done.returncode == 0, done.stderr
        records[name] = read_json_lines(tmp_path / name / "metrics.jsonl")
    for resident, streamed in zip(records["always"], records["never"], strict=True):
        values = [
            resident.get("loss", resident.get("nll")),
            streamed.get("loss", streamed.get("nll")),
        ]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-3)
    # Where the pixels lie may change when a run is resumed.
    again = run_command("kd_jax.main", *command[:-2], "--config.dataset.resident=auto",
                        "--config.log_every_steps=5")  # fmt: skip
    assert again.returncode == 0, again.stderr
