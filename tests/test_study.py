"""Studies: what a file may say, who takes which run, and what is left after every kind of end."""

import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from helpers import ROOT, command, run, tree_digest
from kd_jax import checks, claims, cohort, runs, session, study
from kd_jax import config as config_lib
from kd_jax.config import default_config
from kd_jax.console import logger
from kd_jax.errors import UserError
from kd_jax.files import read_json
from kd_jax.interrupt import StopRequest

# A teacher, two rows of two students, and one whose teacher's weights are nowhere.
TINY = """
from kd_jax import runs
from kd_jax.config import default_config

def digits(steps):
    config = default_config()
    config.dataset.name = "digits"
    config.dataset.val_examples = 144
    config.student.arch = "resnet8"
    config.batch_size = 32
    config.total_steps = steps
    config.learning_rate = 3e-3
    config.log_every_steps = 5
    config.checkpoint_every_steps = 5
    config.eval_every_epochs = 1000.0
    config.num_devices = 1
    return config

def get_study(argument=""):
    chosen = runs.options(argument, steps=25, seeds=2)
    teacher = digits(40)
    teacher.distill.label_weight = 1.0
    teacher.mixup.kind = "none"
    student = digits(chosen["steps"])
    student.teacher.arch = "resnet8"
    listed = runs.of_seeds("lost", student, 1) + runs.of_seeds("teacher", teacher, 1)
    for row, config in runs.grid(student, {"distill.temperature": (2.0, 8.0)}).items():
        listed += runs.of_seeds(row, config, chosen["seeds"], teacher="teacher-s0", published=40.0)
    return runs.Study("Tiny", tuple(listed), "distill.temperature=2.0")
"""
STUDENTS = [f"distill.temperature={t}-s{seed}" for t in ("2.0", "8.0") for seed in (0, 1)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """The study's directory after one start, and what that said."""
    root = tmp_path_factory.mktemp("studies") / "the study's directory"
    return root, run("kd_jax.study", f"--config={tiny}", f"--workdir={root}")


@pytest.fixture
def half_done(unbroken, tmp_path):
    """The same study when only its teacher is trained."""
    shutil.copytree(unbroken[0], tmp_path / "half")
    for name in STUDENTS:
        shutil.rmtree(tmp_path / "half" / "runs" / name)
    return tmp_path / "half"


def tables(root):
    return (root / "table.md").read_text(), read_json(root / "summary.json")


def starts(root, name):
    """The steps from which a run was started or resumed."""
    return [record["step"] for record in read_json(root / "runs" / name / "provenance.json")]


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(root, name="*"):
    """How many whole checkpoints there are, of one run or of all."""
    return sum(path.name.isdecimal() for path in root.glob(f"runs/{name}/checkpoints/*"))


def claimed(root, name):
    paths = sorted((root / "claims" / name).glob("*.json"), key=lambda path: int(path.stem))
    return [read_json(path) for path in paths]


def test_a_failed_run_is_named_and_the_others_finish(unbroken):
    root, done = unbroken
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "failed: lost-s0: no weights for its teacher resnet8: give --teachers=DIR"
    )
    for name in ("teacher-s0", *STUDENTS):
        assert read_json(root / "runs" / name / "result.json")["steps"] in (25, 40)
        assert [record["ended"] for record in claimed(root, name)] == ["done"]
    table, summed = tables(root)
    assert table.split("\n", 2)[2].strip() in done.stdout
    assert [row["row"] for row in summed["rows"]] == [
        "lost", "teacher", "distill.temperature=2.0", "distill.temperature=8.0"
    ]  # fmt: skip
    assert [len(row["missing"]) for row in summed["rows"]] == [1, 0, 0, 0]
    assert summed["rows"][3]["test_top1"]["difference"]["n"] == 2
    assert f"page: {root}/report.html" in done.stdout
    assert "<svg" in (root / "report.html").read_text()


def test_the_next_start_tries_it_again_and_leaves_what_is_done(unbroken, tiny, tmp_path):
    root = tmp_path / "again"
    shutil.copytree(unbroken[0], root)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet8").symlink_to(unbroken[0] / "runs" / "teacher-s0")
    before = {name: tree_digest(root / "runs" / name) for name in STUDENTS}
    done = run("kd_jax.study", f"--config={tiny}", f"--workdir={root}",
               f"--teachers={tmp_path}/weights")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("---") == 1
    assert read_json(root / "runs" / "lost-s0" / "teacher.json")["arch"] == "resnet8"
    assert not (root / "failed" / "lost-s0.json").exists()
    assert {name: tree_digest(root / "runs" / name) for name in STUDENTS} == before
    assert not any(row["missing"] for row in tables(root)[1]["rows"])


