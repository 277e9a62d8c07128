"""The table of a study: means, intervals and paired differences, from files alone."""

import csv
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from helpers import ROOT, run
from kd_jax.report import statistics
from kd_jax.runtime.errors import UserError

TOP1 = {"scratch": [30.0, 31.0, 35.0], "seed": [40.0, 42.0, 44.0], "late": [50.0]}


@pytest.fixture
def study(tmp_path):
    """Three rows of up to three seeds; one run of the last row is not finished."""
    listed = []
    for row, values in TOP1.items():
        for seed, top1 in enumerate([*values, None] if row == "late" else values):
            directory = tmp_path / "runs" / f"{row}-s{seed}"
            directory.mkdir(parents=True)
            listed.append(
                {"name": directory.name, "row": row, "seed": seed, "teacher": "",
                 "published": 31.53 if row == "scratch" else None,
                 "source": "somewhere" if row == "scratch" else "",
                 "workdir": f"runs/{directory.name}"}
            )  # fmt: skip
            if top1 is not None:
                result = {
                    "test_top1": top1,
                    "test_ece": 10 * seed + 1.5,
                    "agreement": None if row == "scratch" else top1 + 20,
                    "best": None if (row, seed) == ("seed", 2) else {"test_top1": top1 + 1},
                }
                (directory / "result.json").write_text(json.dumps(result))
    about = {"title": "Three rows", "baseline": "scratch", "runs": listed}
    (tmp_path / "study.json").write_text(json.dumps(about))
    return tmp_path


def test_intervals_are_students():
    # By hand: mean 3, variance 2.5, and the 97.5 % quantile of t with 4 degrees is 2.7764.
    measured = statistics.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (measured["n"], measured["mean"]) == (5, 3.0)
    assert measured["half_width"] == pytest.approx(2.7764451 * math.sqrt(2.5 / 5), rel=1e-7)
    values = np.random.default_rng(0).normal(50, 2, 7)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    measured = statistics.interval(list(values))
    assert measured["mean"] == pytest.approx((low + high) / 2)
    assert measured["half_width"] == pytest.approx((high - low) / 2)


def test_one_number_has_no_interval_and_none_has_no_mean():
    assert statistics.interval([7.0]) == {"n": 1, "mean": 7.0, "half_width": None}
    assert statistics.interval([]) == {"n": 0, "mean": None, "half_width": None}
    assert statistics.interval([7.0, 7.0])["half_width"] == 0


def test_differences_are_paired_by_seed():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 10, 6)  # what a seed does to both rows, and pairing takes out
    ours, theirs = 5 + shared + rng.normal(0, 0.1, 6), shared
    values = dict(zip(range(6), ours.tolist(), strict=True)) | {17: 1000.0}
    baseline = dict(zip(range(6), theirs.tolist(), strict=True)) | {18: -1000.0}
    measured = statistics.paired(values, baseline)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert measured["n"] == 6
    assert measured["mean"] - measured["half_width"] == pytest.approx(expected.low)
    assert measured["mean"] + measured["half_width"] == pytest.approx(expected.high)
    assert measured["half_width"] < 0.1 * statistics.interval(list(ours))["half_width"]


def test_a_study_is_summed_up_row_by_row(study):
    first, second, third = statistics.read(study)["rows"]
    assert first["test_top1"]["mean"] == 32.0
    assert first["agreement"]["n"] == 0
    assert first["test_top1"]["difference"]["mean"] == 0
    # By hand: differences 10, 11, 9; their standard deviation is 1, t with 2 degrees 4.3027.
    assert second["test_top1"]["difference"]["mean"] == 10.0
    assert second["test_top1"]["difference"]["half_width"] == pytest.approx(4.3026527 / 3**0.5)
    assert second["agreement"]["by_seed"] == {0: 60.0, 1: 62.0, 2: 64.0}
    assert (second["best_test_top1"]["n"], second["best_test_top1"]["mean"]) == (2, 42.0)
    assert third["runs"] == ["runs/late-s0"]
    assert third["missing"] == ["late-s1"]
    assert (third["test_top1"]["mean"], third["test_top1"]["half_width"]) == (50.0, None)
    assert third["test_top1"]["difference"] == {"n": 1, "mean": 20.0, "half_width": None}


def test_the_table_says_what_was_measured_and_what_is_published(study):
    header, _, first, second, third = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in statistics.write(study).splitlines()
    ]
    assert header[6:] == ["top-1 against baseline", "published top-1 %"]
    assert first[:6] == ["scratch", "3", "32.00 ± 6.57", "33.00 ± 6.57", "-", "11.50 ± 24.84"]
    assert first[6:] == ["baseline", "31.53"]
    assert second[2:5] == ["42.00 ± 4.97", "42.00 ± 12.71", "62.00 ± 4.97"]
    assert second[6:] == ["+10.00 ± 2.48", "-"]
    assert third[:3] == ["late", "1 of 2", "50.00"]
    about = json.loads((study / "study.json").read_text())
    about["runs"] = [run | {"published": None} for run in about["runs"]]
    (study / "study.json").write_text(json.dumps(about))
    assert "published" not in statistics.write(study)
    assert (study / "table.md").read_text().startswith("# Three rows\n\n|")


def test_every_number_of_the_csv_can_be_found_in_the_runs_that_it_names(study):
    statistics.write(study)
    rows = list(csv.DictReader(io.StringIO((study / "table.csv").read_text())))
    assert [row["row"] for row in rows] == list(TOP1)
    for row in rows:
        results = [
            json.loads((study / directory / "result.json").read_text())
            for directory in row["runs"].split()
        ]
        values = [result["test_top1"] for result in results]
        assert float(row["test_top1_mean"]) == pytest.approx(np.mean(values))
        assert int(row["test_top1_n"]) == len(values)
        if len(values) > 1:
            expected = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            assert float(row["test_top1_half_width"]) == pytest.approx(expected)
    assert rows[2]["missing"] == "late-s1"
    assert rows[0]["published_top1"] == "31.53"
    assert rows[0]["source"] == "somewhere"
    written = json.loads((study / "summary.json").read_text())
    assert written["rows"][1]["test_top1"]["by_seed"] == {"0": 40.0, "1": 42.0, "2": 44.0}


def test_it_is_written_without_jax(study):
    code = (
        "import sys; from pathlib import Path; from kd_jax.report import statistics as summary; "
        f"summary.write(Path({str(study)!r})); assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_prints_the_table_and_refuses_what_is_no_study(study, tmp_path):
    done = run("kd_jax.summary", study)
    assert done.returncode == 0, done.stderr
    assert "| late    | 1 of 2 |" in done.stdout
    with pytest.raises(UserError, match=r"no study in .*: expected its study\.json"):
        statistics.write(tmp_path / "nothing")
    refused = run("kd_jax.summary", tmp_path / "nothing")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: no study in")


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"title": "t"},
        {"title": "t", "baseline": None, "runs": []},
        {"title": "t", "baseline": "a", "runs": [{"name": "a"}]},
    ],
)
def test_a_study_of_something_else_is_one_sentence(wrong, tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"study.json or a result .* is not what kd_jax.study"):
        statistics.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
