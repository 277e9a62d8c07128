"""The certificate of a teacher: the same teacher passes wherever it is, another one is refused."""

import dataclasses

import numpy as np
import pytest

from kd_jax import models
from kd_jax.config import default_config
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import certificate, load
from kd_jax.weights import saved_network

NORMALISATION = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CARD = saved_network.ModelCard(
    "resnet8", 10, (32, 32, 3), *NORMALISATION, "digits", None, "a test", "0" * 64
)


@pytest.fixture(scope="module")
def networks():
    network = models.build("resnet8", 10, *NORMALISATION)
    return [dict(network.init(seed, (32, 32, 3))) for seed in range(2)]


def loaded(directory, dataset="digits"):
    options = default_config().teacher
    options.weights = str(directory)
    return load.load(options, dataset)


@pytest.fixture
def began(networks, tmp_path):
    """A teacher in its directory, and the certificate that a run made of it."""
    saved_network.save(tmp_path / "t", CARD, networks[0])
    logits = np.random.default_rng(0).normal(size=(1, 20, 10)).astype(np.float32)
    return certificate.make(loaded(tmp_path / "t"), logits, np.arange(20) % 10, "data")


def test_the_same_teacher_is_the_same_wherever_it_is(began, networks, tmp_path):
    certificate.check_same(began, loaded(tmp_path / "t"), tmp_path)
    elsewhere = dataclasses.replace(CARD, source="another file", sha256="1" * 64)
    saved_network.save(tmp_path / "elsewhere", elsewhere, networks[0])
    certificate.check_same(began, loaded(tmp_path / "elsewhere"), tmp_path)


@pytest.mark.parametrize(("change", "says"), [
    ({"mean": (0.0, 0.0, 0.0)}, r"mean \[0\.4, 0\.5, 0\.6\] then, \[0\.0, 0\.0, 0\.0\] now"),
    ({"std": (1.0, 1.0, 1.0)}, "std .* then"),
    ({"arch": "resnet20"}, "arch resnet8 then, resnet20 now"),
    ({}, "arrays_sha256 .* then, .* now"),
])  # fmt: skip
def test_another_teacher_under_the_same_hash_of_a_file_is_refused(began, networks, tmp_path, change,
                                                                  says):  # fmt: skip
    card = dataclasses.replace(CARD, **change)
    variables = networks[0] if change else networks[1]
    if card.arch != "resnet8":
        variables = card.network().init(0, (32, 32, 3))
    saved_network.save(tmp_path / "t", card, variables)
    its = loaded(tmp_path / "t")
    assert its.sha256 == began["sha256"]
    with pytest.raises(UserError, match=f"began with the teacher resnet8, and .*{says}"):
        certificate.check_same(began, its, tmp_path)


def test_of_a_run_from_before_arrays_were_hashed_it_is_said_that_its_teacher_may_be_another(
    began, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(certificate.logger, "propagate", True)
    certificate.check_same(began, loaded(tmp_path / "t"), tmp_path)
    assert not caplog.text
    old = {name: value for name, value in began.items() if name != "arrays_sha256"}
    certificate.check_same(old, loaded(tmp_path / "t"), tmp_path)
    assert caplog.text.count("its teacher resnet8 were replaced since, agreement and") == 1
    with pytest.raises(UserError, match="began with the teacher"):
        certificate.check_same(old | {"sha256": "another"}, loaded(tmp_path / "t"), tmp_path)


def test_ensembles_are_compared_member_by_member(began, tmp_path):
    several = {"arch": "resnet8+resnet8", "members": [began, began]}
    with pytest.raises(UserError, match="2 teachers then, 1 now"):
        certificate.check_same(several, loaded(tmp_path / "t"), tmp_path)


def test_kept_logits_belong_to_the_arrays_and_the_normalisation(networks, tmp_path):
    saved_network.save(tmp_path / "t", CARD, networks[0])
    first = loaded(tmp_path / "t").identity
    assert loaded(tmp_path / "t").identity == first
    saved_network.save(tmp_path / "t", dataclasses.replace(CARD, std=(1.0, 1.0, 1.0)), networks[0])
    second = loaded(tmp_path / "t").identity
    saved_network.save(tmp_path / "t", CARD, networks[1])
    assert len({first, second, loaded(tmp_path / "t").identity}) == 3
