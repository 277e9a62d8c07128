"""The site of docs/ is built without warnings; a broken link is an error. The notebook runs."""

import json
import os
import re
import subprocess
import sys

import pytest

from helpers import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_student.ipynb"


def test_the_notebook_is_stripped_and_its_links_are_pages():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = notebook["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_pages_of_the_site_are_files_and_every_link_leads_somewhere():
    """As far as it can be seen without mkdocs, which `make docs` has."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    made = {"index.md", "notebooks/first_student.md"}
    for page in set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) - made:
        assert (ROOT / "docs" / page).is_file(), page
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md",
                 *(ROOT / "docs").rglob("*.md")):  # fmt: skip
        text = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)", text):
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_guarding_tests_that_are_named_exist():
    text = (ROOT / "docs" / "traps.md").read_text()
    pairs = re.findall(r"`(tests/[\w/]+\.py)`: `(test_\w+)`", text)
    assert len(pairs) > 20
    for file, name in pairs:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}: {name}"


@pytest.mark.proof
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path):
    pytest.importorskip("mkdocs", reason="make docs installs mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = re.compile(r"""(?:src|href)=["']?https?://[^"'\s>]+\.(?:js|css|woff2?)""")
    for page in (tmp_path / "site").rglob("*.html"):
        assert not asked.search(page.read_text(encoding="utf-8")), page.name
    assert "student_loss_weight" in (tmp_path / "site" / "coming_from.html").read_text()
    assert "learning_rate" in (tmp_path / "site" / "config.html").read_text()
    assert "on_evaluate" in (tmp_path / "site" / "reference" / "python.html").read_text()


@pytest.mark.proof
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells one after another, as a notebook does; the kernel itself is not needed."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    metrics = names["run"].metrics
    assert names["teacher"].metrics["test_top1"] > 90
    assert metrics["test_top1"] > 85
    assert metrics["agreement"] > 85
    assert not names["early"].finished
