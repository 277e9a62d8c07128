"""What a finished run gives from Python: its answers to any images, and files for others."""

import json

import numpy as np
import pytest
from PIL import Image

import kd_jax as kd
from kd_jax import config as config_lib
from kd_jax import models
from kd_jax.export import latency
from kd_jax.runtime.atomic_files import read_json, write_json
from kd_jax.runtime.console import logger
from kd_jax.weights import saved_network
from tiny_runs import digits_config

SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory as a finished run leaves it, without the training."""
    place = tmp_path_factory.mktemp("runs") / "finished"
    config = digits_config(1)
    network = models.build("tiny", 10, (0.5,) * 3, (0.25,) * 3)
    card = saved_network.ModelCard(
        "tiny", 10, SHAPE, network.mean, network.std, "digits", None, "a test", "0",
        class_names=tuple("0123456789"),
    )  # fmt: skip
    saved_network.save(place, card, network.init(0, SHAPE))
    (place / "config.json").write_text(config_lib.to_json(config))
    write_json(place / "result.json", {"test_top1": 10.0})
    return kd.load(place)


def images(count, size=SHAPE):
    return np.random.default_rng(0).integers(0, 256, (count, *size), np.uint8)


def test_a_student_predicts_what_its_logits_say(run):
    given = images(3)
    predictions = run.student.predict(given, top=10)
    assert [prediction.image for prediction in predictions] == [0, 1, 2]
    logits = run.student(given).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, prediction in zip(expected, predictions, strict=True):
        found = {choice.label: choice.probability for choice in prediction.top}
        np.testing.assert_allclose([found[n] for n in range(10)], row, rtol=1e-6)
        assert [c.label for c in prediction.top] == np.argsort(-row, kind="stable").tolist()
        assert all(choice.name == str(choice.label) for choice in prediction.top)
    assert [len(prediction.top) for prediction in run.student.predict(given)] == [5, 5, 5]


def test_files_folders_and_arrays_of_any_size_are_the_same_images(run, tmp_path):
    large = images(2, (20, 30, 3))
    for number, pixels in enumerate(large):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    of_folder = run.student.predict(tmp_path)
    assert [each.image for each in of_folder] == [f"{tmp_path}/0.png", f"{tmp_path}/1.png"]
    of_files = run.student.predict([tmp_path / "0.png", str(tmp_path / "1.png")])
    assert of_files == of_folder
    assert [each.top for each in run.student.predict(large)] == [each.top for each in of_folder]
    assert run.student.predict(images(0)) == run.student.predict([]) == []
    assert run.student(images(0)).shape == (0, 10)


@pytest.mark.parametrize(("given", "options", "says"), [
    ("absent.png", {}, "there is no absent.png: expected an image"),
    (["README.md"], {}, "README.md cannot be read as an image"),
    (images(2)[0], {}, r"the images are uint8 of shape \(32, 32, 3\): expected paths, or uint8"),
    (images(2) / 255, {}, r"the images are float64 of shape \(2, 32, 32, 3\)"),
    (images(1), {"top": 0}, "top=0: expected 1 or more"),
])  # fmt: skip
def test_wrong_images_are_one_sentence(given, options, says, run):
    with pytest.raises(kd.UserError, match=says):
        run.student.predict(given, **options)


def test_a_run_is_exported_with_its_card(run, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(latency, "_FEWEST", 2)
    (card,) = run.export("stablehlo", tmp_path / "x.stablehlo", images=40)
    assert card == json.loads((tmp_path / "x.stablehlo.card.json").read_text())
    assert card["network"]["sha256"] == read_json(run.workdir / "model.json")["arrays_sha256"]
    assert card["measures"]["same"] == 100


def test_of_all_formats_those_that_cannot_be_are_told(run, tmp_path, monkeypatch, caplog):
    from kd_jax.api import run as run_module

    logger.propagate = True
    monkeypatch.setattr(run_module.request, "carry_out", lambda given: ([{"of": given}], ["no."]))
    (card,) = run.export("all", tmp_path / "all", checkpoint="best", data_dir=tmp_path)
    asked = card["of"]
    assert (asked.workdir, asked.format, asked.checkpoint) == (run.workdir, "all", "best")
    assert asked.data_dir == str(tmp_path)
    assert "not written: no." in caplog.text


@pytest.mark.parametrize(("options", "says"), [
    ({"format": "h5"}, "h5: expected one of safetensors"),
    ({"checkpoint": "bset"}, "checkpoint=bset: expected last or best"),
    ({"outputs": "probs"}, "outputs=probs: expected logits or probabilities"),
    ({"images": 0}, "images=0: expected 1 or more"),
    ({"out": "absent/x"}, "absent is no directory: make it"),
    ({"checkpoint": "last"}, "has no checkpoint yet"),
])  # fmt: skip
def test_a_wrong_export_is_one_sentence(options, says, run, tmp_path):
    given = {"format": "stablehlo", "out": tmp_path / "x"} | options
    with pytest.raises(kd.UserError, match=says):
        run.export(given.pop("format"), given.pop("out"), **given)
    assert not list(tmp_path.iterdir())


def test_a_module_of_ones_own_is_not_exported(run, tmp_path):
    with pytest.raises(kd.UserError, match="only networks of the zoo are exported"):
        kd.load(run.workdir, object()).export("onnx", tmp_path / "x")