def test_two_processes_share_the_runs_and_one_takes_over_from_the_other(half_done, unbroken, tiny):
    options = command("kd_jax.study", f"--config={tiny}", f"--workdir={half_done}")
    before = len(claimed(half_done, STUDENTS[0]))
    first, second = subprocess.Popen(**options), subprocess.Popen(**options)
    makers = {}

    def both_train():
        for name in STUDENTS:
            if len(own := claimed(half_done, name)) > before and "process" in own[-1]:
                saved = checkpoints(half_done, name)
                makers[own[-1]["process"]] = (name, saved > 0 and "ended" not in own[-1])
        return set(makers) >= {first.pid, second.pid} and makers[first.pid][1]

    wait_for(both_train, second)
    killed = makers[first.pid][0]
    first.kill()
    first.communicate()
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 1, errors
    by_whom = {name: [r["process"] for r in claimed(half_done, name)[before:]] for name in STUDENTS}
    for name in STUDENTS:
        if name == killed:
            assert by_whom[name] == [first.pid, second.pid]
            assert len(starts(half_done, name)) == 2
            assert starts(half_done, name)[1] > 0
        else:
            assert len(by_whom[name]) == 1
            assert starts(half_done, name) == [0]
    assert tables(half_done) == tables(unbroken[0])


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_table(unbroken, tiny, tmp_path):
    root = tmp_path / "killed"
    arguments = ("kd_jax.study", f"--config={tiny}", f"--workdir={root}")
    for name in [signal.SIGKILL] * 5 + [signal.SIGTERM]:
        process = subprocess.Popen(**command(*arguments))
        at = checkpoints(root)
        wait_for(lambda at=at: checkpoints(root) > at, process)
        process.send_signal(name)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (75 if name == signal.SIGTERM else -name), errors
    done = run(*arguments)
    assert done.returncode == 1, done.stderr
    assert tables(root) == tables(unbroken[0])
    assert sum(len(starts(root, name)) for name in ("teacher-s0", *STUDENTS)) >= 5 + 5


def test_a_run_may_be_added_and_none_may_change(unbroken, tiny, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(unbroken[0], root)
    before = tree_digest(root)
    changed = run("kd_jax.study", f"--config={tiny}:steps=26", f"--workdir={root}")
    assert changed.returncode == 2
    assert "total_steps: 25 -> 26" in changed.stderr.splitlines()[-1]
    assert len(changed.stderr.splitlines()) == 1
    assert tree_digest(root) == before
    more = runs.load(f"{tiny}:seeds=3")
    study.check(root, more)
    study.begin(root, more)
    listed = [entry["name"] for entry in read_json(root / "study.json")["runs"]]
    assert [name for name in listed if name.endswith("-s2")] == [
        "distill.temperature=2.0-s2", "distill.temperature=8.0-s2"
    ]  # fmt: skip


def test_a_study_does_not_move_into_other_files(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    listed = runs.load(str(tiny))
    with pytest.raises(UserError, match=r"holds other files and no study\.json"):
        study.check(tmp_path, listed)
    with pytest.raises(UserError, match="is a file: expected a directory"):
        study.check(tmp_path / "file", listed)


def test_what_belongs_together_is_claimed_and_trained_together(unbroken, tmp_path, monkeypatch,
                                                              caplog):  # fmt: skip
    """And where that fails, each alone: the one that cannot be is named, the other is trained."""
    logger.propagate = True
    caplog.set_level(logging.INFO, "kd_jax")
    monkeypatch.setattr(cohort, "key", lambda config: "the same")
    weights = str(unbroken[0] / "runs" / "teacher-s0")
    config = config_lib.from_json((unbroken[0] / "runs" / STUDENTS[0] / "config.json").read_text())
    config.teacher.weights, config.total_steps = weights, 6
    listed = []
    for temperatures in ((3.0, 4.0), (3.0, -1.0)):
        named = runs.grid(config, {"distill.temperature": temperatures})
        listed = [runs.Run(runs.slug(row), row, own) for row, own in named.items()]
        root = tmp_path / str(temperatures[1])
        with claims.Claims(root, 600, pytest.fail) as own:
            its = session.start(runs.Study("", tuple(listed)), root, None, 8, own, StopRequest())
            assert len(its.groups) == 1
            session.work(its)
            assert [its.is_done(one) for one in listed] == [True, temperatures[1] > 0]
    assert "--- together: distill.temperature=3.0, distill.temperature=4.0" in caplog.text
    assert "so one after another" in caplog.text
    assert "temperature is -1" in its.failure(listed[1])["error"]


def test_groups_are_of_one_key_and_not_too_large():
    keys = {"a": "x", "b": None, "c": "x", "d": "y", "e": "x", "f": None}
    listed = [runs.Run(name, name, default_config()) for name in keys]

    def grouped(most):
        found = session.groups(listed, most, lambda one: keys[one.name])
        return ["".join(one.name for one in group) for group in found]

    assert grouped(8) == ["ace", "b", "d", "f"]
    assert grouped(2) == ["ac", "b", "d", "e", "f"]
    assert grouped(1) == list("abcdef")


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_claim(root, name, **said):
    path = root / "claims" / name / "1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": claims.machine(), "process": os.getpid(), **said}))
    return path


