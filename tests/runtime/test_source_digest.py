"""Digests of a user's code: the same in another process, another after any edit that matters."""

import functools
import subprocess
import sys

import pytest

from kd_jax.runtime import source_digest

LOSS = """
import functools
import helper
from helper import SCALE, Temperature, weigh

def make(power):
    def loss(student, teacher, *, temperature=4.0):
        def inner(x):
            return weigh(x / temperature, SCALE) ** power
        return inner(student - teacher) * helper.OFFSET * Temperature().value
    return loss

loss = make(2)
bound = functools.partial(loss, temperature=2.0)
"""
HELPER = """
SCALE = 3.0
OFFSET = 1.0
UNUSED = 5.0
NAMES = {"mean", "sum", "max"}

class Temperature:
    value = 2.0

def weigh(x, scale):
    return x * scale if "mean" in NAMES else x
"""
MODULES = """
import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

WIDTH = 8

class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(self.features)(x))

class Net(nn.Module):
    depth: int = 2
    last: nn.Module | None = None

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(self.depth):
            x = Block(WIDTH)(x)
        return nn.Dense(10)(x)

class Part(nnx.Module):
    def __init__(self, width, rngs):
        self.linear = nnx.Linear(4, width, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.linear(x))

class Model(nnx.Module):
    def __init__(self, width=8, rate=0.5, seed=0):
        rngs = nnx.Rngs(seed)
        self.parts = nnx.List([Part(width, rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.parts[0](x))
"""


@pytest.fixture
def digest_of(tmp_path):
    """Return `digest(expression, old, new)`: of a value of the files, in a process of its own."""

    def digest(expression, old="", new="", how="of_function"):
        for name, text in (("loss", LOSS), ("helper", HELPER), ("modules", MODULES)):
            assert not old or old in LOSS + HELPER + MODULES
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if old else text)
        program = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.dont_write_bytecode = True\n"
            f"from kd_jax.runtime import source_digest\n"
            f"import {expression.partition('.')[0]}\n"
            f"print(source_digest.{how}({expression}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return digest


def test_a_function_has_the_same_digest_in_every_process_and_another_after_an_edit(digest_of):
    plain = digest_of("loss.loss")
    assert len(plain) == 64
    assert digest_of("loss.loss") == plain  # and strings in sets have another order there
    for old, new in (
        ("temperature=4.0", "temperature=4.5"),  # a default
        ("student - teacher", "teacher - student"),
        ("make(2)", "make(3)"),  # held by the closure
        ("SCALE = 3.0", "SCALE = 3.5"),  # a constant of another file
        ("OFFSET = 1.0", "OFFSET = 2.0"),
        ("value = 2.0", "value = 2.5"),
        ("return x * scale", "return x + scale"),  # another function
        ('"max"', '"min"'),
    ):
        assert digest_of("loss.loss", old, new) != plain, new
    assert digest_of("loss.loss", "UNUSED = 5.0", "UNUSED = 6.0") == plain


def test_a_partial_has_its_arguments_in_the_digest(digest_of):
    plain = digest_of("loss.bound")
    assert plain != digest_of("loss.loss")
    assert plain != digest_of("loss.bound", "temperature=2.0", "temperature=3.0")


def test_a_linen_module_is_its_classes_and_its_fields(digest_of):
    digest = functools.partial(digest_of, how="of_module")
    plain = digest("modules.Net()")
    assert digest("modules.Net()") == plain == digest("modules.Net(depth=2)")
    assert digest("modules.Net(name='other')") == plain
    others = {
        digest("modules.Net(depth=3)"),
        digest("modules.Net(last=modules.Block(3))"),
        digest("modules.Net(last=modules.Block(4))"),
        digest("modules.Net()", "nn.relu(nn.Dense", "nn.gelu(nn.Dense"),  # of a class inside
        digest("modules.Net()", "WIDTH = 8", "WIDTH = 9"),
        digest("modules.Net()", "nn.Dense(10)", "nn.Dense(10, use_bias=False)"),
    }
    assert len(others) == 6
    assert plain not in others
    assert digest("modules.Net()", "rate=0.5", "rate=0.6") == plain  # of another module


def test_an_nnx_module_is_its_classes_and_its_attributes_without_values(digest_of):
    digest = functools.partial(digest_of, how="of_module")
    plain = digest("modules.Model()")
    assert digest("modules.Model()") == plain == digest("modules.Model(seed=1)")
    others = {
        digest("modules.Model(width=9)"),
        digest("modules.Model(rate=0.4)"),
        digest("modules.Model()", "nnx.relu(self", "nnx.gelu(self"),
    }
    assert len(others) == 3
    assert plain not in others


def test_code_without_a_source_has_a_digest_too():
    def of(text):
        space = {"__name__": "nowhere"}
        exec(text, space)
        return source_digest.of_function(space["f"])

    assert of("f = lambda x: x * 2") == of("f = lambda x: x * 2")
    assert of("f = lambda x: x * 2") != of("f = lambda x: x * 3")
    assert of("f = lambda x: x * 2") != of("f = lambda x: x + 2")
    assert of("def f(x, y=1): return x") != of("def f(x, y=2): return x")


def test_functions_that_refer_to_each_other_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert source_digest.of_function(even) != source_digest.of_function(odd)
