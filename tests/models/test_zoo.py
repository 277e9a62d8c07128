"""The zoo's entries: free of JAX, and equal to what is counted from the code."""

import subprocess
import sys

import pytest

from helpers import ROOT
from kd_jax import models
from kd_jax.models import zoo
from kd_jax.runtime.errors import UserError


def test_the_zoo_and_its_command_do_not_import_jax():
    program = (
        "import sys; import kd_jax.models.__main__, kd_jax.models.zoo as zoo; "
        "zoo.check_arch('resnet44'); assert not {'jax', 'flax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arch", zoo.NAMES)
def test_costs_are_those_of_the_code(arch):
    cost, counted = zoo.MODELS[arch].cost, {}
    for classes in (10, 100):
        network = models.build(arch, classes, (0.5,) * 3, (0.25,) * 3)
        params = models.count_params(network, zoo.IMAGE_SHAPE)
        counted[classes] = params, models.count_madds(network, zoo.IMAGE_SHAPE)
    (params, madds), (_, more_madds) = counted[10], counted[100]
    features = (more_madds - madds) // 90
    assert cost == zoo.Cost(params - 10 * (features + 1), madds - 10 * features, features)
    for classes, counts in counted.items():
        assert (cost.total_params(classes), cost.total_madds(classes)) == counts


def test_a_name_that_models_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'kd_jax\.models' has no attribute 'nothing'"):
        models.nothing  # noqa: B018


def test_names_are_those_of_the_entries():
    with pytest.raises(UserError, match="unknown architecture 'none': expected one of resnet8, "):
        zoo.check_arch("none")
    assert list(zoo.NAMES) == list(zoo.MODELS)
