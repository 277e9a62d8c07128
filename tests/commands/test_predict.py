"""`kd_jax.predict` as people use it: a table, JSON lines, and a sentence for what is wrong."""

import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

import networks
from helpers import command, run, tree_digest
from kd_jax import models
from kd_jax.export import onnx_file
from kd_jax.weights import saved_network

NAMES = ("ant", "bee", "maple tree", "über", "ox", "yak")
SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with the two files of a network."""
    directory = tmp_path_factory.mktemp("stored") / "a network"
    network = models.build("resnet8", len(NAMES), (0.5,) * 3, (0.25,) * 3)
    card = saved_network.ModelCard(
        "resnet8", len(NAMES), SHAPE, network.mean, network.std, "folder", 90.0, "a run", "0" * 64,
        class_names=NAMES,
    )  # fmt: skip
    saved_network.save(directory, card, network.init(0, SHAPE))
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder as people have it; two of its files cannot be read."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("ä b.png", "c.jpg", "e.webp", "sub/f.png")):
        (root / name).parent.mkdir(exist_ok=True)
        size = (40 + 9 * number, 70 - 9 * number, 4 if name.endswith("png") else 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(root / name)
    (root / "b.png").write_bytes(b"no image")
    (root / "d.png").write_bytes((root / "ä b.png").read_bytes()[:300])
    (root / "notes.txt").write_text("no image")
    return root


def test_a_folder_is_answered_whole_and_what_cannot_be_read_is_told(model, images):
    before = tree_digest(model)
    done = run("kd_jax.predict", f"--model={model}", images, "--json", "--top=3")
    assert done.returncode == 2
    records = [json.loads(line) for line in done.stdout.splitlines()]
    names = [record["image"].removeprefix(f"{images}/") for record in records]
    assert names == ["b.png", "c.jpg", "d.png", "e.webp", "sub/f.png", "ä b.png"]
    assert [name for name, record in zip(names, records, strict=True) if "error" in record] == [
        "b.png",
        "d.png",
    ]
    sentences = re.findall(r"^error: (.*)$", done.stderr, re.MULTILINE)
    assert sentences == [record["error"] for record in records if "error" in record]
    assert all("cannot be read as an image" in sentence for sentence in sentences)
    assert "was kept, 90.00 % top-1 (claimed, not measured)" in done.stderr
    assert "passed over" in done.stderr
    for record in records:
        if "error" in record:
            continue
        top = record["top"]
        assert len(top) == 3
        assert all(NAMES[choice["label"]] == choice["name"] for choice in top)
        values = [choice["probability"] for choice in top]
        assert values == sorted(values, reverse=True)
        assert 1 / len(NAMES) <= values[0]
        assert sum(values) <= 1 + 1e-5
        assert record["checkpoint"] == "kept"
    assert tree_digest(model) == before


def test_the_table_says_the_same_as_the_json(model, images):
    chosen = [images / "c.jpg", images / "ä b.png"]
    table = run("kd_jax.predict", f"--model={model}", *chosen, "--top=99")
    assert table.returncode == 0, table.stderr
    lines = run("kd_jax.predict", f"--model={model}", *chosen, "--json", "--top=99")
    records = [json.loads(line) for line in lines.stdout.splitlines()]
    head, rule, *rows = table.stdout.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["image", "class", "%"]
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    expected = []
    for path, record in zip(chosen, records, strict=True):
        for rank, choice in enumerate(record["top"]):
            name = str(path) if rank == 0 else ""
            expected.append([name, choice["name"], f"{100 * choice['probability']:.2f}"])
    found = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert float(row[2]) == pytest.approx(float(other[2]), abs=0.011)
    assert len(rows) == 2 * len(NAMES)


def test_a_file_is_shown_beside_the_network_that_it_was_made_of(model, images, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'kd_jax[export]'")
    card, variables = saved_network.load(model)
    source = networks.of_network(card.network(), variables, NAMES)
    (tmp_path / "x.onnx").write_bytes(onnx_file.content(source, "logits"))
    picture = tmp_path / "answers.png"
    done = run(
        "kd_jax.predict", f"--model={tmp_path}/x.onnx", f"--compare={model}", "--json",
        f"--picture={picture}", images / "c.jpg", images / "ä b.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "choose the same class for 2 of 2" in done.stderr
    for line in done.stdout.splitlines():
        record = json.loads(line)
        assert record["model"] == f"{tmp_path}/x.onnx"
        for own, teacher in zip(record["top"], record["teacher_top"], strict=True):
            assert own["name"] == teacher["name"]
            assert own["probability"] == pytest.approx(teacher["probability"], abs=1e-4)
    with Image.open(picture) as drawn:
        assert drawn.width > 1000
        assert drawn.convert("L").getextrema() == (0, 255)


def test_where_no_image_can_be_read_each_still_has_its_line_of_json(model, images):
    done = run("kd_jax.predict", f"--model={model}", images / "b.png", "--json")
    assert done.returncode == 2
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["image"].endswith("b.png")
    assert record["error"] in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(model, images):
    process = subprocess.Popen(
        **command("kd_jax.predict", f"--model={model}", "--json", *[images / "c.jpg"] * 200)
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    said = process.stderr.read()
    assert "Traceback" not in said
    assert "Broken pipe" not in said


@pytest.mark.parametrize(("arguments", "says"), [
    (["{images}/c.jpg"], "--model is missing: expected the workdir of a run"),
    (["--model={model}"], "no image is named"),
    (["--model={model}", "{images}/absent.png"], "there is no .*absent.png: expected an image"),
    (["--model={model}", "{images}/b.png"], "b.png cannot be read as an image"),
    (["--model={images}/c.jpg", "{images}/c.jpg"], "c.jpg is not known to be an exported file"),
    (["--model={model}/model.json", "{images}/c.jpg"], "is a file: expected the directory"),
    (["--model={model}", "--compare=absent", "{images}/c.jpg"], "--compare=absent is not there"),
    (["--model={model}", "--picture=x.jpg", "{images}/c.jpg"], "expected a file that ends in .png"),
    (["--model={model}", "--picture=absent/x.png", "{images}/c.jpg"], "absent is no directory"),
    (["--model={model}", "--picture={images}/sub/../b.png", "{images}"],
     "--picture=.*b.png would take the place of .*b.png, which is read: name another file"),
    (["--model={images}", "{images}/c.jpg"], "is not the card of a stored network"),
    (["--model={model}", "--compare", "{images}/c.jpg"], "so its teacher is not known"),
    (["--model={model}", "--checkpoint=best", "{images}/c.jpg"], "no run in"),
    (["--model={model}", "--top=0", "{images}/c.jpg"], "top"),
    (["--model={model}", "https://example.org/c.jpg"], "https"),
    (["--model={model}", "--tpo=3", "{images}/c.jpg"], "tpo"),
])  # fmt: skip
def test_wrong_input_is_one_sentence(arguments, says, model, images):
    filled = [argument.format(model=model, images=images) for argument in arguments]
    done = run("kd_jax.predict", *filled)
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert re.search(says, errors[0]), errors[0]
    assert "Traceback" not in done.stderr


def test_all_that_is_wrong_is_told_in_one_start(images):
    absent = [images / f"absent{number}.png" for number in range(12)]
    done = run("kd_jax.predict", "--model=absent", "--compare=gone", "--picture=x.jpg", *absent)
    assert done.returncode == 2
    assert not done.stdout
    *first, model, compare, picture, count = done.stderr.splitlines()
    assert len(first) == 10
    for path, line in zip(absent, first, strict=False):
        assert line.startswith(f"error: there is no {path}")
    assert "--model=absent is not there" in model
    assert "--compare=gone is not there" in compare
    assert "--picture=x.jpg: expected a file that ends in .png" in picture
    assert "12 of 12 images cannot be read: the first 10 are named above" in count


@pytest.mark.proof
def test_many_damaged_images_are_counted_and_the_others_answered(model, images, tmp_path):
    for number in range(11):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    asked = (f"--model={model}", images / "absent.png", tmp_path, images / "c.jpg", "--top=1")
    done = run("kd_jax.predict", *asked)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 11
    assert "there is no" in errors[0]
    assert "12 of 13 images cannot be read: the first 10 are named above" in errors[-1]
    assert "c.jpg" in done.stdout
    assert len(done.stdout.splitlines()) == 3
