"""The commands as a user runs them: to the end, killed and resumed, and given wrong input."""

import json
import pickle
import re
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

from helpers import command, golden_state_dict, run, tree_digest, write_pth
from kd_jax.data import dataset
from kd_jax.runtime.atomic_files import read_json, read_json_lines, sha256_of
from kd_jax.training import workdir
from kd_jax.weights import saved_network

TINY = (
    "--config=configs/demo.py:teacher",
    "--config.total_steps=60",
    "--config.checkpoint_every_steps=7",
    "--config.eval_every_epochs=1",
    "--config.log_every_steps=5",
    "--config.student.dropout=0.1",
    "--config.num_devices=2",
)
RESULT_FIELDS = {
    "test_top1", "test_top5", "val_top1", "agreement", "steps", "epochs", "images_per_second",
    "params", "madds",
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A finished run: a small teacher of digits."""
    workdir = tmp_path_factory.mktemp("runs") / "the teacher's workdir"
    done = subprocess.run(**command("kd_jax.main", *TINY, f"--workdir={workdir}"), check=False)
    assert done.returncode == 0, done.stderr
    return workdir


def distil(teacher, workdir, *more):
    return (
        "--config=configs/demo.py:distil",
        f"--config.teacher.weights={teacher}",
        f"--workdir={workdir}",
        "--config.student.arch=resnet8",
        *TINY[1:],
        *more,
    )


@pytest.fixture(scope="module")
def unbroken(teacher, tmp_path_factory):
    """A distillation that was never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    done = run("kd_jax.main", *distil(teacher, workdir))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == read_json(workdir / "result.json")
    return workdir


def test_a_run_leaves_what_scripts_rely_on(unbroken, teacher):
    for name in ("config.json", "metrics.jsonl", "checkpoints", "teacher.json", "result.json"):
        assert (unbroken / name).exists()
    result = read_json(unbroken / "result.json")
    assert set(result) >= RESULT_FIELDS
    assert result["steps"] == 60
    assert list(unbroken.glob("events.out.tfevents.*"))
    losses = [
        r["loss"] for r in read_json_lines(unbroken / "metrics.jsonl") if r["kind"] == "train"
    ]
    assert len(losses) == 12
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    certificate = read_json(unbroken / "teacher.json")
    assert certificate["top1"] == read_json(teacher / "result.json")["test_top1"]
    assert certificate["examples"] == 360
    kept = sorted(int(path.name) for path in (unbroken / "checkpoints").iterdir())
    assert kept[-2:] == [56, 60]
    assert len(kept) <= 3  # two newest, and the best


def test_evaluate_prints_one_json_object(unbroken):
    result = read_json(unbroken / "result.json")
    before = tree_digest(unbroken)
    done = run("kd_jax.evaluate", f"--workdir={unbroken}", "--split=test")
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["top1"] == result["test_top1"]
    assert measured["agreement"] == result["agreement"]
    assert measured["examples"] == 360
    assert tree_digest(unbroken) == before


def test_a_finished_run_only_measures_again(unbroken):
    before = tree_digest(unbroken / "checkpoints")
    result = read_json(unbroken / "result.json")
    config = read_json(unbroken / "config.json")
    done = run("kd_jax.main", *distil(config["teacher"]["weights"], unbroken))
    assert done.returncode == 0, done.stderr
    assert read_json(unbroken / "result.json") == result
    assert tree_digest(unbroken / "checkpoints") == before


def wrong(name, *arguments, says, module="kd_jax.main"):
    return pytest.param(module, arguments, says, id=name)


WRONG_INPUTS = [
    wrong("misspelt field", "--config=configs/demo.py:teacher", "--config.batchsize=2",
          "--workdir={new}", says="batchsize.*batch_size"),
    wrong("misspelt nested field", "--config=configs/demo.py:teacher", "--config.mixup.knd=none",
          "--workdir={new}", says="knd"),
    wrong("wrong type", "--config=configs/demo.py:teacher", "--config.batch_size=many",
          "--workdir={new}", says="batch_size"),
    wrong("wrong value", "--config=configs/demo.py:teacher", "--config.mixup.kind=some",
          "--workdir={new}", says="config.mixup.kind is 'some', expected none or batch or group"),
    wrong("a process without the others", "--config=configs/demo.py:teacher", "--workdir={new}",
          "--process=1", says="belong together"),
    wrong("misspelt flag", "--confg=configs/demo.py", "--workdir={new}", says="confg"),
    wrong("no config", "--workdir={new}", says="--config is missing"),
    wrong("no workdir", "--config=configs/demo.py:teacher", says="--workdir is missing"),
    wrong("absent config", "--config=configs/absent.py", "--workdir={new}", says="absent.py"),
    wrong("wrong part", "--config=configs/demo.py:all", "--workdir={new}",
          says="demo.py:all is not a part"),
    wrong("stray argument", "--config=configs/demo.py:teacher", "--workdir={new}", "fast",
          says="unexpected argument 'fast'"),
    wrong("no teacher", "--config=configs/demo.py:distil", "--workdir={new}",
          says="config.teacher.weights is empty"),
    wrong("absent teacher", "--config=configs/demo.py:distil", "--workdir={new}",
          "--config.teacher.weights={new}/t.pth", says="no network at"),
    wrong("text as teacher", "--config=configs/resnet44.py", "--workdir={new}",
          "--config.teacher.weights=README.md", says="README.md is not a whole PyTorch file"),
    wrong("wrong arch of teacher", "--config=configs/resnet44.py", "--workdir={new}",
          "--config.teacher.weights={resnet20}", says="they fit resnet20 with 100 classes"),
    wrong("teacher of other classes", "--config=configs/resnet44.py", "--workdir={new}",
          "--config.teacher.weights={teacher}", "--config.teacher.arch=resnet8",
          says="knows other classes than cifar100: it does not know apple, aquarium fish"),
    wrong("directory that is no teacher", "--config=configs/resnet44.py", "--workdir={new}",
          "--config.teacher.weights=docs", says="not the card of a stored network"),
    wrong("missing data", "--config=configs/scratch.py", "--workdir={new}",
          "--config.dataset.data_dir={new}", says="no data set cifar100"),
    wrong("devices do not divide", "--config=configs/demo.py:teacher", "--workdir={new}",
          "--config.num_devices=3", says="batch_size is 64, which 3 devices do not divide"),
    wrong("other config", "--config=configs/demo.py:teacher", "--workdir={teacher}",
          "--config.learning_rate=0.5", says="another config .*learning_rate: 0.003 -> 0.5"),
    wrong("other program's workdir", "--config=configs/demo.py:teacher", "--workdir=docs",
          says="holds other files"),
    wrong("file as workdir", "--config=configs/demo.py:teacher", "--workdir=README.md",
          says="is a file"),
    wrong("workdir below a file", "--config=configs/demo.py:teacher",
          "--workdir=README.md/w", says="cannot be made, because .*README.md is a file"),
    wrong("config that is no Python", "--config=README.md", "--workdir={new}",
          says="README.md is no Python file: expected a file such as"),
    wrong("import below a file", "--arch=resnet20", "--src={resnet20}", "--out=README.md/x",
          says="cannot be written", module="kd_jax.import_teacher"),
    wrong("probe nothing", "--workdir={new}", says="no run in", module="kd_jax.probe"),
    wrong("probe into a directory", "--workdir={teacher}", "--out=docs", says="is a directory",
          module="kd_jax.probe"),
    wrong("no such recipe", "--config=configs/mbv2.py:recipe=sead", "--workdir={new}",
          says="'sead' is no recipe: expected one of funmatch"),
    wrong("recipes nobody knows", "diff", "a", "b", says="'a' is no recipe",
          module="kd_jax.recipes"),
    wrong("recipes misread", "compare", says="'compare' is not understood",
          module="kd_jax.recipes"),
    wrong("evaluate nothing", "--workdir={new}", says="no run in", module="kd_jax.evaluate"),
    wrong("evaluate other split", "--workdir={teacher}", "--split=dev", says="dev",
          module="kd_jax.evaluate"),
    wrong("import unknown arch", "--arch=resnet45", "--src={resnet20}", "--out={new}",
          says="unknown architecture 'resnet45'", module="kd_jax.import_teacher"),
    wrong("import nothing", "--arch=resnet20", "--src={new}", "--out={new}",
          says="no file of weights", module="kd_jax.import_teacher"),
    wrong("import into other files", "--arch=resnet20", "--src={resnet20}", "--out=docs",
          says="holds other files", module="kd_jax.import_teacher"),
    wrong("a malicious pickle", "--arch=resnet20", "--src={evil}", "--out={new}",
          says="which could run code when read: it is refused", module="kd_jax.import_teacher"),
    wrong("a truncated file", "--arch=resnet20", "--src={cut}", "--out={new}",
          says="cut.pth is not a whole PyTorch file", module="kd_jax.import_teacher"),
    wrong("a text file", "--arch=resnet20", "--src=README.md", "--out={new}",
          says="README.md is not a whole PyTorch file", module="kd_jax.import_teacher"),
    wrong("another head", "--arch=resnet20", "--dataset=cifar10", "--src={resnet20}",
          "--out={new}", says="they fit resnet20 with 100 classes; fc.bias has shape",
          module="kd_jax.import_teacher"),
    wrong("another network", "--arch=vgg11_bn", "--src={resnet20}", "--out={new}",
          says="they fit resnet20 with 100 classes", module="kd_jax.import_teacher"),
    wrong("nobody publishes it", "--arch=resnet8", "--src=published", "--out={new}",
          says="no published weights of resnet8", module="kd_jax.import_teacher"),
    wrong("zoo of another data set", "--dataset=mnist", says="expected one of cifar100, cifar10",
          module="kd_jax.models"),
    wrong("devices below none", "--config=configs/demo.py:teacher", "--config.num_devices=-1",
          "--workdir={new}", says=r"num_devices is -1, expected a number in \[0, 4096\]"),
    wrong("no step at all", "--config=configs/demo.py:teacher", "--config.total_steps=0",
          "--workdir={new}", says="total_steps is 0"),
    wrong("a seed below none", "--config=configs/demo.py:teacher", "--config.seed=-1",
          "--workdir={new} ü", says="seed is -1"),
    wrong("nothing left to train on", "--config=configs/demo.py:teacher",
          "--config.dataset.val_examples=100000", "--workdir={new}", says="val_examples"),
    wrong("smoothing without labels", "--config=configs/resnet44.py", "--workdir={new}",
          "--config.teacher.weights={resnet20}", "--config.distill.label_smoothing=0.1",
          says="label_smoothing is 0.1, expected 0: .* no label is read"),
    wrong("a log as teacher", "--config=configs/resnet44.py", "--workdir={new}",
          "--config.teacher.weights={teacher}/metrics.jsonl", says="not a whole PyTorch file"),
    wrong("safetensors of our own as a file", "--config=configs/resnet44.py", "--workdir={new}",
          "--config.teacher.weights={teacher}/model.safetensors", says="give its directory"),
    wrong("evaluate another checkpoint", "--workdir={teacher}", "--checkpoint=worst",
          says="worst", module="kd_jax.evaluate"),
    wrong("a file of Keras", "--arch=resnet20", "--src={keras}", "--out={new}",
          says="is an HDF5 file, as Keras writes it .*: expected a file as torch.save",
          module="kd_jax.import_teacher"),
    wrong("half a normalisation", "--arch=resnet20", "--src={resnet20}", "--out={new}",
          "--mean=0.5,0.5,0.5", says="--mean and --std go together",
          module="kd_jax.import_teacher"),
    wrong("a normalisation of words", "--arch=resnet20", "--src={resnet20}", "--out={new}",
          "--mean=a,b,c", "--std=1,1,1", says="expected three numbers",
          module="kd_jax.import_teacher"),
    wrong("import of another data set", "--arch=resnet20", "--src={resnet20}", "--out={new}",
          "--dataset=imagenet", says="unknown data set 'imagenet'",
          module="kd_jax.import_teacher"),
    wrong("torture into other files", "--workdir=docs", says="docs exists: expected a new",
          module="kd_jax.torture"),
    wrong("demo with more words", "now", says="unexpected argument 'now'", module="kd_jax.demo"),
    wrong("report of nobody", "--out={new}.html", says="required: LABEL=WORKDIR",
          module="kd_jax.report"),
    wrong("report of nothing", "a={new}", "--out={new}.html", says="no finished run",
          module="kd_jax.report"),
    wrong("no study", "--workdir={new}", says="--config is missing", module="kd_jax.study"),
    wrong("a study without a place", "--config=configs/studies/demo.py",
          says="--workdir is missing", module="kd_jax.study"),
    wrong("a config of one run", "--config=configs/demo.py", "--workdir={new}",
          says=r"has no get_study\(\)", module="kd_jax.study"),
    wrong("a misspelt option", "--config=configs/studies/table2.py:epoch=3", "--workdir={new}",
          says="'epoch=3' is no option of this study", module="kd_jax.study"),
    wrong("an absent study", "--config=configs/studies/absent.py", "--workdir={new}",
          says="is not there", module="kd_jax.study"),
    wrong("absent teachers", "--config=configs/studies/table2.py", "--workdir={new}",
          "--teachers={new}/t", says="is no directory: expected one with weights",
          module="kd_jax.study"),
    wrong("a study in a run", "--config=configs/studies/demo.py", "--workdir={teacher}",
          says=r"holds other files and no study\.json", module="kd_jax.study"),
    wrong("a summary of nothing", "{new}", says="no study in", module="kd_jax.summary"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    """Files as PyTorch writes them: a good one, one that runs code, and one that is cut short."""
    directory = tmp_path_factory.mktemp("files")
    paths = {name: directory / f"{name}.pth" for name in ("resnet20", "evil", "cut")}
    write_pth(paths["resnet20"], golden_state_dict("resnet20"))
    paths["cut"].write_bytes(paths["resnet20"].read_bytes()[:100_000])
    paths["keras"] = directory / "x.h5"
    paths["keras"].write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    with zipfile.ZipFile(paths["evil"], "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(print, protocol=2))
    return paths


@pytest.mark.parametrize(("module", "arguments", "says"), WRONG_INPUTS)
def test_wrong_input_is_one_sentence_and_changes_nothing(
    module, arguments, says, teacher, pth, tmp_path
):
    places = {"new": tmp_path / "new", "teacher": teacher} | pth
    before = tree_digest(teacher)
    done = run(module, *(argument.format(**places) for argument in arguments))
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert re.search(says, lines[0]), lines[0]
    assert not places["new"].exists()
    assert tree_digest(teacher) == before


def test_devices_that_are_not_there_are_one_sentence(tmp_path):
    done = run(
        "kd_jax.main", *TINY, f"--workdir={tmp_path}/new", environment={"JAX_PLATFORMS": "x"}
    )
    assert done.returncode == 2
    assert re.match("error: JAX_PLATFORMS=x asks for devices that JAX does not find", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_probe_looks_along_the_mixup_line(unbroken, tmp_path):
    before = tree_digest(unbroken)
    done = run("kd_jax.probe", f"--workdir={unbroken}", f"--out={tmp_path}/probe.json")
    assert done.returncode == 0, done.stderr
    assert tree_digest(unbroken) == before
    probed = json.loads((tmp_path / "probe.json").read_text())
    result = json.loads((unbroken / "result.json").read_text())
    assert probed["splits"]["test"]["top1"] == result["test_top1"]
    line = probed["line"]
    assert [record["share"] for record in line] == [i / 10 for i in range(11)]
    for end in (line[0], line[-1]):  # the images themselves, in another order
        assert end["agreement"] == pytest.approx(result["agreement"], abs=1e-3)
        assert end["kl_to_teacher"] == pytest.approx(result["kl_to_teacher"], rel=1e-3)
    assert sum(map(sum, probed["confusion"]["by_class"])) == 360
    assert "| 0.500 |" in done.stdout
    assert probed["class_names"] == [str(digit) for digit in range(10)]
    assert [example["share"] for example in probed["examples"]] == [0.5, 0.5, 0.6, 0.7, 0.8, 0.9]
    for example in probed["examples"]:
        for who in ("teacher", "student"):
            assert 0 < sum(one["probability"] for one in example[who]) <= 1.0001
    assert np.argmax(probed["softmax"]["logits"]) == probed["softmax"]["label"]


def test_a_teacher_is_probed_alone(unbroken, tmp_path):
    arguments = ("--teacher=" + str(unbroken), "--data=digits", f"--out={tmp_path}/probe.json")
    done = run("kd_jax.probe", *arguments)
    assert done.returncode == 0, done.stderr
    probed = json.loads((tmp_path / "probe.json").read_text())
    result = json.loads((unbroken / "result.json").read_text())
    assert probed["splits"]["test"]["top1"] == result["test_top1"]
    first, middle, last = probed["line"][0], probed["line"][5], probed["line"][10]
    assert first["lean"] < middle["lean"] < last["lean"]
    for end in (first, last):  # the images themselves, but for pairs of one class
        assert end["names_one"] >= result["test_top1"] - 5
    wrong = run("kd_jax.probe", *arguments, f"--workdir={unbroken}")
    assert wrong.returncode == 2
    assert "expected the directory of a run, or the weights of a teacher" in wrong.stderr


def test_predictions_stand_beside_the_teachers(unbroken, tmp_path):
    digits = dataset.load(workdir.load_config(unbroken).dataset)
    for number, image in enumerate(digits.test.images[:20]):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    arguments = (f"--model={unbroken}", str(tmp_path), "--compare", "--top=2")
    done = run("kd_jax.predict", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 20
    firsts = [[record[who][0]["label"] for record in records] for who in ("top", "teacher_top")]
    agreed = sum(map(int.__eq__, *firsts))
    assert f"student and teacher choose the same class for {agreed} of 20" in done.stderr
    right = np.mean(np.array(firsts[1]) == digits.test.labels[:20])
    assert right > 0.5  # the images, the labels and the teacher belong together
    table = run("kd_jax.predict", *arguments)
    head, _, *rows = table.stdout.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        *("image", "student", "%", "teacher", "%")
    ]
    for number, record in enumerate(records):
        cells = [cell.strip() for cell in rows[2 * number].split("|")[1:-1]]
        assert cells[1::2] == [record[who][0]["name"] for who in ("top", "teacher_top")]
    again = run("kd_jax.predict", *arguments, "--json", "--checkpoint=last")
    assert again.returncode == 0, again.stderr
    assert "the checkpoint of step 60, the newest" in again.stderr
    for line, record in zip(again.stdout.splitlines(), records, strict=True):
        assert json.loads(line) == record | {"checkpoint": "last"}


def test_import_then_use(tmp_path):
    write_pth(tmp_path / "r.pth", golden_state_dict("resnet20"))
    arguments = ("--arch=resnet20", f"--src={tmp_path}/r.pth", f"--out={tmp_path}/an import")
    done = run("kd_jax.import_teacher", *arguments, "--claimed_top1=68.83")
    assert done.returncode == 0, done.stderr
    assert "278,324 parameters" in done.stdout
    card, _ = saved_network.load(tmp_path / "an import")
    assert card.claimed_top1 == 68.83
    assert card.sha256 == sha256_of(tmp_path / "r.pth")


def test_a_teacher_that_misses_its_claim_stops_the_run(teacher, tmp_path):
    arguments = distil(teacher, tmp_path / "w", "--config.teacher.claimed_top1=99.9")
    done = run("kd_jax.main", *arguments)
    assert done.returncode == 2
    assert "was expected to reach 99.90 % top-1" in done.stderr
    assert "normalisation" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "w").exists()
    accepted = run(
        "kd_jax.main", *arguments, "--config.teacher.on_mismatch=warn", "--config.total_steps=2"
    )
    assert accepted.returncode == 0, accepted.stderr
    assert "was expected to reach" in accepted.stderr


def test_the_report_has_a_row_and_a_curve_for_every_run(teacher, unbroken, tmp_path):
    page = tmp_path / "page.html"
    done = run("kd_jax.report", f"teacher={teacher}", f"distilled={unbroken}", f"--out={page}")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) == 4
    assert f"{read_json(unbroken / 'result.json')['agreement']:.2f}" in rows[3]
    text = page.read_text()
    assert text.count("<svg") == 1 + 3 + 3  # top-1; all over the epochs; the one from labels
    for outside in ("<script", "@import", 'src="', 'href="http'):
        assert outside not in text


@pytest.mark.parametrize("arguments", [
    ("kd_jax",), ("kd_jax.models",), ("kd_jax.config",), ("kd_jax.models", "--help"),
])  # fmt: skip
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    process = subprocess.Popen(**command(*arguments))
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    assert process.stderr.read() == ""
