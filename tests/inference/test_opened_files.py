"""Exported files are opened by their own runtimes, with their names, or refused in a sentence."""

import dataclasses
import hashlib
import io
import json
import shutil
import sys
import zipfile

import numpy as np
import pytest

from kd_jax import models
from kd_jax.export import exporter, formats, function, latency, runtimes, verification
from kd_jax.inference import cards, files, opening
from kd_jax.inference.classifier import Classifier, why_not_comparable
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.weights import saved_network
from networks import SHAPE, noise, of_network
from tiny_runs import digits_config  # noqa: F401, `tiny` is in the zoo for files that have it

NAMES = tuple(f"class {number}" for number in range(100))
RUNTIMES = {"onnx": "onnxruntime", "tflite": "tensorflow", "stablehlo": "flatbuffers"}


@pytest.fixture(scope="module")
def source():
    network = models.build("tiny", 100, (0.5,) * 3, (0.25,) * 3)
    return of_network(network, network.init(0, SHAPE), NAMES)


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """A folder of files with their cards, as `--format=all` leaves it."""
    place = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_SECONDS", 0.0)
        patch.setattr(latency, "_FEWEST", 2)
        expected = verification.reference(source, None)
        for name, module in RUNTIMES.items():
            pytest.importorskip(module, reason="pip install 'kd_jax[export]'")
            path = place / f"tiny{formats.FORMATS[name].suffix}"
            outputs = "probabilities" if name == "onnx" else "logits"
            exporter.export(source, formats.FORMATS[name], outputs, expected, path)
    return place


def copied(exported, suffix, place, *, with_card=True):
    """Return a copy of a file, with its card or without."""
    shutil.copy(exported / f"tiny{suffix}", place)
    if with_card:
        shutil.copy(exported / f"tiny{suffix}.card.json", place)
    return place / f"tiny{suffix}"


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("with_card", [True, False])
@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".stablehlo"])
def test_a_file_answers_as_the_network_that_it_was_made_of(
    suffix, with_card, exported, source, tmp_path, caplog
):
    logger.propagate = True
    path = copied(exported, suffix, tmp_path, with_card=with_card)
    network = files.open_file(path, 1)
    assert network.image_shape == SHAPE
    assert network.num_classes == 100
    has_names = with_card or suffix != ".stablehlo"  # whose format has no place for them
    assert network.class_names == (NAMES if has_names else None)
    assert ("holds no names of classes, and no card" in caplog.text) != has_names
    assert (network.facts["top1"] is None) != with_card
    images = noise(5).images
    logits = function.student_logits(source.network, source.variables, images)
    np.testing.assert_allclose(network.probabilities(images), softmax(logits), atol=1e-5)


def test_a_file_of_weights_is_run_by_the_importer(tmp_path):
    from kd_jax.export import pytorch_file

    network = models.build("resnet8", 100, (0.5,) * 3, (0.25,) * 3)
    source = of_network(network, network.init(0, SHAPE), NAMES)
    path = tmp_path / "x.safetensors"
    path.write_bytes(pytorch_file.content(source, "logits"))
    opened = files.open_file(path, 1)
    assert opened.class_names == NAMES
    images = noise(2).images
    logits = function.student_logits(source.network, source.variables, images)
    np.testing.assert_allclose(opened.probabilities(images), softmax(logits), atol=1e-5)


def test_a_card_that_tells_of_another_file_is_refused(exported, tmp_path):
    path = copied(exported, ".onnx", tmp_path)
    card = tmp_path / "tiny.onnx.card.json"
    content = json.loads(card.read_text())
    content["file"]["sha256"] = "0" * 64
    card.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is not the file that the card beside it describes"):
        files.open_file(path, 1)


