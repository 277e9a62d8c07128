"""The command: which network it takes, what it verifies, what it leaves, and what it refuses."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from helpers import run, tree_digest
from image_folders import make_folder
from kd_jax import models
from kd_jax.export import card as card_lib
from kd_jax.export import formats, latency, request, runtimes, source, stablehlo_file, verification
from kd_jax.export.exporter import MissedError
from kd_jax.export.request import Request
from kd_jax.inference import files
from kd_jax.runtime import atomic_files
from kd_jax.runtime.atomic_files import read_json, sha256_of
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.signals import StoppedError
from kd_jax.training import saved_student
from kd_jax.training.train import train
from kd_jax.weights import saved_network
from networks import golden
from tiny_runs import StopAfter, digits_config

IMAGES = 60


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a small network on the embedded images."""
    place = tmp_path_factory.mktemp("runs") / "finished"
    config = digits_config(1)
    config.learning_rate, config.mixup.kind = 3e-3, "none"
    train(config, place)
    return place


def export(workdir, format_name, out, **options):
    """Do what the command does, in this process."""
    return request.carry_out(Request(workdir, format_name, out, **options))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    monkeypatch.setattr(latency, "_FEWEST", 2)


def test_a_file_and_its_cards_say_what_the_run_measured(finished, tmp_path):
    before = tree_digest(finished)
    export(finished, "stablehlo", tmp_path / "x.stablehlo")
    assert {path.name for path in tmp_path.iterdir()} == {
        "x.stablehlo", "x.stablehlo.card.json", "x.stablehlo.card.md",
    }  # fmt: skip
    card = read_json(tmp_path / "x.stablehlo.card.json")
    result = read_json(finished / "result.json")
    assert card["file"]["sha256"] == sha256_of(tmp_path / "x.stablehlo")
    assert card["file"]["bytes"] == (tmp_path / "x.stablehlo").stat().st_size
    assert card["measures"]["top1"] == pytest.approx(result["test_top1"], abs=0.3)
    assert card["measures"]["network_top1"] == pytest.approx(result["test_top1"], abs=0.3)
    assert card["measures"]["largest_difference"] < 1e-4
    assert card["measures"]["same"] == 100
    assert card["network"]["params"] == result["params"]
    assert card["network"]["madds"] == result["madds"]
    assert card["dataset"]["verified"] == card["dataset"]["examples"] == 360
    assert list(card["per_class"]) == [str(digit) for digit in range(10)]
    fields = card["training"]["fields"]
    assert fields["dataset.name"] == "digits"
    assert fields["distill.label_weight"] == 1.0
    assert "num_devices" not in fields
    assert card["training"]["steps"] == result["steps"]
    assert card["training"]["fidelity"] is None  # it had no teacher
    assert set(card["latency"]["batches"]) == {"1", "32"}
    assert {"p50_ms", "p95_ms", "runs"} <= set(card["latency"]["batches"]["1"])
    assert card["latency"]["threads"] >= 1
    text = (tmp_path / "x.stablehlo.card.md").read_text()
    assert "distill.label_weight=1.0" in text
    assert f"{card['measures']['top1']:.2f}" in text
    assert "## Accuracy\nOn all 360 test images, by JAX" in text
    assert card["file"]["sha256"] in text
    assert tree_digest(finished) == before


def test_accuracy_by_class_averages_to_the_accuracy(finished, tmp_path):
    export(finished, "stablehlo", tmp_path / "x", images=IMAGES)
    card = read_json(tmp_path / "x.card.json")
    test = source.read(finished, None, None).dataset.test
    chosen = verification.stratified_indices(test.labels, IMAGES, seed=0)
    counts = np.bincount(test.labels[chosen])
    mean = np.average(list(card["per_class"].values()), weights=counts)
    assert mean == pytest.approx(card["measures"]["top1"], abs=1e-3)
    words = "60 of 360 test images, each class in proportion (--images), and not the whole test"
    assert words in card_lib.measured_on(card)
    assert f"## Accuracy\nOn {words}" in (tmp_path / "x.card.md").read_text()
    opened = files.open_file(tmp_path / "x", 1)
    assert opened.facts["top1_of"] == "measured on 60 of 360 test images"


def test_a_checkpoint_may_be_taken(finished, tmp_path):
    export(finished, "stablehlo", tmp_path / "x", checkpoint="last", images=IMAGES)
    card = read_json(tmp_path / "x.card.json")
    assert card["network"]["step"] == 30
    assert card["network"]["sha256"] == saved_network.load_card(finished).arrays_sha256


def test_a_run_may_find_its_data_elsewhere(finished):
    run, _, _ = saved_student.student(finished, "last", "elsewhere")
    assert run.config.dataset.data_dir == "elsewhere"


