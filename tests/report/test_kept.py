"""What is kept of a study: all that its figures are made from, and nothing of the machine."""

import json

import pytest

from kd_jax import config as config_lib
from kd_jax.report import kept, results, statistics
from kd_jax.runtime.errors import UserError

# As a probe keeps images; in base64 what looks like a path is none.
IMAGE = "data:image/png;base64,iVBORw0K+/aGk/b2Zh+/Zm9v/YmFy/IFBO=="
RESULT = {
    "student": "resnet8", "dataset": "digits", "test_top1": 91.5, "test_top5": 99.0,
    "test_nll": 0.3, "test_ece": 1.5, "val_top1": 92.0, "steps": 20, "epochs": 1.0, "params": 10,
    "madds": 20, "images_per_second": 5.0, "best": None, "agreement": 95.0, "kl_to_teacher": 0.1,
    "agreement_top5": 99.0, "teacher": "resnet20", "teacher_top1": 93.0,
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """A study of two runs, of which the first is finished."""
    root = tmp_path / "study"
    runs = [
        {"name": f"{row}-s0", "row": row, "seed": 0, "teacher": "", "published": None,
         "source": "", "workdir": f"runs/{row}-s0"}
        for row in ("taught", "late")
    ]  # fmt: skip
    for run in runs:
        directory = root / run["workdir"]
        directory.mkdir(parents=True)
        config = config_lib.default_config().to_dict()
        config["teacher"]["weights"] = str(tmp_path / "teachers" / "resnet20.pth")
        config["dataset"]["data_dir"] = str(tmp_path / "data")
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "metrics.jsonl").write_text('{"kind": "val", "step": 20, "top1": 92.0}\n')
    first = root / runs[0]["workdir"]
    (first / "result.json").write_text(json.dumps(RESULT))
    (first / "probe.json").write_text(
        json.dumps({"step": 20, "confusion": {"by_class": [[1]]}, "softmax": {"image": IMAGE}})
    )
    (root / runs[1]["workdir"] / "metrics.jsonl").unlink()
    (first / "model.safetensors").write_bytes(b"weights")
    start = {
        "processor": "avx512", "host": "my-machine", "platform": "cpu Linux", "git": "abc",
        "command": [
            f"{tmp_path}/kd_jax/study/__main__.py", "--config=configs/studies/crd.py:epochs=12",
            f"--workdir={root}", f"--teachers={tmp_path}/teachers/", "--cohorts=false",
        ],
    }  # fmt: skip
    (first / "provenance.json").write_text(json.dumps([start]))
    certified = {"top1": 71.63, "sha256": "ab", "source": f"{tmp_path}/resnet44.pth"}
    (first / "teacher.json").write_text(json.dumps(certified))
    (root / "study.json").write_text(
        json.dumps({"title": "Two rows", "baseline": "taught", "runs": runs})
    )
    return root


def test_the_page_of_what_is_kept_is_that_of_the_study(study, tmp_path):
    out = tmp_path / "results" / "two"
    assert kept.keep(study, out) == ["taught-s0"]
    before, after = (results.load_study(place) for place in (study, out))
    assert after.rows[0].runs[0].result == before.rows[0].runs[0].result == RESULT
    assert after.rows[0].runs[0].val == before.rows[0].runs[0].val
    assert [run.name for _, run in after.unfinished] == ["late-s0"]
    assert statistics.read(out) == statistics.read(study)


def test_weights_machines_and_places_stay_behind(study, tmp_path):
    out = tmp_path / "kept"
    kept.keep(study, out)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".safetensors"]
    text = "".join(path.read_text() for path in files)
    assert str(tmp_path) not in text
    assert "my-machine" not in text
    (start,) = json.loads((out / "runs/taught-s0/provenance.json").read_text())
    assert start["processor"] == "avx512"
    assert start["git"] == "abc"
    assert " ".join(start["command"]) == (
        "python -m kd_jax.study --config=configs/studies/crd.py:epochs=12 --workdir=study "
        "--teachers=teachers --cohorts=false"
    )
    assert json.loads((out / "runs/taught-s0/probe.json").read_text())["softmax"]["image"] == IMAGE
    teacher = json.loads((out / "runs/taught-s0/teacher.json").read_text())
    assert teacher == {"top1": 71.63, "sha256": "ab", "source": "resnet44.pth"}
    config = json.loads((out / "runs/taught-s0/config.json").read_text())
    assert config["teacher"]["weights"] == "resnet20.pth"


def test_a_later_call_adds_rows_and_another_study_is_refused(study, tmp_path):
    out = tmp_path / "kept"
    kept.keep(study, out)
    (study / "runs/late-s0/result.json").write_text(json.dumps(RESULT | {"test_top1": 90.0}))
    assert kept.keep(study, out) == ["taught-s0", "late-s0"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something else than this study"):
        kept.keep(study, full)
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_nothing_is_written_for_a_study_without_a_finished_run(study, tmp_path):
    (study / "runs/taught-s0/result.json").unlink()
    with pytest.raises(UserError, match="nothing to keep"):
        kept.keep(study, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