@pytest.mark.parametrize("text", ["no JSON", "[]", "3", "null", "[" * 100_000, "{}"])
def test_what_is_no_card_is_refused(text, tmp_path):
    (tmp_path / "x.onnx.card.json").write_text(text)
    with pytest.raises(UserError, match="is not the card of an exported file") as raised:
        cards.beside(tmp_path / "x.onnx", b"content")
    assert "\n" not in str(raised.value)


CARD = {
    "file": {"sha256": hashlib.sha256(b"content").hexdigest(), "format": "onnx"},
    "outputs": "logits, float32 [n, 2]",
    "class_names": ["ant", "bee"],
    "network": {"arch": "resnet8", "params": 80_000},
    "dataset": {"verified": 60, "examples": 360},
    "measures": {"top1": 90},
}


def test_a_card_says_what_its_accuracy_is_of(tmp_path):
    place = tmp_path / "x.onnx.card.json"
    place.write_text(json.dumps(CARD))
    assert cards.beside(tmp_path / "x.onnx", b"content") == cards.Card(
        "onnx", "logits", ("ant", "bee"), "resnet8", 80_000, 90, "measured on 60 of 360 test images"
    )
    whole = CARD | {"dataset": {"verified": 360, "examples": 360}}
    place.write_text(json.dumps(whole))
    found = cards.beside(tmp_path / "x.onnx", b"content")
    assert found.top1_of == "measured on all 360 test images"
    place.write_text(json.dumps(CARD | {"dataset": None}))
    assert cards.beside(tmp_path / "x.onnx", b"content").top1_of is None
    assert cards.beside(tmp_path / "y.onnx", b"content") is None


@pytest.mark.parametrize(("part", "name", "value"), [
    ("class_names", None, "ant"), ("class_names", None, ["ant", 2]), ("class_names", None, 2),
    ("file", "format", ["onnx"]), ("file", "format", "onyx"), ("file", "sha256", 1),
    ("file", None, 3), ("network", None, []), ("network", "arch", {}), ("measures", None, "90"),
    ("network", "params", "many"), ("network", "params", True), ("measures", "top1", "90"),
    ("measures", "top1", float("nan")), ("measures", "top1", 900), ("outputs", None, 1),
    ("dataset", "verified", "60"), ("dataset", None, "digits"),
])  # fmt: skip
def test_a_card_with_a_wrong_field_is_one_sentence(part, name, value, tmp_path):
    wrong = json.loads(json.dumps(CARD))
    if name is None:
        wrong[part] = value
    else:
        wrong[part][name] = value
    (tmp_path / "x.onnx.card.json").write_text(json.dumps(wrong))
    says = rf"is not the card of an exported file \(.*{name or part}.*expected"
    with pytest.raises(UserError, match=says) as raised:
        cards.beside(tmp_path / "x.onnx", b"content")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["file", "class_names", "network", "measures"])