def test_a_stored_network_needs_no_run(finished, tmp_path):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / "network").mkdir(exist_ok=True)
        shutil.copy(finished / name, tmp_path / "network" / name)
    export(tmp_path / "network", "stablehlo", tmp_path / "x", images=IMAGES)
    card = read_json(tmp_path / "x.card.json")
    assert card["teacher"] is card["training"] is None
    assert card["dataset"]["name"] == "digits"


def test_a_card_names_the_teacher_of_the_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    certificate = {"arch": "resnet44", "sha256": "466747de", "top1": 71.63, "examples": 10_000}
    atomic_files.write_json(tmp_path / "run" / "teacher.json", certificate)
    result = read_json(tmp_path / "run" / "result.json")
    result |= {"agreement": 91.5, "agreement_top5": 99.25, "kl_to_teacher": 0.125}
    atomic_files.write_json(tmp_path / "run" / "result.json", result)
    export(tmp_path / "run", "stablehlo", tmp_path / "x", images=IMAGES)
    card = read_json(tmp_path / "x.card.json")
    assert card["teacher"] == certificate
    assert card["training"]["fidelity"]["kl_to_teacher"] == 0.125
    text = (tmp_path / "x.card.md").read_text()
    assert re.search(r"same class as the teacher %, whole test split +\| +\| +91.5 \|", text)
    assert "resnet44, sha256 466747de, 71.63 % top-1 on 10,000 test images" in text


def test_a_network_of_a_folder_is_verified_on_its_images(tmp_path, caplog):
    """Its classes are the folder's, in the order of the labels, as the network names none."""
    make_folder(tmp_path / "images", count=20, size=(40, 40), test=True)
    network = models.build("resnet8", 3, (0.5,) * 3, (0.25,) * 3)
    card = saved_network.ModelCard(
        "resnet8", 3, (32, 32, 3), network.mean, network.std, "folder", None, "a test", "0"
    )
    saved_network.save(tmp_path / "network", card, network.init(0, (32, 32, 3)))
    logger.propagate = True
    images = str(tmp_path / "images")
    export(tmp_path / "network", "stablehlo", tmp_path / "x", data_dir=images)
    described = read_json(tmp_path / "x.card.json")
    assert list(described["per_class"]) == described["class_names"] == ["ant", "bee", "über"]
    text = (tmp_path / "x.card.md").read_text()
    assert "The outputs in their order, from 0: 0 ant, 1 bee, 2 über." in text
    assert described["dataset"]["verified"] == 15
    assert described["input"] == "uint8 [n, 32, 32, 3], RGB, 0 to 255"
    assert "does not name its classes: its 3 outputs are taken for those of folder" in caplog.text


def test_all_formats_go_into_one_folder_and_what_cannot_be_is_named(finished, tmp_path):
    for entry in formats.FORMATS.values():
        for module in entry.packages:
            pytest.importorskip(module, reason="pip install 'kd_jax[export]'")
    cards, problems = export(finished, "all", tmp_path / "all")
    (problem,) = problems
    assert "tiny's arrays are not known" in problem
    files = {f"tiny{entry.suffix}" for name, entry in formats.FORMATS.items()
             if name != formats.ARRAYS}  # fmt: skip
    described = {f"{name}.card.{suffix}" for name in files for suffix in ("json", "md")}
    assert {path.name for path in (tmp_path / "all").iterdir()} == files | described
    assert {card["file"]["name"] for card in cards} == files
    for card in cards:
        assert card["measures"]["top1"] > card["measures"]["network_top1"] - 5


