"""`kd_jax.distill`: from arrays, names and objects to a run, and what it refuses."""

import logging
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kd_jax as kd
from helpers import ROOT
from kd_jax.api import data as data_lib
from kd_jax.api import distill as distill_module
from kd_jax.api import options
from kd_jax.config import schema
from kd_jax.data import sources
from kd_jax.runtime.console import logger


@pytest.fixture(scope="module")
def digits():
    assert len(jax.devices()) == 4  # and JAX runs, so that a config cannot change them
    whole = sources.digits()
    return whole.train.images[:400], whole.train.labels[:400]


TINY = {
    "student": "resnet8", "batch_size": 64, "steps": 4, "mixup__kind": "none", "log_every_steps": 1,
    "checkpoint_every_steps": 2, "num_devices": 1, "progress_line": False,
}  # fmt: skip


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables["kernel"]


@pytest.fixture(scope="module")
def teacher():
    kernel = np.random.default_rng(0).normal(0, 0.1, (32 * 32 * 3, 10)).astype(np.float32)
    return kd.teacher(linear, {"kernel": kernel})


@pytest.fixture(scope="module")
def run(digits, teacher, tmp_path_factory):
    """A finished run under a function, with a callback that keeps what it hears."""

    class Ear(kd.Callback):
        heard = []

        def on_step(self, step, metrics):
            self.heard.append(("step", step, metrics["loss"]))

        def on_evaluate(self, step, measures):
            self.heard.append(("evaluate", step, measures["agreement"]))

        def on_checkpoint(self, step, directory):
            self.heard.append(("checkpoint", step, directory.name))

    workdir = tmp_path_factory.mktemp("api") / "run"
    finished = kd.distill(teacher, data=digits, workdir=workdir, callbacks=[Ear()], **TINY)
    return finished, Ear.heard


def test_a_finished_run_has_measures_history_certificate_and_student(run, digits):
    finished, _ = run
    assert finished.finished
    assert finished.metrics["steps"] == 4
    assert 0 <= finished.metrics["test_top1"] <= 100
    assert finished.certificate["arch"] == "python:linear"
    assert [each["step"] for each in finished.history if each["kind"] == "train"] == [1, 2, 3, 4]
    logits = finished.student(digits[0][:300])
    assert logits.shape == (300, 10)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[:7], finished.student(digits[0][:7]), atol=1e-5)
    again = kd.load(finished.workdir)
    assert again.metrics == finished.metrics
    np.testing.assert_array_equal(again.student(digits[0][:7]), finished.student(digits[0][:7]))


def test_callbacks_hear_steps_validations_and_checkpoints(run):
    _, heard = run
    assert [step for kind, step, _ in heard if kind == "step"] == [1, 2, 3, 4]
    assert [(step, name) for kind, step, name in heard if kind == "checkpoint"] == [
        (2, "2"), (4, "4"),
    ]  # fmt: skip
    assert [step for kind, step, _ in heard if kind == "evaluate"] == [4]


def test_the_report_is_a_page_that_a_notebook_shows(run):
    report = run[0].report()
    assert "resnet8" in str(report)
    assert report.path.read_text().startswith("<!")
    assert report._repr_html_().startswith("<iframe srcdoc=")


def test_the_student_takes_pixels_only(run, digits):
    for images in (digits[0][:2].astype(np.float32), digits[0][0], digits[0][:2, :16]):
        with pytest.raises(kd.UserError, match="expected uint8"):
            run[0].student(images)


def test_a_callback_stops_a_run_and_the_same_call_goes_on(digits, teacher, tmp_path):
    class Stop(kd.Callback):
        def on_step(self, step, metrics):
            if step == 2:
                raise kd.StopTraining("enough")

    where = {"data": digits, "workdir": tmp_path / "run"}
    stopped = kd.distill(teacher, callbacks=[Stop()], **where, **TINY)
    assert not stopped.finished
    with pytest.raises(kd.UserError, match="not finished"):
        stopped.student  # noqa: B018
    finished = kd.distill(teacher, **where, **TINY)
    unbroken = kd.distill(teacher, data=digits, workdir=tmp_path / "unbroken", **TINY)
    assert finished.metrics["test_nll"] == unbroken.metrics["test_nll"]