def test_a_card_without_a_part_is_refused(missing, tmp_path):
    wrong = {name: value for name, value in CARD.items() if name != missing}
    (tmp_path / "x.onnx.card.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=f"is not the card of an exported file .*{missing}"):
        cards.beside(tmp_path / "x.onnx", b"content")


@pytest.mark.parametrize("text", ["ant", '"ant"', '["ant", 2]', "3", "{}"])
def test_names_inside_that_are_no_names_are_refused(text):
    with pytest.raises(UserError, match="as the names of its classes, expected a list of texts"):
        files._names_inside({"class_names": text}, "x.onnx")
    assert files._names_inside({"class_names": '["ant"]'}, "x.onnx") == ("ant",)
    for texts in ({}, {"class_names": "null"}):
        assert files._names_inside(texts, "x.onnx") is None


@pytest.mark.parametrize("facts", [b"[1]", b"no JSON", b'{"arch": 3}'])
def test_a_damaged_archive_of_a_file_is_refused(facts):
    assert runtimes._texts_of_archive(b"no archive") == {}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(runtimes.FACTS_FILE, facts)
    with pytest.raises(ValueError, match=r"."):
        runtimes._texts_of_archive(archive.getvalue())


@pytest.mark.parametrize(("name", "content", "says"), [
    ("x.onnx", b"no model", "x.onnx cannot be opened as onnx"),
    ("x.tflite", b"no model at all, but longer", "x.tflite cannot be opened as tflite"),
    ("x.stablehlo", b"no program at all", "x.stablehlo cannot be opened as stablehlo"),
    ("x.safetensors", b"no arrays", "x.safetensors cannot be opened as pytorch"),
    ("x.pth", b"no arrays", "is not known to be an exported file: expected the workdir of a run"),
    ("x.onnx", b"", "x.onnx cannot be opened as onnx"),
])  # fmt: skip
def test_what_is_no_exported_file_is_one_sentence(name, content, says, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'kd_jax[export]'")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as raised:
        files.open_file(tmp_path / name, 1)
    assert "\n" not in str(raised.value)


def test_a_cut_file_is_refused(exported, tmp_path):
    for suffix in (".onnx", ".tflite", ".stablehlo"):
        path = copied(exported, suffix, tmp_path, with_card=False)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
        with pytest.raises(UserError, match=f"tiny{suffix} cannot be opened"):
            files.open_file(path, 1)


def test_a_graph_of_others_is_refused_by_its_input(tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install 'kd_jax[export]'")
    from onnx import TensorProto, helper

    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"other.onnx takes float32 \[1, 3, 8, 8\] and returns"):
        files.open_file(tmp_path / "other.onnx", 1)


def test_a_runtime_that_is_missing_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"runtime that is not installed here .*onnxruntime.*pip"):
        files.open_file(exported / "tiny.onnx", 1)


def test_of_a_folder_the_first_file_that_runs_here_is_taken(
    exported, tmp_path, monkeypatch, caplog
):
    logger.propagate = True
    place = tmp_path / "all"
    shutil.copytree(exported, place)
    (place / "tiny-int8.tflite").write_bytes(b"is not looked at")
    assert files.open_folder(place, 1).name == "tiny.tflite"
    with monkeypatch.context() as patch:
        for module in ("ai_edge_litert", "ai_edge_litert.interpreter", "tensorflow"):
            patch.setitem(sys.modules, module, None)
        assert files.open_folder(place, 1).name == "tiny.onnx"
        assert "passed over: " in caplog.text
        assert "tiny.tflite needs a runtime that is not installed here" in caplog.text
        patch.setitem(sys.modules, "onnxruntime", None)
        patch.setitem(sys.modules, "jax.export", None)
        with pytest.raises(UserError, match=r"no file in .* can be run: .*tiny.tflite needs a"):
            files.open_folder(place, 1)
    (place / "tiny.tflite.card.json").unlink()
    (place / "tiny.tflite").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"tiny.tflite cannot be opened as tflite"):
        files.open_folder(place, 1)
    (place / "other.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds files of several networks \(other, tiny\): name"):
        files.open_folder(place, 1)


def test_a_teacher_may_be_any_place(exported, source, tmp_path):
    saved_network.save(tmp_path / "network", source.card, source.variables)
    opened = opening.classifiers(exported / "tiny.onnx", teacher=tmp_path / "network")
    student, teacher = opened["student"], opened["teacher"]
    images = noise(3).images
    np.testing.assert_allclose(
        student.probabilities(images), teacher.probabilities(images), atol=1e-5
    )
    opened = opening.classifiers(tmp_path / "network", teacher=str(exported / "tiny.stablehlo"))
    assert [network.name for network in opened.values()] == ["tiny", "tiny.stablehlo"]