@pytest.mark.parametrize(("limits", "says"), [
    ({"probability": -1.0}, r"a probability differs by [\d.e-]+ from the network's"),
    ({"same": 100.5}, r"100.00 % of the images get the class that the network gives them"),
    ({"lost": -1.0}, r"its top-1 is [\d.]+ %, 0.00 points below the network's"),
])  # fmt: skip
def test_a_file_that_misses_its_tolerance_is_not_left(
    finished, tmp_path, monkeypatch, limits, says
):
    entry = formats.FORMATS["stablehlo"]
    strict = entry._replace(tolerance=entry.tolerance._replace(**limits))
    monkeypatch.setitem(formats.FORMATS, "stablehlo", strict)
    (tmp_path / "x").write_text("what was there before")
    with pytest.raises(MissedError, match=f"is not kept, because on {IMAGES} test images {says}"):
        export(finished, "stablehlo", tmp_path / "x", images=IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "what was there before"


def test_a_file_of_another_network_is_noticed(finished, tmp_path, monkeypatch):
    """The file is what is run, and not the network that it was made of."""
    other = source.read(finished, None, None)
    other.variables["params"]["fc"]["kernel"] *= -1
    content = stablehlo_file.content(other, "logits")
    monkeypatch.setattr(stablehlo_file, "content", lambda source, outputs: content)
    with pytest.raises(MissedError, match="a probability differs by"):
        export(finished, "stablehlo", tmp_path / "x", images=IMAGES)
    assert not list(tmp_path.iterdir())


def test_answers_that_are_not_finite_are_a_miss(finished, tmp_path, monkeypatch):
    nothing = lambda images: np.full((len(images), 10), np.nan, np.float32)  # noqa: E731
    program = runtimes.Program(nothing, (8, 8, 3), 10, "logits", {}, "")
    monkeypatch.setitem(runtimes.OPENERS, "stablehlo", lambda content, threads, name: program)
    with pytest.raises(MissedError, match="logits are not finite for 60 of 60 images"):
        export(finished, "stablehlo", tmp_path / "x", images=IMAGES)
    assert not list(tmp_path.iterdir())


def test_ties_have_no_order():
    logits = np.array([[2.0, 2.0 - 1e-6, 0], [3, 0, 0]], np.float32)
    expected = verification.Reference(np.zeros((2, 1, 1, 3), np.uint8), np.array([0, 0]), logits, 2)
    swapped = np.array([[2.0 - 1e-6, 2.0, 0], [0, 3, 0]], np.float32)
    measures = verification.measure(swapped, "logits", expected)
    assert measures["agreement"] == 0
    assert measures["same"] == 50


WRONG = {
    "unknown format": ({"format": "h5"}, r"--format=h5: expected one of safetensors, .*, all"),
    "no workdir": ({"workdir": ""}, "--workdir is missing"),
    "no format": ({"format": None}, "--format is missing: expected one of safetensors"),
    "no out": ({"out": ""}, "--out is missing"),
    "absent workdir": ({"workdir": "{tmp}/absent"}, "no directory .*absent"),
    "empty workdir": ({"workdir": "{tmp}"}, "holds no network: expected the workdir of a run"),
    "no image": ({"images": 0}, "--images=0: expected 1 or more"),
    "too many images": ({"images": 361}, "--images=361, but the test split of digits has 360"),
    "out is a directory": ({"out": "{tmp}"}, "is a directory: expected a file to write"),
    "out in no directory": ({"out": "{tmp}/absent/x"}, "absent is no directory: make it"),
    "out is not writable": ({"out": "/proc/x"}, "/proc cannot be written to"),
    "out is the network": (
        {"format": "stablehlo", "out": "{run}/model.safetensors"},
        "model.safetensors would take the place of a file in .*finished, which is read",
    ),
    "out of the data": (
        {"data_dir": "{run}/../finished", "out": "{run}/config.json"}, "would take the place of",
    ),
    "out of all is a file": (
        {"format": "all", "out": "{run}/config.json"}, "is a file: expected a directory",
    ),
    "weights have no outputs": (
        {"format": "safetensors", "outputs": "probabilities"}, "a file of weights has no outputs",
    ),
    "names that do not map": ({"format": "safetensors"}, "tiny's arrays are not known"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_leaves_nothing(name, finished, tmp_path):
    changes, says = WRONG[name]
    options = {"workdir": finished, "format": "stablehlo", "out": tmp_path / "x"} | {
        option: value.format(tmp=tmp_path, run=finished) if isinstance(value, str) else value
        for option, value in changes.items()
    }
    before = tree_digest(finished)
    with pytest.raises(UserError, match=says):
        request.carry_out(Request(**options))
    assert not list(tmp_path.iterdir())
    assert tree_digest(finished) == before


def test_an_unfinished_run_says_which_checkpoint_to_give(tmp_path):
    with pytest.raises(StoppedError):
        train(digits_config(1), tmp_path / "run", StopAfter(3))
    with pytest.raises(UserError, match=r"is not finished.*--checkpoint=best or --checkpoint=last"):
        export(tmp_path / "run", "stablehlo", tmp_path / "x")
    with pytest.raises(UserError, match="has no best checkpoint yet"):
        export(tmp_path / "run", "stablehlo", tmp_path / "x", checkpoint="best")
    export(tmp_path / "run", "stablehlo", tmp_path / "x", checkpoint="last", images=IMAGES)
    assert read_json(tmp_path / "x.card.json")["network"]["step"] == 3
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export(tmp_path / "run", "stablehlo", tmp_path / "y", checkpoint="last")


def test_a_network_without_a_run_has_no_checkpoints(tmp_path):
    given = golden("resnet8")
    saved_network.save(tmp_path / "network", given.card, given.variables)
    with pytest.raises(UserError, match=r"is no run .*leave --checkpoint out"):
        export(tmp_path / "network", "stablehlo", tmp_path / "x", checkpoint="last")


def test_a_network_that_is_not_in_the_zoo_is_refused(tmp_path):
    given = golden("resnet8")
    card = dataclasses.replace(given.card, arch="mine")
    saved_network.save(tmp_path / "network", card, given.variables)
    with pytest.raises(UserError, match=r"holds a network called mine, which is not in the zoo"):
        export(tmp_path / "network", "stablehlo", tmp_path / "x")


def test_data_that_was_given_from_python_is_not_there(tmp_path):
    given = golden("resnet8")
    card = dataclasses.replace(given.card, dataset="arrays")
    saved_network.save(tmp_path / "network", card, given.variables)
    with pytest.raises(UserError, match="learned from arrays that were given from Python"):
        export(tmp_path / "network", "stablehlo", tmp_path / "x")


def test_a_missing_data_set_says_what_to_set(tmp_path, monkeypatch):
    given = golden("resnet8")
    saved_network.save(tmp_path / "network", given.card, given.variables)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no data set cifar100 in .*--data_dir=DIR, or TFDS_DATA_"):
        export(tmp_path / "network", "stablehlo", tmp_path / "x")
    with pytest.raises(UserError, match=r"no data set cifar100 in .*network"):
        export(
            tmp_path / "network", "stablehlo", tmp_path / "x", data_dir=str(tmp_path / "network")
        )


def test_other_data_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    content = read_json(tmp_path / "run" / "model.json")
    fingerprint = content["certificate"]["data_fingerprint"]
    tested = content["certificate"]["test_fingerprint"]  # what a network alone is held to
    for name in ("model.json", "provenance.json"):
        path = tmp_path / "run" / name
        path.write_text(path.read_text().replace(fingerprint, "0123").replace(tested, "0123"))
    with pytest.raises(UserError, match="began on data with the fingerprint 0123"):
        export(tmp_path / "run", "stablehlo", tmp_path / "x")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot be verified on this digits .*fingerprint 0123"):
        export(tmp_path / "run", "stablehlo", tmp_path / "x")


def test_what_is_not_installed_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(formats, "_is_installed", lambda module: module != "onnxruntime")
    with pytest.raises(UserError, match=r"needs onnxruntime, not installed.*pip install 'kd_jax\["):
        formats.check_installed(formats.named("onnx"))
    with pytest.raises(UserError, match="--format=onnx needs onnxruntime"):
        formats.check_installed(formats.named("all"))
    formats.check_installed(formats.named("stablehlo"))


@pytest.mark.slow
def test_a_real_network_keeps_its_published_accuracy(teacher_dir, cifar100_dir, tmp_path):
    """ResNet44 of chenyaofo, in three formats, on a tenth of the test images."""
    from kd_jax.teachers import load

    path = teacher_dir / "cifar100_resnet44.pth"
    saved_network.save(tmp_path / "r44", *load.import_file("resnet44", path, "cifar100"))
    for name in ("safetensors", "stablehlo", "onnx"):
        for module in formats.FORMATS[name].packages:
            pytest.importorskip(module, reason="pip install 'kd_jax[export]'")
        export(tmp_path / "r44", name, tmp_path / name, images=1000, data_dir=str(cifar100_dir))
        card = json.loads((tmp_path / f"{name}.card.json").read_text())
        assert card["measures"]["same"] == 100
        assert card["measures"]["top1"] == pytest.approx(71.63, abs=4)
        assert "aquarium fish" in card["per_class"]


def test_the_command_prints_a_table_and_fails_with_a_sentence(tmp_path):
    config = ("--config=configs/demo.py:teacher", "--config.total_steps=2")
    done = run("kd_jax.main", *config, f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    asked = ("--format=safetensors", f"--out={tmp_path}/x", f"--workdir={tmp_path}/run")
    done = run("kd_jax.export", *asked, "--images=20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| file ")
    assert done.stdout.splitlines()[-1].startswith("Measured on 20 of 360 test images, each class")
    assert (tmp_path / "x.card.md").exists()
    done = run("kd_jax.export", *asked, "--images=400")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --images=400, but the test split")


def test_an_export_of_before_may_be_replaced_and_a_file_that_is_read_not(tmp_path):
    (tmp_path / "x.onnx").write_text("x")
    request._check_not_read(tmp_path / "x.onnx", [tmp_path / "elsewhere"])
    request._check_not_read(tmp_path / "y.onnx", [tmp_path])
    with pytest.raises(UserError, match=r"x\.onnx would take the place of a file in"):
        request._check_not_read(tmp_path / "x.onnx", [tmp_path])
    (tmp_path / "x.onnx.card.json").write_text("{}")
    request._check_not_read(tmp_path / "x.onnx", [tmp_path])