def test_without_labels_there_is_agreement_and_no_accuracy(digits, teacher, tmp_path):
    images = digits[0]
    run = kd.distill(teacher, data=images, workdir=tmp_path / "run", **TINY)
    assert kd.distill(teacher, data=images, workdir=run.workdir, **TINY).metrics == run.metrics
    assert run.metrics["test_top1"] is None
    assert run.metrics["agreement"] is not None
    assert "agreement" in repr(run)
    assert "agreement" in str(run.report())
    with pytest.raises(kd.UserError, match="give labels"):
        kd.distill(teacher, data=images, workdir=tmp_path / "hinton", label_weight=0.5, **TINY)


def test_further_images_need_no_labels(digits, teacher, tmp_path):
    images, labels = digits
    run = kd.distill(
        teacher, data=(images[:200], labels[:200]), unlabelled=images[200:],
        workdir=tmp_path / "run", **TINY,
    )  # fmt: skip
    assert run.metrics["test_top1"] is not None
    assert run.metrics["epochs"] == pytest.approx(4 * 64 / (162 + 200), rel=1e-4)


def test_a_users_loss_trains_and_a_change_of_it_is_refused(digits, teacher, tmp_path):
    def squared(teacher_logits, student_logits):
        return jnp.mean((teacher_logits - student_logits) ** 2, axis=-1) / 2

    where = {"data": digits, "workdir": tmp_path / "run"}
    own = kd.distill(teacher, loss=squared, **where, **TINY)
    named = kd.distill(
        teacher, data=digits, workdir=tmp_path / "named", **TINY, distill__loss="squared_error"
    )
    losses = [
        [each["loss"] for each in run.history if each["kind"] == "train"] for run in (own, named)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)

    def squared(teacher_logits, student_logits):
        return jnp.mean((teacher_logits - student_logits) ** 2, axis=-1)

    with pytest.raises(kd.UserError, match="began with the loss squared"):
        kd.distill(teacher, loss=squared, **where, **TINY)


