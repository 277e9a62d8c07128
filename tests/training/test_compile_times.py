"""What is said before the first call of a step is what was seen on this machine, or nothing."""

import json
import logging
import types
from typing import Any

import jax
import pytest
from jax import monitoring

from kd_jax.training.compile_times import FirstCall
from tiny_runs import digits_config

HIT = "/jax/compilation_cache/cache_hits"
SAVED = "/jax/compilation_cache/compile_time_saved_sec"
COMPILED = "/jax/core/compile/backend_compile_duration"


def run_of(**options) -> Any:
    config = digits_config(1)
    config.student.arch = "resnet8"
    config.update_from_flattened_dict(options)
    return types.SimpleNamespace(
        config=config,
        teachers=types.SimpleNamespace(arch="resnet20", is_live=True),
        devices=jax.devices()[:1],
        dataset=types.SimpleNamespace(train=range(100), image_shape=(32, 32, 3)),
        resident=True,
        code={},
    )


@pytest.fixture
def first_call(tmp_path):
    """Return what makes the first call of a run, on an invented clock."""
    now = [0.0]

    def make(seconds, *, cached, steps=1, **options):
        call = FirstCall([run_of(**options)], steps, tmp_path / "times.json", lambda: now[0])
        words = call.expectation()
        with call.measured():
            now[0] += seconds
            if cached:
                monitoring.record_event(HIT)
                monitoring.record_event_duration_secs(SAVED, 20.0)
            monitoring.record_event_duration_secs(COMPILED, 1.0)
            monitoring.record_event_duration_secs(COMPILED, 0.5)  # a small one, never cached
        assert call.from_cache == cached
        return words

    return make


def test_no_figure_is_invented_and_later_ones_are_measured(first_call):
    assert (
        first_call(31.0, cached=False) == "compiling the step (later starts take it from the cache)"
    )
    assert first_call(4.0, cached=True, seed=5) == (
        "loading the step from the compilation cache (compiling took 31s)"
    )
    assert first_call(4.0, cached=True) == (
        "loading the step from the compilation cache (about 4s)"
    )
    other = first_call(29.0, cached=False, **{"distill.temperature": 3.0})
    assert other == "compiling the step (about 31s; later starts take 4s)"
    assert first_call(29.0, cached=False, **{"distill.temperature": 2.0}).startswith(
        "compiling the step (about 29s"  # the newest of its kind
    )


def test_other_networks_and_other_calls_are_another_kind(first_call):
    first_call(31.0, cached=False)
    for options in ({"student.arch": "resnet20"}, {"steps": 8}):
        assert "about" not in first_call(50.0, cached=False, **options)


def test_a_step_that_is_given_its_answers_is_another_kind(first_call):
    first_call(31.0, cached=False, **{"teacher.replay": "answers"})
    assert "about" not in first_call(50.0, cached=False)


def test_it_says_what_happened(first_call, caplog):
    caplog.set_level(logging.INFO, "kd_jax")
    first_call(31.0, cached=False)
    first_call(4.0, cached=True)
    assert "the first call of the step took 31s: compiled" in caplog.text
    assert "the first call of the step took 4s: loaded from the compilation cache" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 3}', '{"x": {"compiled": 1}}'])
def test_damaged_times_are_forgotten(first_call, tmp_path, content):
    (tmp_path / "times.json").write_text(content)
    assert "about" not in first_call(31.0, cached=False)
    assert json.loads((tmp_path / "times.json").read_text()).popitem()[1]["compiled"] == 31.0


def test_times_that_cannot_be_kept_harm_nothing(tmp_path):
    (tmp_path / "file").touch()
    call = FirstCall([run_of()], 1, tmp_path / "file" / "times.json")
    with call.measured():
        pass
