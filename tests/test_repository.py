"""The files that a repository is expected to have agree with the project."""

import re
import tomllib

import pytest
import yaml

import kd_jax
from helpers import ROOT


def commands_of_make_check():
    rule = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [line.strip().removeprefix("$(BIN)/") for line in rule[1].splitlines()]


def test_a_commit_is_checked_by_what_make_check_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (local,) = config["repos"]
    assert local["repo"] == "local"  # nothing is downloaded
    hooks = [hook["entry"].removeprefix(".venv/bin/").split() for hook in local["hooks"]]
    for hook, command in zip(hooks, commands_of_make_check(), strict=True):
        own = [word for word in command.split() if word not in ("--check", ".")]
        assert [word for word in hook if word not in ("--force-exclude", "--fix")] == own


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == kd_jax.__version__
    assert citation["title"].startswith("kd_jax: ")
    assert citation["authors"] == [{"name": "kd_jax developers"}]


@pytest.mark.parametrize("name", ["bug", "question", "feature"])
def test_an_issue_template_is_a_form(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    identifiers = [part["id"] for part in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown", "markdown")
        assert part["attributes"]["label"]


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert shown >= set(kd_jax.__all__) - {"__version__"}


def test_every_extra_is_told_in_the_design():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    design = (ROOT / "docs" / "design.md").read_text()
    for extra in project["optional-dependencies"]:
        assert f"[{extra}]" in design, extra
