"""What the benchmark says and where it writes it; what it measures is not tested."""

import os

import pytest

from benchmarks import harness, limits, page
from kd_jax.runtime import processor
from kd_jax.runtime.errors import UserError

PAGE = (
    "text\n<!-- distil avx512: measured -->\nold\n<!-- distil avx512: end -->\n\nmore\n"
    "<!-- roofline: measured -->\nlimits\n<!-- roofline: end -->\nend\n"
)


def blocks(text):
    return [line for line in text.splitlines() if line and not line.startswith("<!--")]


def test_every_class_of_processors_has_its_own_table(tmp_path, monkeypatch):
    path = tmp_path / "performance.md"
    path.write_text(PAGE)
    monkeypatch.setattr(page, "PAGE", path)
    page.write("distil", "wide", "avx512")
    page.write("distil", "narrow", "avx2")
    assert blocks(path.read_text()) == ["text", "wide", "narrow", "more", "limits", "end"]
    page.write("distil", r"narrow \1", "avx2")
    page.write("roofline", "other limits")
    text = path.read_text()
    assert blocks(text) == ["text", "wide", r"narrow \1", "more", "other limits", "end"]
    assert text.count("<!-- distil avx2: measured -->") == 1
    for name, kind in (("student", "avx2"), ("distil", "")):
        with pytest.raises(UserError, match=f"no table '{name}'"):
            page.write(name, "lost", kind)
    assert path.read_text() == text


def test_a_limit_reaches_every_library_and_ends(monkeypatch):
    monkeypatch.delenv(processor.VARIABLE, raising=False)
    assert limits.environment() == {}
    assert limits.describe() == f"a real {processor.detected().name} machine"
    if processor.detected().name not in ("avx2", "avx512"):
        pytest.skip("no class below this machine's")
    monkeypatch.setenv(processor.VARIABLE, "sse")
    assert "limited to sse by KD_JAX_CPU=sse" in limits.describe()
    names = set(limits.environment())
    before = {"ATEN_CPU_CAPABILITY"} | names & set(os.environ)  # a limit of this process's own
    assert {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "TORCHINDUCTOR_CPP_MARCH"} < names
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    with harness.surroundings():
        assert os.environ["ATEN_CPU_CAPABILITY"] == "default"
        assert "/inductor/sse-" in os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx512"
    assert names & set(os.environ) == before
    monkeypatch.setenv(processor.VARIABLE, "avx1024")
    with pytest.raises(UserError, match="avx1024"), harness.surroundings():
        pass


def test_a_network_is_searched_for_once_a_run(monkeypatch):
    asked = []
    monkeypatch.setattr(
        harness, "_output", lambda *of: asked.append(of) or {"form": ["f"], "label": "fast"}
    )
    harness.rival.cache_clear()
    spec = {"work": "distil", "teacher": "t", "student": "s", "batch": 8}
    for teacher in ("t", "u", "t"):
        side = harness.best_torch(spec | {"teacher": teacher})
    harness.best_torch({"work": "forward", "student": "t", "batch": 4})
    harness.rival.cache_clear()
    assert len(asked) == 3  # t, u and the student in training
    assert harness.label(side) == "teacher fast; student fast"
