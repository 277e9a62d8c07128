"""Classes of processors: which one this is, which forms it takes, and that all compute the same."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT
from kd_jax.kernels import conv, forms, lowering, native
from kd_jax.runtime import processor
from kd_jax.runtime.errors import UserError
from kd_jax.training import provenance

X86 = [kind.name for kind in processor.CLASSES.values() if kind.needs]
FLAGS = {name: processor.CLASSES[name].needs for name in X86}


def possible():
    """Return the classes of this machine, its own first."""
    names = list(processor.CLASSES)
    own = processor.detected().name
    return names[names.index(own) : len(X86)] if own in X86 else [own]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ((*FLAGS["avx512"], *FLAGS["avx2"], *FLAGS["sse"]), "avx512"),
        ((*FLAGS["avx2"], *FLAGS["sse"]), "avx2"),
        ((*FLAGS["avx512"], *FLAGS["sse"]), "sse"),  # none is skipped
        (("avx2", *FLAGS["sse"]), "sse"),
        (("sse2",), "other"),
        ((), "sse"),  # not Linux
    ],
)
def test_a_class_is_what_the_processor_has_all_of(flags, name, monkeypatch):
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "_cpu_flags", lambda: frozenset(flags))
    assert processor.detected.__wrapped__().name == name


@pytest.mark.parametrize(("machine", "name"), [("arm64", "neon"), ("riscv64", "other")])
def test_other_machines_have_classes_of_their_own(machine, name, monkeypatch):
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert processor.detected.__wrapped__().name == name


@pytest.mark.parametrize("limit", ["avx1024", "AVX2", "neon"])
def test_a_limit_that_is_none_is_one_sentence(limit, monkeypatch):
    if processor.detected().name == limit:
        pytest.skip("that is this machine's own")
    monkeypatch.setenv(processor.VARIABLE, limit)
    with pytest.raises(UserError, match=f"KD_JAX_CPU={limit} is not possible on this machine"):
        processor.current()


def test_a_limit_reaches_xla_and_what_is_inside_it(monkeypatch):
    if "sse" not in possible()[1:]:
        pytest.skip("no lower class here")
    variables = {processor.VARIABLE: "sse", "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=true"}
    monkeypatch.setattr(processor.os, "environ", variables)
    processor.apply_limit()
    assert variables["XLA_FLAGS"].endswith("emitters=true --xla_cpu_max_isa=SSE4_2")
    assert variables["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert processor.cache_key().startswith("sse-")


def test_every_class_has_a_form_for_every_kind():
    for name in processor.CLASSES:
        for kind in forms._DEFAULT:
            order = forms._EXCEPTIONS.get(name, {}).get(kind, forms._DEFAULT[kind])
            assert len(set(order)) == len(order)


def test_a_forced_form_is_taken_where_it_can_be():
    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 1, 16))
    with lowering.forced("cpu"):
        for form in (forms.PLAIN, forms.SHIFTED):
            with forms.forced({forms.DEPTHWISE: form}), forms.recorded() as seen:
                jax.eval_shape(lambda x: conv.conv2d(x, kernel, 1, 16), x)
            assert list(seen[forms.DEPTHWISE]) == [form]
        with forms.forced({forms.DEPTHWISE: "none of them"}), forms.recorded() as seen:
            jax.eval_shape(lambda x: conv.conv2d(x, kernel, 1, 16), x)
        assert "none of them" not in seen[forms.DEPTHWISE]


def test_a_start_on_another_processor_is_said_and_recorded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(provenance.logger, "propagate", True)
    here = {"processor": "avx512", "compiled": "0123"}
    monkeypatch.setattr(provenance, "arithmetic", lambda: here)

    def start(step):
        provenance.add_start(tmp_path, step, "data", None, 2)
        return json.loads((tmp_path / provenance.PROVENANCE_FILE).read_text())[-1]

    assert not start(0)["bits_may_differ"]
    assert not start(10)["bits_may_differ"]
    assert not caplog.text
    here = {"processor": "avx2", "compiled": None}
    record = start(20)
    assert record["bits_may_differ"]
    assert record["processor"] == "avx2"
    assert "goes on on avx2 with no compiled passes and was on avx512" in caplog.text
    assert "from step 20 on" in caplog.text


@pytest.mark.proof
def test_losses_of_20_steps_are_the_same_in_all_forms():
    """The machine's own class, every lower one, and no compiled passes at all."""
    runs = [{processor.VARIABLE: name} for name in possible()]
    runs.append({processor.VARIABLE: possible()[-1], "KD_JAX_NATIVE": "0"})
    got, taken = [], []
    for environment in runs:
        clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "KD_JAX_NATIVE")}
        done = subprocess.run(
            [sys.executable, "tests/runtime/twenty_steps.py"],
            env=clean | environment | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        got.append(told["losses"])
        taken.append(told["forms"])
    assert forms.COMPILED not in str(taken[-1])
    if native.digest():
        assert forms.COMPILED in str(taken[0])
    np.testing.assert_allclose(got, [got[0]] * len(got), rtol=1e-4)


@pytest.mark.proof
@pytest.mark.parametrize("limit", X86)
def test_the_layers_tests_pass_in_every_lower_class(limit):
    if limit not in possible()[1:]:
        pytest.skip(f"this machine's own class is {processor.detected().name}")
    names = ("winograd", "stem", "inverted_residual", "depthwise", "batch_norm")
    files = [f"tests/kernels/test_{name}.py" for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files],
        env=os.environ | {processor.VARIABLE: limit},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
