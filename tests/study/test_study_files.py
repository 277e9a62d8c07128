"""What a study's file may say, and what the project's own say."""

import pytest

from helpers import ROOT
from kd_jax import config as config_lib
from kd_jax.config import checks, default_config
from kd_jax.runtime.errors import UserError
from kd_jax.study import spec
from kd_jax.training import cohort


def test_the_weights_of_a_teacher_are_found_by_name(tmp_path):
    config = default_config()
    config.teacher.arch = "resnet20"
    one = spec.Run("a", "a", config)
    for found in ("resnet20.pth", "cifar100_resnet20-23dac2f1.pt", "cifar100_resnet20.pth"):
        (tmp_path / found).touch()
        (tmp_path / "cifar100_resnet20x.pth").touch()
        assert spec.teacher_weights(one, tmp_path, tmp_path) == str(tmp_path / found)
    (tmp_path / "resnet20").mkdir()
    assert spec.teacher_weights(one, tmp_path, tmp_path) == str(tmp_path / "resnet20")
    config.teacher.arch = "vgg11_bn"
    with pytest.raises(UserError, match=r"no weights for its teacher vgg11_bn in .*: expected vgg"):
        spec.teacher_weights(one, tmp_path, tmp_path)
    config.teacher.arch = ""
    assert spec.teacher_weights(one, tmp_path, None) == ""


STUDIES = ("table2", "reproduced", "repaired", "first_table", "crd", "demo", "rates")


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("argument", ["", ":epochs=3,seeds=2"])
def test_the_projects_studies_are_possible(name, argument):
    listed = spec.load(f"{ROOT}/configs/studies/{name}.py{argument}")
    for one in listed.runs:
        config = one.config.copy_and_resolve_references().unlock()
        config.teacher.weights = "somewhere" if config.teacher.arch else ""
        checks.check(config)
        assert one.config.is_locked
        assert not argument or one.row == "teacher" or config.total_epochs == 3


def test_all_studies_are_tested():
    assert {path.stem for path in (ROOT / "configs" / "studies").glob("*.py")} == set(STUDIES)


def test_table_2_is_the_studys():
    listed = spec.load(f"{ROOT}/configs/studies/table2.py:fraction=0.1").runs
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
    listed = spec.load(f"{ROOT}/configs/studies/repaired.py").runs
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


def test_the_losses_of_the_crd_line_are_one_cohort_and_function_matching_another():
    study = spec.load(f"{ROOT}/configs/studies/crd.py")
    assert study.title == "ResNet56 teaches ResNet20 by the protocol of CRD"
    assert {one.row: one.published for one in study.runs} == {
        "labels alone": 69.06, "KD": 70.66, "DKD": 71.97, "DIST": 71.75, "LSKD": 71.43,
        "function matching": None
    }  # fmt: skip
    keys = []
    for one in study.runs:
        config = one.config.copy_and_resolve_references().unlock()
        config.teacher.weights = "somewhere"
        keys.append(cohort.key(config))
        assert (config.student.arch, config.teacher.arch) == ("resnet20", "resnet56")
    labels, *losses, matching = keys
    assert len(set(losses)) == 1
    assert matching not in (None, losses[0])
    assert labels != losses[0]
    assert study.runs[2].config.distill.dkd_others == 2.0


def test_a_shortened_crd_line_keeps_its_proportions_and_says_so():
    whole, short = (
        spec.load(f"{ROOT}/configs/studies/crd.py{argument}")
        for argument in ("", ":epochs=12,fraction=0.5")
    )
    assert short.title.endswith(", shortened: 12 epochs in place of 240, 50% of the images")
    for one, other in zip(whole.runs, short.runs, strict=True):
        assert one.config.schedule == other.config.schedule
        assert other.config.distill.warmup_epochs * 20 == one.config.distill.warmup_epochs
        assert other.source == (f"{one.source} at 240 epochs" if one.published else "")
    assert whole.runs[2].config.distill.warmup_epochs == 20
    longer = spec.load(f"{ROOT}/configs/studies/crd.py:epochs=300")
    assert longer.title.endswith(", lengthened: 300 epochs in place of 240")


def of_study(body):
    return (
        "from kd_jax.study import spec as runs\nfrom kd_jax.config import default_config as c\n"
        + body
    )


WRONG = {
    "no file": (None, r"is not there: expected a file such as"),
    "no study": ("x = 1", r"has no get_study\(\)"),
    "a bug": ("def get_study(): return 1 / 0", "fails with ZeroDivisionError"),
    "no Python": ("this is", "fails with SyntaxError"),
    "something else": ("def get_study(): return 7", "returns a int: expected a kd_jax"),
    "nothing": (of_study("def get_study(): return runs.Study('', ())"), "it has no runs"),
    "two of one name": (
        of_study("def get_study(): return runs.Study('', (runs.Run('a', 'x', c()),"
                 "runs.Run('A', 'y', c())))"), "2 runs are called a, expected one"),
    "a path as name": (
        of_study("def get_study(): return runs.Study('', (runs.Run('../a', 'x', c()),))"),
        r"a run is called '\.\./a', expected up to 100 letters"),
    "another field in one row": (
        of_study("def get_study():\n d = c()\n d.batch_size, d.seed = 3, 1\n"
                 " return runs.Study('', (runs.Run('a', 'x', c()), runs.Run('b', 'x', d)))"),
        "a and b are of one row and differ in .*batch_size"),
    "one seed twice": (
        of_study("def get_study():\n return runs.Study('', (runs.Run('a', 'x', c()),"
                 "runs.Run('b', 'x', c())))"), "b has the seed of another run of its row"),
    "nobody as teacher": (
        of_study("def get_study(): return runs.Study('', (runs.Run('a', 'x', c(), 'b'),))"),
        "the teacher of a is 'b', expected a run of it"),
    "a ring of teachers": (
        of_study("def get_study(): return runs.Study('', (runs.Run('a', 'x', c(), 'b'),"
                 "runs.Run('b', 'y', c(), 'a')))"), "a is its own teacher's teacher"),
    "no such baseline": (
        of_study("def get_study(): return runs.Study('', (runs.Run('a', 'x', c()),), 'z')"),
        "its baseline is 'z', expected one of its rows x"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_study_is_one_sentence(name, tmp_path):
    content, says = WRONG[name]
    if content is not None:
        (tmp_path / "s.py").write_text(content)
    with pytest.raises(UserError, match=says):
        spec.load(str(tmp_path / "s.py"))


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
        spec.load(f"{ROOT}/configs/studies/table2.py:{argument}")


def test_a_part_of_the_digits_is_refused():
    config = default_config()
    config.dataset.name = "digits"
    with pytest.raises(ValueError, match="is for the data sets of tfds, expected 1"):
        spec.take_fraction(config, 0.5)
