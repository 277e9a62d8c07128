"""The report of files and words that are wrong: one sentence, and no page."""

import json

import pytest

from helpers import run
from kd_jax.report import page, results
from kd_jax.runtime.atomic_files import read_json
from kd_jax.runtime.errors import UserError
from synthetic import write_study


def damaged(name, file, content, says):
    return pytest.param(file, content, says, id=name)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        damaged("no study", "study.json", None, "no study in .*expected a study.json"),
        damaged("study of words", "study.json", '"words"', "is not a study"),
        damaged("cut study", "study.json", '{"title": "a', "study.json is damaged"),
        damaged("study without rows", "study.json", '{"title": "a", "baseline": null}',
                "is not a study .*'runs'"),
        damaged("result of words", "runs/scratch-0/result.json", "[]", "is not what a run writes"),
        damaged("result without accuracy", "runs/scratch-0/result.json",
                '{"student": "a", "dataset": "b", "steps": 1, "epochs": 1}', "its test_top1 is"),
        damaged("result with words", "runs/scratch-0/result.json",
                '{"student": "a", "dataset": "b", "test_top1": 1, "steps": 1, "epochs": 1, '
                '"test_ece": "c"}', "its test_ece is"),
        damaged("config of words", "runs/scratch-0/config.json", "words", "not the config"),
        damaged("probe of words", "runs/MobileNetV2-0/probe.json", "{}", "step, confusion"),
        damaged("probe of other fields", "runs/MobileNetV2-0/probe.json",
                '{"step": 1, "line": [{"share": 1}], "confusion": {}}', "is not what kd_jax.probe"),
        damaged("image from elsewhere", "runs/MobileNetV2-0/probe.json", "http", "no PNG"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_sentence(file, content, says, tmp_path):
    study = write_study(tmp_path / "study", seeds=1)
    path = study / file
    if content == "http":
        probe = read_json(path)
        probe["softmax"]["image"] = "http://example.com/x.png"
        content = json.dumps(probe)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=says):
        page.write_study(results.load_study(study), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_wrong_words_are_one_sentence(tmp_path):
    for arguments, says in (
        ((f"--study={tmp_path}", "a=b"), "expected one or the other"),
        (("words",), "'words' is not LABEL=WORKDIR"),
        (("--csv",), "expected one argument"),
    ):
        done = run("kd_jax.report", *arguments, f"--out={tmp_path}/page.html")
        assert done.returncode == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