def test_a_loss_may_read_labels_and_must_be_one_number_an_example(digits, teacher, tmp_path):
    def with_labels(teacher_logits, student_logits, labels):
        return -jax.nn.log_softmax(student_logits)[jnp.arange(len(labels)), labels]

    run = kd.distill(teacher, data=digits, workdir=tmp_path / "a", loss=with_labels, **TINY)
    assert run.finished
    with pytest.raises(kd.UserError, match=r"returns an array of shape \(\)"):
        kd.distill(
            teacher, data=digits, workdir=tmp_path / "b", loss=lambda t, s: jnp.mean(t - s), **TINY
        )
    with pytest.raises(kd.UserError, match="loss= takes"):
        kd.distill(teacher, data=digits, workdir=tmp_path / "c", loss=lambda t: t, **TINY)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": np.zeros((4, 32, 32), np.uint8)}, "data has images of uint8 and shape"),
        ({"data": np.zeros((4, 32, 32, 3))}, "expected uint8"),
        ({"data": (np.zeros((4, 32, 32, 3), np.uint8), [0, 1, 2])}, "one for each image"),
        ({"data": (np.zeros((2, 32, 32, 3), np.uint8), [0, -1])}, "expected numbers from 0"),
        ({"data": "no_such_set"}, "no_such_set"),
        ({"data": "digits", "test": np.zeros((2, 32, 32, 3), np.uint8)}, "test= goes with data="),
        ({"student": "resnet9"}, "unknown architecture 'resnet9'"),
        ({"recipe": "funmach"}, "expected one of"),
        ({"recipe": "seed", "config": "configs/demo.py"}, "both given"),
        ({"temprature": 2}, "did you mean distill__temperature"),
        ({"normalisation": "half"}, "several fields"),
        ({"temperature": "hot"}, "expected a float"),
        ({"temperature": -1.0}, "config.distill.temperature is -1.0"),
        ({"teacher": 3}, "expected a path"),
        ({"callbacks": [print]}, "expected objects of kd_jax.Callback"),
        ({"class_names": list("0123456788")}, "9 of them different"),
        ({"teacher": linear}, "has no variables"),
        ({"teacher": "no/such/place"}, "no network at no/such/place"),
        ({"teacher": None}, "config.teacher.weights is empty"),
    ],
)
def test_wrong_inputs_are_one_sentence_and_leave_nothing(digits, teacher, tmp_path, changes, says):
    arguments = {"teacher": teacher, "data": digits, **TINY, **changes}
    with pytest.raises(kd.UserError, match=re.escape(says)):
        kd.distill(workdir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_other_data_and_another_teacher_are_refused_at_a_resume(run, digits, teacher):
    images, labels = digits
    where = dict(workdir=run[0].workdir, **TINY)
    with pytest.raises(kd.UserError, match="began on data with the fingerprint"):
        kd.distill(teacher, data=(images[::-1], labels), **where)
    other = kd.teacher(linear, {"kernel": np.zeros((32 * 32 * 3, 10), np.float32)})
    with pytest.raises(kd.UserError, match="it is another now"):
        kd.distill(other, data=digits, **where)


def test_every_field_has_a_keyword():
    for path in schema.BY_PATH:
        assert options.path_of(path.replace(".", "__")) == path
    assert options.path_of("temperature") == "distill.temperature"
    assert options.path_of("epochs") == "total_epochs"


def test_the_public_names_are_there_and_the_library_leaves_logging_as_it_is():
    for name in kd.__all__:
        assert getattr(kd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        kd.distil  # noqa: B018
    assert logger.level in (logging.NOTSET, logging.INFO, logging.WARNING)


class PlainNorms(nn.Module):
    """A student as anybody writes it: Flax's own norms and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (3, 3), 2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(10)(x)


def test_a_module_of_ones_own_is_a_student(digits, teacher, tmp_path):
    where = {**TINY, "student": PlainNorms()}
    run = kd.distill(teacher, data=digits, workdir=tmp_path / "run", **where)
    assert run.student(digits[0][:3]).shape == (3, 10)
    again = kd.load(run.workdir, PlainNorms())
    np.testing.assert_array_equal(again.student(digits[0][:3]), run.student(digits[0][:3]))
    with pytest.raises(
        kd.UserError, match=r"the module PlainNorms, which .*: give it again, kd_jax"
    ):
        kd.load(run.workdir).student  # noqa: B018
    for name, value in (("dropout", 0.5), ("student__weights", "somewhere")):
        with pytest.raises(kd.UserError, match="with a module from Python"):
            kd.distill(teacher, data=digits, workdir=tmp_path / "b", **{**where, name: value})


def test_an_nnx_module_is_a_student_and_an_edited_module_is_refused(digits, teacher, tmp_path):
    class Net(nnx.Module):
        def __init__(self, width):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, width, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    where = {**TINY, "data": digits, "workdir": tmp_path / "run", "num_devices": 2}
    run = kd.distill(teacher, **{**where, "student": Net(8)})
    assert run.student(digits[0][:3]).shape == (3, 10)

    class Net(nnx.Module):
        def __init__(self, width):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, width, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.silu(self.norm(self.conv(x))).mean((1, 2)))

    with pytest.raises(kd.UserError, match="began with the student Net"):
        kd.distill(teacher, **{**where, "student": Net(8)})


def test_what_is_not_given_is_the_configs(tmp_path, monkeypatch):
    """A config names data and student; no default of `distill` takes their place."""
    seen = {}
    monkeypatch.setattr(
        "kd_jax.training.train.train", lambda config, *others: seen.update(config=config)
    )
    config = f"{ROOT}/configs/demo.py:scratch"
    with pytest.raises(kd.UserError, match="no run in"):  # nothing was trained
        kd.distill(None, config=config, workdir=tmp_path / "run", epochs=3)
    assert seen["config"].dataset.name == "digits"
    assert seen["config"].student.arch == "mobilenet_v3_small"
    assert seen["config"].dataset.val_examples == 144
    assert seen["config"].total_epochs == 3.0


@pytest.mark.parametrize(("data", "name"), [
    ("cifar10:3.0.2", "cifar10:3.0.2"), ("set/config", "set/config"), ("digits", "digits"),
    ("there", "folder"), ("there/trian", "folder"), ("./nope", "folder"), ("~/nope", "folder"),
    (Path("nope"), "folder"), ("file.zip", "folder"),
])  # fmt: skip
def test_a_place_is_told_from_a_name_whether_it_is_there_or_not(data, name, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "file.zip").touch()
    monkeypatch.chdir(tmp_path)
    fields = data_lib.resolve(data, None, None, None, None, lambda shape: None).fields
    assert fields["dataset.name"] == name
    assert fields.get("dataset.data_dir", str(data)) == str(data)


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, 0.1), ({"config": "kd_jax:folder"}, 0.1), ({"val_examples": 7}, 7),
    ({"val_examples": 5000}, 5000), ({"config": f"{ROOT}/configs/demo.py"}, 144),
])  # fmt: skip
def test_of_a_folder_the_share_is_held_out_that_its_config_says(
    fields, expected, tmp_path, monkeypatch
):
    seen = {}
    monkeypatch.setattr(
        "kd_jax.training.train.train", lambda config, *others: seen.update(config=config)
    )
    with pytest.raises(kd.UserError, match="no run in"):  # nothing was trained
        kd.distill("runs/t", data=tmp_path, workdir=tmp_path / "run", **fields)
    assert seen["config"].dataset.name == "folder"
    assert seen["config"].dataset.val_examples == expected


def test_of_the_embedded_digits_few_are_held_out(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        "kd_jax.training.train.train", lambda config, *others: seen.update(config=config)
    )
    with pytest.raises(kd.UserError, match="no run in"):
        kd.distill("runs/t", data="digits", workdir=tmp_path / "run")
    assert seen["config"].dataset.val_examples == 144


@pytest.mark.parametrize("event", ["on_step", "on_evaluate", "on_checkpoint"])
def test_a_callback_that_stops_at_the_last_step_ends_no_process(digits, teacher, tmp_path, event):
    def stop(self, step, what):
        if step == 4:
            raise kd.StopTraining("near enough")

    last = type("Last", (kd.Callback,), {event: stop})
    run = kd.distill(teacher, data=digits, workdir=tmp_path / "run", callbacks=last(), **TINY)
    assert run.metrics["steps"] == 4


def test_probabilities_are_not_taken_for_logits(digits, teacher, tmp_path):
    softmax = kd.teacher(lambda v, x: jax.nn.softmax(linear(v, x)), teacher.network.variables,
                         name="softmax")  # fmt: skip
    with pytest.raises(kd.UserError, match="returns probabilities, expected logits"):
        kd.distill(softmax, data=digits, workdir=tmp_path / "run", **TINY)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_edited_module_is_not_loaded(digits, teacher, tmp_path):
    where = {**TINY, "student": PlainNorms()}
    run = kd.distill(teacher, data=digits, workdir=tmp_path / "run", **where)

    class PlainNorms2(PlainNorms):
        pass

    with pytest.raises(kd.UserError, match="is the module PlainNorms"):
        kd.load(run.workdir, PlainNorms2()).student  # noqa: B018


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (lambda t, s: s, 2),
        (lambda t, s, temperature=4.0: s, 2),
        (lambda t, s, labels: s, 3),
        (lambda t, s, labels=None: s, 3),
        (lambda t, s, y: s, 3),
    ],
)
def test_labels_go_only_where_they_are_asked_for(loss, count):
    assert distill_module._count_arguments(loss) == count


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": 64}, "config.dataset.image_size is 64"),
        ({"val_examples": 10}, "config.dataset.val_examples is 10"),
        ({"loss": lambda t, s: s[:, 0], "distill__loss": "dkd"}, "an object is given in its place"),
        ({"dataset__name": "digits"}, "an object is given in its place"),
        ({"epochs": 2}, "are both given"),
        ({"data": np.zeros((2, 32, 32, 3), np.uint8)}, "expected at least 3"),
        ({"teacher": None, "label_weight": 1.0, "test": np.zeros((9, 32, 32, 3), np.uint8)},
         "the test split has no labels"),
        ({"replay": "nowhere", "teacher": None}, "no recording in nowhere"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused(digits, teacher, tmp_path, changes, says):
    arguments = {"teacher": teacher, "data": digits, **TINY, **changes}
    with pytest.raises(kd.UserError, match=re.escape(says)):
        kd.distill(workdir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