def test_a_claim_is_one_processs_until_it_ends_dies_or_falls_silent(tmp_path):
    with claims.Claims(tmp_path, 60, pytest.fail) as own, \
            claims.Claims(tmp_path, 60, pytest.fail) as other:  # fmt: skip
        assert own.take("a") == 1
        assert other.take("a") is None
        assert other.holder("a") == f"process {os.getpid()} on {os.uname().nodename}"
        own.release("a", "failed")
        assert other.holder("a") is None
        assert other.take("a") == 2
        assert (own.take("a"), own.tries("a")) == (None, 2)
        write_claim(tmp_path, "dead", process=dead_process())
        assert own.take("dead") == 2
        path = write_claim(tmp_path, "elsewhere", machine="another one", process=1)
        assert own.take("elsewhere") is None
        os.utime(path, (time.time() - 61,) * 2)
        assert own.take("elsewhere") == 2
        (tmp_path / "claims" / "begun").mkdir()
        (tmp_path / "claims" / "begun" / "1.json").touch()  # made, and not written yet
        assert own.take("begun") is None
    assert claimed(tmp_path, "a")[-1]["ended"] == "stopped"
    with claims.Claims(tmp_path, 60, pytest.fail) as own:
        assert (own.take("a"), own.tries("a")) == (3, 2)


def test_of_all_who_take_over_a_stale_claim_one_succeeds(tmp_path):
    dead = dead_process()
    for number in range(20):
        write_claim(tmp_path, f"run{number}", process=dead)
        barrier, took = threading.Barrier(8), []

        def take(number=number, barrier=barrier, took=took):
            own = claims.Claims(tmp_path, 60, pytest.fail)
            barrier.wait()
            took.append(own.take(f"run{number}"))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(took, key=str) == [2] + [None] * 7


def test_a_claim_is_kept_fresh_and_its_holder_hears_when_it_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_HEARTBEAT_SECONDS", 0.05)
    told, heard = [], threading.Event()

    def overtaken(name):
        told.append(name)
        heard.set()

    with claims.Claims(tmp_path, 60, overtaken) as own:
        own.take("a")
        path = tmp_path / "claims" / "a" / "1.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > time.time() - 60
        assert not told
        shutil.copy(path, path.with_name("2.json"))
        assert heard.wait(10)
        assert told[0] == "a"


def test_the_weights_of_a_teacher_are_found_by_name(tmp_path):
    config = default_config()
    config.teacher.arch = "resnet20"
    one = runs.Run("a", "a", config)
    for found in ("resnet20.pth", "cifar100_resnet20-23dac2f1.pt", "cifar100_resnet20.pth"):
        (tmp_path / found).touch()
        (tmp_path / "cifar100_resnet20x.pth").touch()
        assert runs.teacher_weights(one, tmp_path, tmp_path) == str(tmp_path / found)
    (tmp_path / "resnet20").mkdir()
    assert runs.teacher_weights(one, tmp_path, tmp_path) == str(tmp_path / "resnet20")
    config.teacher.arch = "vgg11_bn"
    with pytest.raises(UserError, match=r"no weights for its teacher vgg11_bn in .*: expected vgg"):
        runs.teacher_weights(one, tmp_path, tmp_path)
    config.teacher.arch = ""
    assert runs.teacher_weights(one, tmp_path, None) == ""


STUDIES = ("table2", "repaired", "first_table", "demo")


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("argument", ["", ":epochs=3,seeds=2"])
def test_the_projects_studies_are_possible(name, argument):
    listed = runs.load(f"{ROOT}/configs/studies/{name}.py{argument}")
    for one in listed.runs:
        config = one.config.copy_and_resolve_references().unlock()
        config.teacher.weights = "somewhere" if config.teacher.arch else ""
        checks.check(config)
        assert one.config.is_locked
        assert not argument or one.row == "teacher" or config.total_epochs == 3


def test_all_studies_are_tested():
    assert {path.stem for path in (ROOT / "configs" / "studies").glob("*.py")} == set(STUDIES)