@pytest.mark.parametrize(("options", "says"), [
    ({"teacher": "own"}, "is no run, so its teacher is not known: name it, --compare=PLACE"),
    ({"checkpoint": "best"}, "--checkpoint=best, but .*tiny.onnx is no run"),
    ({"teacher": "absent"}, "--compare=absent is not there: expected the workdir of a run"),
    ({"teacher": "tests"}, "is not the card of a stored network"),
])  # fmt: skip
def test_what_a_file_cannot_tell_is_one_sentence(options, says, exported):
    with pytest.raises(UserError, match=says):
        opening.classifiers(exported / "tiny.onnx", **options)


def of(call, classes=3, names=None, outputs="logits"):
    return Classifier("x", "a test", (1, 1, 3), classes, names, call, outputs)


IMAGES = np.zeros((2, 1, 1, 3), np.uint8)


@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (2, 3, 1), (6,), ()])
def test_answers_of_another_form_are_refused(shape):
    with pytest.raises(UserError, match=r"x returns \[.*\] for 2 images, expected \[2, 3\]"):
        of(lambda images: np.zeros(shape, np.float32)).probabilities(IMAGES)


def test_probabilities_of_many_classes_may_all_be_rounded_to_nothing():
    """As an int8 file rounds the even answer of a thousand classes: each to a 256th."""
    many = dataclasses.replace(
        of(lambda images: np.zeros((2, 1000), np.float32)),
        num_classes=1000,
        outputs="probabilities",
    )
    assert many.probabilities(IMAGES).shape == (2, 1000)


def test_what_is_said_to_be_probabilities_must_be_some():
    for numbers in ([9, -3, 1], [5, 4, 3], [0, 0, 0]):
        answers = np.array([numbers] * 2, np.float32)
        with pytest.raises(UserError, match="x is said to return probabilities, and returns"):
            of(lambda images, answers=answers: answers, outputs="probabilities").probabilities(
                IMAGES
            )
    rounded = np.array([[0.5, 0.25, 0.2]] * 2, np.float32)  # as int8 has them
    found = of(lambda images: rounded, outputs="probabilities").probabilities(IMAGES)
    np.testing.assert_array_equal(found, rounded)


def test_a_runtime_that_fails_is_one_sentence(monkeypatch):
    def fails(images):
        raise RuntimeError("node 3\nfailed")

    program = runtimes.Program(fails, (1, 1, 3), 3, "logits", {}, "A Runtime")
    monkeypatch.setitem(runtimes.OPENERS, "onnx", lambda content, threads, name: program)
    call = runtimes.opened("onnx", b"", 1, "x.onnx").call
    with pytest.raises(UserError, match=r"x.onnx fails in A Runtime \(RuntimeError: node 3 failed"):
        call(IMAGES)


@pytest.mark.parametrize(("sizes", "names", "says"), [
    ((3, 3), (None, None), None), ((3, 3), (("a", "b", "c"), None), None),
    ((3, 2), (("a", "b", "c"), ("b", "d")), None),
    ((3, 2), (("a", "b", "c"), None), "3 and 2 classes, and not all of them name theirs"),
    ((3, 2), (None, None), "3 and 2 classes"),
    ((2, 2), (("a", "b"), ("c", "d")), "no name of a class in common"),
])  # fmt: skip
def test_networks_of_different_classes_are_not_comparable(sizes, names, says):
    reason = why_not_comparable([of(None, *each) for each in zip(sizes, names, strict=True)])
    assert reason is None if says is None else says in reason


def test_a_program_that_calls_functions_from_outside_is_not_run():
    export = pytest.importorskip("jax.export")
    import jax
    import jax.numpy as jnp

    def logits(images):
        flat = images.astype(jnp.float32).reshape(-1, 3)
        return flat @ jnp.linalg.eigh(flat.T @ flat)[1]  # by LAPACK

    given = jax.ShapeDtypeStruct((2, 1, 1, 3), np.uint8)
    content = export.export(jax.jit(logits), platforms=["cpu"])(given).serialize()
    with pytest.raises(UserError, match=r"x calls functions from outside of it \(lapack_ssyevd"):
        runtimes.opened("stablehlo", bytes(content), 1, "x")
