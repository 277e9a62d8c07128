"""The usual mistakes about a teacher's input are found, and nothing is named without evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax as kd
from kd_jax.config import default_config
from kd_jax.data import catalog, sources
from kd_jax.models.function_network import FunctionNetwork
from kd_jax.models.preprocessing import Preprocessing
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import foreign
from kd_jax.teachers.teacher import Teacher
from kd_jax.training import input_search, setup, teacher_check
from kd_jax.training.evaluator import Evaluator
from kd_jax.weights import saved_network

COUNT = 600


def colours():
    """Return images of one colour each, and which of their channels is neither dark nor bright."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, COUNT)
    images = rng.choice([20, 60, 200, 240], (COUNT, 1, 1, 3)).astype(np.uint8)
    images[np.arange(COUNT), 0, 0, labels] = 128
    return np.broadcast_to(images, (COUNT, 8, 8, 3)).copy(), labels


def thresholds(normalisation, channels="rgb"):
    """Return a teacher that is right only where its input is normalised as it expects.

    It is given cifar100's normalisation.
    """
    mean, std = (np.float32(each) for each in catalog.NORMALISATIONS[normalisation])

    def apply(variables, x):
        x = x[..., ::-1] if channels == "bgr" else x
        pixels = (x * std + mean).mean((1, 2))
        return -jnp.abs(pixels - 128 / 255)

    preprocessing = Preprocessing(*catalog.NORMALISATIONS["cifar100"])
    card = saved_network.ModelCard(
        "python:thresholds", 3, (8, 8, 3), preprocessing.mean, preprocessing.std, "arrays", None,
        "a test", "",
    )  # fmt: skip
    return Teacher(card, FunctionNetwork(card.arch, apply, preprocessing), (), foreign=object())


@pytest.mark.parametrize(("normalisation", "channels"), [("byte", "rgb"), ("unit", "bgr")])
def test_a_mistaken_input_is_named(normalisation, channels):
    images, labels = colours()
    sentence, candidates = input_search.advise(thresholds(normalisation, channels), images, labels)
    assert len(candidates) >= 6
    assert candidates[0].normalisation == "now"
    assert candidates[0].top1 < 60
    perfect = [each for each in candidates if each.top1 == 100.0]
    assert (normalisation, channels) in [each[:2] for each in perfect]
    best = candidates[1]
    assert best in perfect
    say = f"say config.teacher.normalisation={best.normalisation}"
    say += " and config.teacher.channels=bgr" if channels == "bgr" else ""
    assert sentence.endswith(say)


def framed(crop, normalisation="cifar100"):
    """Return a teacher of 32-pixel images that reads only their first row."""
    mean, std = (np.float32(each) for each in catalog.NORMALISATIONS[normalisation])

    def apply(variables, x):
        row = (x * std + mean)[:, 0]
        return -jnp.abs(row.mean(1) - 128 / 255)

    preprocessing = Preprocessing(*catalog.NORMALISATIONS["cifar100"], "rgb", 32, crop)
    card = saved_network.ModelCard(
        "python:framed", 3, (64, 64, 3), preprocessing.mean, preprocessing.std, "arrays", None,
        "a test", "",
    )  # fmt: skip
    return Teacher(card, FunctionNetwork(card.arch, apply, preprocessing), (), foreign=object())


@pytest.mark.parametrize(("now", "other", "border"), [(0.0, 0.875, 1), (0.875, 0.0, 0)])
@pytest.mark.parametrize("normalisation", ["cifar100", "byte"])
def test_another_way_to_the_input_size_is_named(now, other, border, normalisation):
    """Whose label is at the edge sees it only in the whole image, whose is within in the crop."""
    centre, labels = colours()
    images = np.tile(centre, (1, 8, 8, 1))
    noise = np.random.default_rng(2).choice([20, 240], images.shape).astype(np.uint8)
    inside = np.zeros((1, 64, 64, 1), bool)
    inside[:, 3:-3, 3:-3] = True
    images[::2] = np.where(inside == bool(border), images, noise)[::2]  # not all, as in life
    sentence, candidates = input_search.advise(framed(now, normalisation), images, labels)
    assert len(candidates) == 12 + 2
    assert sentence.endswith(f"config.teacher.crop_fraction={other:g}")
    assert ("normalisation=byte and" in sentence) == (normalisation == "byte")
    assert {each.crop_fraction for each in candidates} == {now, other}


def test_where_nothing_is_better_nothing_is_named():
    images, labels = colours()
    sentence, candidates = input_search.advise(thresholds("cifar100"), images, labels)
    assert sentence == ""
    assert candidates[0].top1 == 100.0
    random = np.random.default_rng(1).integers(0, 3, COUNT)
    assert input_search.advise(thresholds("imagenet"), images, random)[0] == ""
    assert input_search.advise(thresholds("imagenet"), images[:50], labels[:50]) == ("", [])


def test_random_weights_get_no_advice_and_the_certificate_has_what_was_tried(tmp_path, caplog):
    assert len(jax.devices()) == 4
    logger.propagate = True
    whole = sources.digits()
    kernel = np.random.default_rng(0).normal(0, 1, (3072, 10)).astype(np.float32)
    teacher = kd.teacher(lambda v, x: x.reshape(len(x), -1) @ v, kernel, name="random")
    with caplog.at_level("INFO", "kd_jax"):
        run = kd.distill(
            teacher, "resnet8", (whole.train.images, whole.train.labels), workdir=tmp_path / "run",
            steps=1, batch_size=32, num_devices=1, progress_line=False,
        )  # fmt: skip
    tried = run.certificate["normalisations_tried"]
    assert len(tried) == 12 + 1
    assert not any(each["is_better"] for each in tried)
    assert "say config.teacher" not in caplog.text
    assert "random on 143 test images" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "half"),
    [("resnet44", 61.65), pytest.param("resnet56", None, marks=pytest.mark.proof)],
)
def test_the_studys_second_fault_is_found_by_machine(
    arch, half, cifar100_dir, teacher_dir, tmp_path
):
    """Under mean 0.5 both published networks lose ten points: their own normalisation is named."""
    config = default_config()
    config.dataset.data_dir = str(cifar100_dir)
    config.teacher.arch = arch
    config.teacher.weights = str(teacher_dir / f"cifar100_{arch}.pth")
    config.teacher.normalisation = "half"
    run = setup.build(config)
    with pytest.raises(UserError, match="normalisation=cifar100"):
        teacher_check.certify(run, Evaluator(run), tmp_path)
    config.teacher.on_mismatch = "warn"
    measured = teacher_check.certify(setup.build(config), Evaluator(run), tmp_path)
    names = [each["normalisation"] for each in measured["normalisations_tried"]]
    assert names[:2] == ["now", "cifar100"]
    assert len(names) >= 6
    if half:
        assert measured["top1"] == pytest.approx(half, abs=0.02)


def test_names_of_libraries_and_of_normalisations_are_those_of_the_config():
    from kd_jax import config as config_lib

    assert set(config_lib.choices("teacher.normalisation")) == {"own", *catalog.NORMALISATIONS}
    assert set(foreign.PACKAGES) == {"torch", "timm", "torchvision", "onnx", "keras"}