def test_table_2_is_the_studys():
    listed = runs.load(f"{ROOT}/configs/studies/table2.py:fraction=0.1").runs
    assert [one.published for one in listed] == [
        31.53, 40.67, 37.26, 42.22, 39.14, 43.42, 40.97, 42.30, 48.21
    ]  # fmt: skip
    scratch, *taught = [one.config for one in listed]
    assert (scratch.batch_size, scratch.total_epochs, scratch.teacher.arch) == (128, 25, "")
    assert {config.batch_size for config in taught} == {512}
    assert {config.teacher.normalisation for config in taught} == {"half"}
    assert [config.mixup.kind for config in taught] == ["example"] * 7 + ["none"]
    assert {config.dataset.train_split for config in (scratch, *taught)} == {"train[:10%]"}
    assert scratch.dataset.val_examples == 500


def test_each_repair_changes_its_own_fields_and_the_last_all_of_them():
    listed = runs.load(f"{ROOT}/configs/studies/repaired.py").runs
    seed, student, normalisation, views, all_three, _ = [
        config_lib.flatten(one.config) for one in listed
    ]
    changed = [
        {path: config[path] for path in seed if config[path] != seed[path]}
        for config in (student, normalisation, views, all_three)
    ]
    assert list(changed[0]) == ["student.arch"]
    assert all("normalisation" in path or "mismatch" in path for path in changed[1])
    assert changed[2] == {"augment.crop_pad_px": 4, "augment.flip": True}
    assert changed[3] == changed[0] | changed[1] | changed[2]


def of_study(body):
    return "from kd_jax import runs\nfrom kd_jax.config import default_config as c\n" + body


WRONG = {
    "no file": (None, r"is no Python file: expected a study such as"),
    "no study": ("x = 1", r"has no get_study\(\)"),
    "a bug": ("def get_study(a): return 1 / 0", "fails with ZeroDivisionError"),
    "no Python": ("this is", "fails with SyntaxError"),
    "something else": ("def get_study(a): return 7", "returns a int: expected a kd_jax"),
    "nothing": (of_study("def get_study(a): return runs.Study('', ())"), "it has no runs"),
    "two of one name": (
        of_study("def get_study(a): return runs.Study('', (runs.Run('a', 'x', c()),"
                 "runs.Run('A', 'y', c())))"), "2 runs are called a, expected one"),
    "a path as name": (
        of_study("def get_study(a): return runs.Study('', (runs.Run('../a', 'x', c()),))"),
        r"a run is called '\.\./a', expected up to 100 letters"),
    "another field in one row": (
        of_study("def get_study(a):\n d = c()\n d.batch_size, d.seed = 3, 1\n"
                 " return runs.Study('', (runs.Run('a', 'x', c()), runs.Run('b', 'x', d)))"),
        "a and b are of one row and differ in .*batch_size"),
    "one seed twice": (
        of_study("def get_study(a):\n return runs.Study('', (runs.Run('a', 'x', c()),"
                 "runs.Run('b', 'x', c())))"), "b has the seed of another run of its row"),
    "nobody as teacher": (
        of_study("def get_study(a): return runs.Study('', (runs.Run('a', 'x', c(), 'b'),))"),
        "the teacher of a is 'b', expected a run of it"),
    "a ring of teachers": (
        of_study("def get_study(a): return runs.Study('', (runs.Run('a', 'x', c(), 'b'),"
                 "runs.Run('b', 'y', c(), 'a')))"), "a is its own teacher's teacher"),
    "no such baseline": (
        of_study("def get_study(a): return runs.Study('', (runs.Run('a', 'x', c()),), 'z')"),
        "its baseline is 'z', expected one of its rows x"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_study_is_one_sentence(name, tmp_path):
    content, says = WRONG[name]
    if content is not None:
        (tmp_path / "s.py").write_text(content)
    with pytest.raises(UserError, match=says):
        runs.load(str(tmp_path / "s.py"))


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("epoch=3", "'epoch=3' is no option of this study, expected epochs=..., seeds=..., frac"),
        ("seeds=two", "'seeds=two' is not understood, expected a number"),
        ("seeds=0", "'seeds=0' is not possible, expected a number above 0"),
        ("epochs=nan", "'epochs=nan' is not possible"),
        ("fraction=2", "fraction=2.0 is not possible, expected 0.01, 0.02"),
        ("fraction=0.001", "fraction=0.001 is not possible"),
    ],
)
def test_a_wrong_option_is_one_sentence(argument, says):
    with pytest.raises(UserError, match=says):
        runs.load(f"{ROOT}/configs/studies/table2.py:{argument}")


def test_a_part_of_the_digits_is_refused():
    config = default_config()
    config.dataset.name = "digits"
    with pytest.raises(ValueError, match="is for the data sets of tfds, expected 1"):
        runs.take_fraction(config, 0.5)
