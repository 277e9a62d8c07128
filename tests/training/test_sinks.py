"""What trackers are told: TensorBoard's files and trackio, and the images of views."""

import os
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.config import checks, default_config
from kd_jax.data import sampler
from kd_jax.distillation import views
from kd_jax.runtime import quiet_tensorflow, signals
from kd_jax.runtime.errors import UserError
from kd_jax.training import sinks, view_images
from kd_jax.training.callbacks import RunStart
from kd_jax.training.listeners import Listeners
from kd_jax.training.train import train
from tiny_runs import IMAGES, digits_config, small_config

ROOT = Path(__file__).resolve().parents[2]


def tell(sink, place):
    """Tell a sink what a short run tells."""
    with Listeners([sink], signals.StopRequest()) as listeners:
        listeners.on_start(RunStart(place, {"seed": 0, "teacher.ensemble": ()}, 0, 20))
        listeners.on_images(0, lambda: {"views": np.full((3, 8, 8, 3), 9, np.uint8)})
        listeners.on_step(10, {"epoch": 1.0, "loss": 0.5, "learning_rate": 0.1})
        listeners.on_evaluate(20, {"top1": 40.0})
        listeners.on_checkpoint(20, place / "checkpoints" / "20")
        listeners.on_end(20, {"top1": 41.0})


def test_tensorboard_is_told_all_but_the_epoch(tmp_path, monkeypatch):
    written, places = [], []
    writer = types.SimpleNamespace(
        write_scalars=lambda step, values: written.append((step, values)),
        write_images=lambda step, values: written.append((step, sorted(values))),
        close=lambda: written.append("closed"),
    )
    writers = types.SimpleNamespace(SummaryWriter=lambda place: (places.append(place), writer)[1])
    monkeypatch.setattr(quiet_tensorflow, "import_metric_writers", lambda: writers)
    tell(sinks.TensorBoard(), tmp_path / "a")
    assert places == [str(tmp_path / "a")]  # so the run is called a
    assert written == [
        (0, ["views"]),
        (10, {"train/loss": 0.5, "train/learning_rate": 0.1}),
        (20, {"val/top1": 40.0}),
        (20, {"test/top1": 41.0}),
        "closed",
    ]


@pytest.mark.proof
def test_tensorboard_reads_what_a_run_wrote(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    config = digits_config(1)
    config.total_steps = 4
    result = train(config, tmp_path / "a")
    events = accumulators.EventAccumulator(str(tmp_path / "a")).Reload()
    tags = events.Tags()
    assert set(tags["images"]) == set()  # those of TensorFlow 2 are tensors
    assert {"train/loss", "train/learning_rate", "test/top1", "views", "mixed_views"} <= set(
        tags["tensors"]
    )
    assert "train/epoch" not in tags["tensors"]
    test = events.Tensors("test/top1")[0]
    assert test.step == 4
    value = float(tensor_util.make_ndarray(test.tensor_proto))
    assert value == pytest.approx(result["test_top1"], abs=1e-4)


def test_trackio_keeps_a_run_without_a_network(tmp_path):
    """In a process of its own: trackio reads at its import where it keeps its data."""
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'kd_jax[trackio]'")
    code = f"""
import socket
from pathlib import Path
def refuse(*_): raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = refuse
from test_sinks import tell
from kd_jax.training import sinks
tell(sinks.Trackio(), Path({str(tmp_path)!r}) / "runs" / "a")
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("runs")
logs = SQLiteStorage.get_logs("runs", run)
told = {{(log["step"], k): v for log in logs for k, v in log.items()}}
assert run == "a", run
assert told[10, "train/loss"] == 0.5 and told[10, "train/learning_rate"] == 0.1
assert told[20, "val/top1"] == 40.0 and told[20, "test/top1"] == 41.0
assert (0, "images/views") in told and (10, "train/epoch") not in told
"""
    environment = os.environ | {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent), *sys.path]
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "could not be written" not in done.stderr
    assert done.stdout == ""  # which is for results


def test_a_tracker_that_is_not_installed_is_refused_at_the_start(tmp_path, monkeypatch):
    config = digits_config(1)
    config.trackers = ("trackio",)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trackio is not installed: pip install 'kd_jax\[trackio"):
        train(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("trackers", [("wandb",), ("trackio", "trackio"), (1,)])
def test_unknown_trackers_are_refused(trackers):
    config = digits_config(1)
    config.student.arch = "resnet8"
    config.trackers = trackers
    with pytest.raises(UserError, match=r"config.trackers is .* expected each of tensorboard, tr"):
        checks.check(config)
    config.trackers = ()
    checks.check(config)
    assert default_config().trackers == ("tensorboard",)


def run_of(**options):
    config = small_config(**options)

    class Train:
        images = IMAGES

        def __len__(self):
            return len(IMAGES)

    return types.SimpleNamespace(
        config=config, dataset=types.SimpleNamespace(train=Train()), teachers=object()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"mixup.kind": "none"},
        {
            "mixup.kind": "group",
            "mixup.groups": 4,
            "mixup.partner": "uniform",
            "distill.view": "independent",
        },
    ],
)
def test_the_images_are_those_of_the_step(options):
    run = run_of(**options)
    config = run.config
    images = view_images.of(run, count=16)
    batch = sampler.batch_at(0, 32, len(IMAGES), config.seed, config.mixup.partner)
    step = views.make(jnp.asarray(IMAGES), batch, config.seed, 0, config)
    np.testing.assert_array_equal(images["images"], IMAGES[batch.example[:16]])
    shown = "views" if config.mixup.kind == "none" else "mixed_views"
    expected = np.asarray(step.student)[:16] * 255
    np.testing.assert_allclose(images[shown].astype(float), expected, atol=0.51)
    assert ("mixed_views" in images) == (config.mixup.kind != "none")
    assert ("teacher_views" in images) == (config.distill.view == "independent")
    if "teacher_views" in images:
        expected = np.asarray(step.teacher)[:16] * 255
        np.testing.assert_allclose(images["teacher_views"].astype(float), expected, atol=0.51)


def test_images_are_laid_side_by_side():
    table = sinks.as_one(
        np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((2, 3, 3), "u1")
    )
    assert table.shape == (4, 9, 3)
    assert table[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 0]]
