"""The report: what is compared, what is shown and what is not, and where every number is from."""

import csv
import html.parser
import io
import json
import re
import subprocess
import sys

import pytest

from helpers import ROOT, command
from kd_jax.report import (
    comparisons,
    figure_style,
    result_table,
    results,
    statistics,
    table2,
)
from kd_jax.report import page as report_page
from kd_jax.runtime.atomic_files import read_json
from synthetic import ROWS, write_probe, write_run, write_study

HEADINGS = (
    "Results",
    "Over seeds",
    "Accuracy",
    "Beside what was published",
    "Is the better teacher the better one to learn from?",
    "What accuracy costs",
    "Teachers (the study's Fig. 7)",
    "Temperatures (the study's Fig. 8)",
    "Learning rates at T = 5 (the study's Figs. 9 and 10)",
    "Learning rates at T = 10 (the study's Figs. 9 and 10)",
    "Mixup (the study's Fig. 11)",
    "From scratch: the student alone, with labels (the study's Fig. 6)",
    "All of them over the training",
    "Along the mixup line",
    "What they make of mixed images",
    "Softmax under temperature",
    "Confusion by superclass",
    "Unfinished",
    "Where the numbers come from",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


class Page(html.parser.HTMLParser):
    """Headings, references and visible text of a page, as a browser would read them."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.references, self.tags, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        wanted = {"href", "src", "xlink:href", "srcset", "action"}
        self.references += [value for name, value in attributes if name in wanted]
        if tag in ("h2", "h3"):
            self.headings.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("h2", "h3"):
            self.headings[-1] += data.replace("\N{NO-BREAK SPACE}", " ").strip()
        self.texts.append(data)


def page_of(workdirs, tmp_path, title="a report"):
    table = report_page.write(workdirs, tmp_path / "report.html", title)
    text = (tmp_path / "report.html").read_text()
    return table, text, Page(text)


def test_a_study_has_every_figure(study, tmp_path):
    report_page.write_study(results.load_study(study), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert [heading for heading in page.headings if heading] == list(HEADINGS)
    # 3 of accuracy, 3 over the epochs of 7 sections, 3 along the line, softmax, confusion.
    assert page.tags.count("svg") == 3 + 3 * 7 + 3 + 1 + 1
    assert page.tags.count("img") == 3 * 3 + 1
    figures_only = (tmp_path / "page.html").read_text().partition("</style>")[2]
    assert not re.search(r"#[0-9a-f]{6}\b", figures_only)  # every colour is the page's


def test_what_is_not_there_is_not_shown(tmp_path):
    alone = write_run(tmp_path / "w", result={"dataset": "digits"})
    _, _, page = page_of({"alone": alone}, tmp_path)
    last = "Where the numbers come from"
    assert page.headings == ["Results", "Accuracy", "Top-1, run by run", "Over the training", last]
    (alone / "config.json").unlink()
    (alone / "metrics.jsonl").unlink()
    _, _, page = page_of({"alone": alone}, tmp_path)
    assert page.tags.count("svg") == 1


def test_seeds_are_one_row_with_their_mean(study, tmp_path):
    content = results.load_study(study)
    assert [row.label for row in content.rows] == [name for name, *_ in ROWS]
    table = result_table.rows(content)
    resnet44 = dict(zip(table[0], table[2], strict=True))
    assert resnet44["seeds"] == "2"
    assert resnet44["top-1 %"] == "41.40 (41.20 to 41.60)"
    assert resnet44["published %"] == "40.67"
    assert resnet44["ECE %"] == "7.25"
    scratch = dict(zip(table[0], table[1], strict=True))
    assert scratch["agreement %"] == scratch["KL to teacher"] == "-"
    markdown = report_page.write_study(content, tmp_path / "page.html")
    assert len(markdown.splitlines()) == 2 + len(ROWS) + 1
    assert markdown.endswith("unfinished: more, at step 200, epoch 20.00 of 20")


def test_over_seeds_stands_what_the_summary_says(study, tmp_path):
    report_page.write_study(results.load_study(study), tmp_path / "page.html")
    cells = Page((tmp_path / "page.html").read_text()).texts
    measured = {row["row"]: row for row in statistics.read(study)["rows"]}["T 10"]
    top1, difference = measured["test_top1"], measured["test_top1"]["difference"]
    assert f"{top1['mean']:.2f} ± {top1['half_width']:.2f}" in cells
    assert f"{difference['mean']:+.2f} ± {difference['half_width']:.2f}" in cells
    one_seed = write_study(tmp_path / "one", seeds=1)
    assert "Over seeds" not in report_page.to_html(results.load_study(one_seed), tmp_path)


def test_the_csv_has_what_the_files_have(study, tmp_path):
    report_page.write_study(
        results.load_study(study), tmp_path / "page.html", tmp_path / "runs.csv"
    )
    lines = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert len(lines) == 2 * len(ROWS) + 1
    for line in lines[:-1]:
        result = read_json(study / "runs" / line["run"] / "result.json")
        best = result.pop("best")
        for field, value in (*result.items(), *((f"best.{k}", v) for k, v in best.items())):
            written = line[field]
            assert written == ("" if value is None else str(value)), field
    assert lines[-1]["finished"] == "False"
    assert lines[-1]["test_top1"] == ""


def test_runs_are_compared_where_one_field_differs(study):
    found = comparisons.find(results.load_study(study).rows)
    assert [(c.field, [row.label for row in c.rows]) for c in found] == [
        ("teacher", ["ResNet44", "VGG11", "MobileNetV2"]),
        ("distill.temperature", ["T 2", "MobileNetV2", "T 10"]),
        ("learning_rate", ["MobileNetV2", "lr 0.003"]),
        ("learning_rate", ["T 10", "lr 0.01"]),
        ("mixup", ["T 10", "no mixup"]),
    ]
    assert found[1].labels == ("T = 2", "T = 5", "T = 10")


def test_other_fields_are_compared_too_and_lengths_are_told(tmp_path):
    for name, overrides, epochs in (
        ("same", {}, 20),
        ("own crops", {"distill.view": "independent"}, 20),
        ("longer", {}, 30),
        ("both", {"distill.view": "independent", "learning_rate": 0.1, "seed": 5}, 20),
    ):
        write_run(tmp_path / name, overrides=overrides, epochs=epochs)
    names = ("same", "own crops", "longer", "both")
    rows = results.load_runs({name: tmp_path / name for name in names}, "").rows
    found = {c.field: c for c in comparisons.find(rows)}
    assert set(found) == {"distill.view", "learning_rate"}
    assert set(found["distill.view"].labels) == {
        "same, 20 epochs", "same, 30 epochs", "independent, 20 epochs"
    }  # fmt: skip
    assert found["learning_rate"].labels == ("0.001", "0.1")


@pytest.mark.parametrize("row", table2.TABLE_2, ids=str)
def test_each_published_row_is_found_by_its_settings(row):
    config = {
        "distill.label_weight": 0.0 if row.teacher else 1.0,
        "mixup.kind": "example" if row.mixup else "none",
        "learning_rate": row.learning_rate,
        "distill.temperature": row.temperatures[0] if row.teacher else 5.0,
        "dataset.test_split": "test",
    }
    result = {"dataset": "cifar100", "student": "mobilenet_v3_small", "teacher": row.teacher}
    assert table2.find_published(config, result).top1 == row.top1
    assert table2.find_published(config | {"learning_rate": 0.5}, result) is None
    assert table2.find_published(config | {"dataset.test_split": "test[:9]"}, result) is None
    assert table2.find_published(config, result | {"dataset": "cifar10"}) is None
    assert table2.find_published(config, result | {"student": "mobilenet_v3_small_cifar"}) is None


EVIL = "<script>alert(1)</script>\"'&$x_1$"


def test_what_files_say_is_escaped(tmp_path):
    workdir = write_run(tmp_path / "w", result={"student": EVIL, "teacher": EVIL, EVIL: EVIL})
    other = write_run(tmp_path / "v", overrides={"distill.temperature": 2.0})
    write_probe(workdir, names=[EVIL] * 100)
    _, text, page = page_of({EVIL: workdir, "other": other}, tmp_path, title=EVIL)
    assert not {"script", "iframe", "link"} & set(page.tags)
    assert "<script" not in text
    assert EVIL in "".join(page.texts)
    assert text.count("<svg") == text.count("</svg>")


def test_nothing_is_fetched_and_every_row_leads_to_its_files(study, tmp_path):
    report_page.write_study(results.load_study(study), study / "page.html")
    text = (study / "page.html").read_text()
    page = Page(text)
    local = [r for r in page.references if not r.startswith(("#", "data:image/png;base64,"))]
    for reference in local:
        assert (study / reference).is_file(), reference
    for row, seed in ((name, seed) for name, *_ in ROWS for seed in (0, 1)):
        assert f"runs/{row.replace(' ', '_')}-{seed}/result.json" in local
    style = re.sub(r"url\(#[\w-]+\)", "", text)
    for outside in ("@import", "url(", "<script", "<link", "javascript:"):
        assert outside not in style


def test_the_same_runs_give_the_same_page(study):
    report_page.write_study(results.load_study(study), study / "page.html")
    first = (study / "page.html").read_bytes()
    # Another process has other hashes, so what depends on the order of a set would differ.
    arguments = ("kd_jax.report", f"--study={study}", f"--out={study}/page.html")
    options = command(*arguments, environment={"PYTHONHASHSEED": "7"})
    subprocess.run(**options, check=True)
    assert (study / "page.html").read_bytes() == first
    assert len(first) < 600_000


def test_no_module_of_the_report_imports_jax():
    code = (
        "import importlib, pkgutil, sys; from kd_jax import report\n"
        "for module in pkgutil.iter_modules(report.__path__):\n"
        "    importlib.import_module(f'kd_jax.report.{module.name}')\n"
        "print(len(report.__dict__) > 10, sorted({'jax', 'tensorflow', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "True []"


def test_the_report_needs_neither_jax_nor_tensorflow(study, tmp_path):
    code = (
        "import contextlib, runpy, sys\n"
        f"sys.argv = ['report', '--study={study}', '--out={tmp_path}/page.html']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    runpy.run_module('kd_jax.report', run_name='__main__')\n"
        "print(sorted({'jax', 'tensorflow', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "page.html").exists()


def test_a_log_that_a_kill_cut_short_is_read_as_far_as_it_goes(tmp_path):
    workdir = write_run(tmp_path / "w")
    log = workdir / "metrics.jsonl"
    whole = len(results.load_run("w", workdir).val)
    log.write_text(log.read_text()[:-20] + '\n[1]\n{"kind": "val"}\n')
    assert len(results.load_run("w", workdir).val) == whole - 1
    with log.open("a") as file:
        file.write('{"kind": "val", "step": 199, "top1": NaN, "nll": "words"}\n')
    _, text, _ = page_of({"w": workdir, "again": workdir}, tmp_path)
    assert "NaN" not in text.partition("<details>")[0]


def test_lines_beyond_the_colours_are_named(tmp_path):
    workdir = write_run(tmp_path / "w", epochs=2)
    names = [f"run {i}" for i in range(figure_style.MOST_LINES + 2)]
    _, text, _ = page_of(dict.fromkeys(names, workdir), tmp_path)
    assert f"Not drawn, for want of colours: {names[-2]}, {names[-1]}." in text


def test_a_study_may_bring_what_is_published_and_may_have_nothing_yet(tmp_path):
    write_run(tmp_path / "a", result={"dataset": "digits"})
    write_run(tmp_path / "b", finished=False)
    listed = [{"name": name, "row": name, "workdir": name, "published": None} for name in "ab"]
    content = {"title": "t", "baseline": None, "runs": listed}
    listed[0] |= {"published": 39.5, "source": "somebody <2020>"}
    (tmp_path / "study.json").write_text(json.dumps(content))
    markdown = report_page.write_study(results.load_study(tmp_path), tmp_path / "page.html")
    assert "39.50" in markdown
    assert "somebody &lt;2020&gt;" in (tmp_path / "page.html").read_text()
    (tmp_path / "a" / "result.json").unlink()
    report_page.write_study(results.load_study(tmp_path), tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert page.headings == ["Unfinished"]
    assert "No run is finished yet." in page.texts


def test_seeds_are_averaged_where_all_of_them_are(tmp_path):
    for seed, epochs in enumerate((3, 1)):
        write_run(tmp_path / str(seed), overrides={"seed": seed}, epochs=epochs)
    runs = [{"name": n, "row": "row", "workdir": n, "published": None} for n in "01"]
    runs.append({"name": "2", "row": "other", "workdir": "1", "published": None})
    content = {"title": "t", "baseline": None, "runs": runs}
    (tmp_path / "study.json").write_text(json.dumps(content))
    study = results.load_study(tmp_path)
    ends = [run.val[0]["top1"] for run in study.rows[0].runs]
    report_page.write_study(study, tmp_path / "page.html")
    assert f">row: {sum(ends) / 2:.1f}<" in (tmp_path / "page.html").read_text()
