"""The outputs of a network are those of the data's classes, by name; or it is refused."""

import dataclasses
import types
import unicodedata

import flax.traverse_util
import numpy as np
import pytest

from image_folders import make_folder
from kd_jax import models
from kd_jax.config import default_config
from kd_jax.data import catalog
from kd_jax.data.dataset import DataSet
from kd_jax.data.sources import Split
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import certificate, heads, load, teacher
from kd_jax.training import setup, teacher_check
from kd_jax.weights import saved_network
from tiny_runs import digits_config

NAMES = ("ant", "bee", "cat", "maple tree", "ox", "yak")
NORMALISATION = (0.5,) * 3, (0.25,) * 3
SHAPE = (32, 32, 3)


def card(arch="resnet8", names=NAMES, classes=6, dataset="folder", **fields):
    return saved_network.ModelCard(
        arch, classes, SHAPE, *NORMALISATION, dataset, 90.0, "its file", "0" * 64,
        class_names=names, **fields,
    )  # fmt: skip


@pytest.mark.parametrize("arch", [
    "resnet8", "vgg11_bn", "mobilenetv2_x0_5", "mobilenet_v3_small", "bit_r50x1",
])  # fmt: skip
def test_the_head_is_found_in_every_family(arch):
    """Its columns are the logits: the selection is exact whatever the network before it."""
    own = card(arch)
    network, shapes = own.network(), models.flat_shapes(own.network(), SHAPE)
    head = heads._head(own)
    assert {path[-1] for path in head} == {"kernel", "bias"}
    assert all(shapes[path][-1] == network.num_classes for path in head)
    assert len({path[:-1] for path in head}) == 1


def test_of_a_network_with_more_classes_those_of_the_data_are_taken_in_its_order(caplog):
    logger.propagate = True
    own = card(certificate={"data_fingerprint": "1"})
    variables = own.network().init(0, SHAPE)
    variables["params"]["fc"]["bias"] = np.arange(6, dtype=np.float32)
    wanted = ("yak", "ant", "maple_tree")
    fitted, selected = heads.fit(own, variables, wanted, 3, "folder")
    assert (fitted.num_classes, fitted.class_names) == (3, wanted)
    assert fitted.claimed_top1 is fitted.certificate is None
    assert (
        fitted.arrays_sha256
        == saved_network.digest_of(selected)
        != saved_network.digest_of(variables)
    )
    pixels = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    all_logits = np.asarray(own.network().logits(variables, pixels))
    some = np.asarray(fitted.network().logits(selected, pixels))
    np.testing.assert_allclose(some, all_logits[:, [5, 0, 3]], rtol=1e-6, atol=1e-6)
    assert "knows 6 classes: its outputs for the 3 of folder are taken" in caplog.text


def test_the_same_classes_in_the_same_order_leave_it_as_it_is():
    for names, classes in ((NAMES, 6), (None, 6), (tuple("maple_tree" if n == "maple tree" else n
                                                         for n in NAMES), 6)):  # fmt: skip
        assert heads.outputs(card(), names, classes, "folder") is None
    accented = ("Hérisson", "Loir")
    other = tuple(unicodedata.normalize("NFD", name) for name in accented)
    assert other != accented
    assert heads.outputs(card(names=accented, classes=2), other, 2, "folder") is None
    assert heads.outputs(card(names=None), NAMES, 6, "folder") is None


@pytest.mark.parametrize(("names", "says"), [
    (("bee", "ant", *NAMES[2:]),
     r"in another order \(0 is ant for it and bee in the data, 1 is bee for it and ant"),
    (("aardvark", *NAMES[1:]), "does not know aardvark, and ant of it is not in the data"),
    ((*NAMES, "zebra"), "does not know zebra, and nothing of it"),
    (("zebra", "ant"), "does not know zebra, and bee, cat, maple tree and 2 more of it are not"),
])  # fmt: skip
def test_other_classes_are_refused_by_name(names, says):
    with pytest.raises(UserError, match=says):
        heads.outputs(card(), names, len(names), "folder")


def test_without_names_the_numbers_must_agree():
    with pytest.raises(UserError, match=r"knows 6 classes, but folder has 3: .*--class_names"):
        heads.outputs(card(names=None), ("ant", "bee", "cat"), 3, "folder")


def test_cards_from_before_names_know_those_of_their_data_set():
    old = card(names=None, classes=100, dataset="cifar100")
    wanted = ("bee", "maple_tree", "wolf")
    chosen = heads.outputs(old, wanted, 3, "folder")
    assert [catalog.facts("cifar100").class_names[n] for n in chosen] == [
        "bee",
        "maple tree",
        "wolf",
    ]
    with pytest.raises(UserError, match="knows other classes than cifar10"):
        heads.outputs(old, catalog.facts("cifar10").class_names, 10, "cifar10")


def leaves(variables):
    return flax.traverse_util.flatten_dict(variables, sep="/")


OTHERS = ("dog", "fox", "wolf")


def test_a_start_of_other_classes_keeps_its_body_and_has_a_new_head(caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    own = card(dataset="cifar100", certificate={"data_fingerprint": "1"})
    variables = own.network().init(0, SHAPE)
    fitted, new = heads.fit_start(own, variables, OTHERS, 3, "folder", seed=7, freeze="layer")
    assert (fitted.num_classes, fitted.class_names) == (3, OTHERS)
    assert fitted.claimed_top1 is fitted.certificate is None
    assert fitted.arrays_sha256 == saved_network.digest_of(new)
    fresh = leaves(fitted.network().init(7, SHAPE))
    for path, leaf in leaves(new).items():
        expected = fresh if path.startswith("params/fc/") else leaves(variables)
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    assert leaves(variables)["params/fc/kernel"].shape == (64, 6)  # and is as it was
    _, again = heads.fit_start(own, variables, OTHERS, 3, "folder", seed=7)
    assert saved_network.digest_of(again) == fitted.arrays_sha256
    _, other = heads.fit_start(own, variables, OTHERS, 3, "folder", seed=8)
    assert saved_network.digest_of(other) != fitted.arrays_sha256
    said = (
        "body is kept: its head of 6 classes of cifar100 is replaced by a new one of 3 classes of"
    )
    assert caplog.text.count(said) == 3


@pytest.mark.parametrize(("own", "data", "is_kept"), [
    ((NAMES, "cifar100"), (NAMES, "folder"), True),
    ((NAMES, "cifar100"), (NAMES[2:], "folder"), True),  # the columns of a part
    ((NAMES, "folder"), (NAMES[::-1], "folder"), False),
    ((NAMES, "folder"), ((*NAMES[:5], "zebra"), "folder"), False),
    ((NAMES, "folder"), ((*NAMES, "zebra"), "folder"), False),
    ((None, "folder"), (NAMES, "folder"), True),  # the same data, before names were kept
    ((None, "odd"), (NAMES, "folder"), False),  # as many of others
    ((NAMES, "odd"), (None, "folder"), False),
    ((None, "odd"), (None, "odd"), True),
])  # fmt: skip
def test_a_start_keeps_its_head_where_it_is_known_to_fit(own, data, is_kept):
    (own_names, own_data), (names, name) = own, data
    network = card(names=own_names, dataset=own_data)
    variables = network.network().init(0, SHAPE)
    classes = len(names) if names else 6
    fitted, new = heads.fit_start(network, variables, names, classes, name, seed=5)
    assert leaves(new)["params/fc/kernel"].shape == (64, classes)
    if is_kept:
        _, expected = heads.fit(network, variables, names, classes, name)
        assert saved_network.digest_of(new) == saved_network.digest_of(expected)
    else:
        fresh = fitted.network().init(5, SHAPE)["params"]["fc"]
        np.testing.assert_array_equal(new["params"]["fc"]["kernel"], fresh["kernel"])


def dataset(classes=6, fingerprint="f" * 64, size=32):
    split = Split(np.zeros((classes, size, size, 3), np.uint8), np.arange(classes, dtype=np.int32))
    return DataSet("folder", split, split, split, classes, *NORMALISATION, fingerprint)


def test_a_teacher_is_fitted_and_never_under_on_mismatch(tmp_path):
    saved_network.save(tmp_path, card(), card().network().init(0, SHAPE))
    options = default_config().teacher
    options.weights, options.on_mismatch = str(tmp_path), "warn"
    its = load.load(options, "folder")
    part = load.fit(its, options, dataset(2), ("cat", "ox"))
    assert part.members[0].network.num_classes == part.ensemble.networks[0].num_classes == 2
    assert part.identity != its.identity
    with pytest.raises(UserError, match="in another order"):
        load.fit(its, options, dataset(), (*NAMES[1:], NAMES[0]))
    with pytest.raises(UserError, match="knows other classes") as told:
        load.fit(its, options, dataset(), ("renamed", *NAMES[1:]))
    assert str(told.value).endswith(
        "; or train a teacher of these classes from it first, with --config=configs/folder.py:"
        "teacher --config.dataset.data_dir=DIR --config.student.arch=resnet8 "
        f"--config.student.weights={tmp_path}, and distil from that run, "
        "--config.teacher.weights=WORKDIR"
    )
    with pytest.raises(UserError, match=r"knows 6 classes, but folder has 7.*distil from that run"):
        load.fit(its, options, dataset(7), None)
    with pytest.raises(UserError, match=r"teacher\.py:resnet8 --config\.dataset\.name=cifar100"):
        load.load(options, "cifar100")


def test_what_differs_from_the_teachers_data_is_said_in_place_of_its_normalisation():
    own = card(certificate={"data_fingerprint": "a" * 64})
    assert certificate.differences(own, dataset(fingerprint="a" * 64)) == []
    words = certificate.differences(own, dataset(size=64))
    assert words == [
        "its data had the fingerprint aaaaaaaa, this has ffffffff",
        "its images had 32 x 32 pixels, these have 64 x 64",
    ]
    network = own.network()
    its = teacher.Teachers((teacher.Teacher(own, network, {}),), None)
    certified = {
        "arch": own.arch, "source": own.source, "dataset": own.dataset, "top1": 70.0,
        "mean": [0.5] * 3, "std": [0.25] * 3, "sha256": own.sha256, "examples": 3,
    }  # fmt: skip
    options = default_config().teacher
    with pytest.raises(UserError, match=r"70.00 % \(of 3 images\): likely its norm") as plain:
        certificate.check_claims(its, certified, options)
    assert "other data" not in str(plain.value)
    assert "another order" not in str(plain.value)
    nameless = teacher.Teachers((teacher.Teacher(card(names=None), network, {}),), None)
    with pytest.raises(UserError, match=r"likely its normalisation .*; or .* another order than"):
        certificate.check_claims(nameless, certified, options)
    with pytest.raises(UserError, match=r"that is of other data .*fingerprint aaaaaaaa") as told:
        certificate.check_claims(its, certified, options, [words])
    assert "normalisation" not in str(told.value)


def test_other_data_is_said_before_the_teacher_is_measured(tmp_path, monkeypatch, caplog):
    """As when five images were added to test since: another fingerprint."""
    monkeypatch.setattr(logger, "propagate", True)
    own = card(certificate={"data_fingerprint": "a" * 64})
    its = teacher.Teachers((teacher.Teacher(own, own.network(), {}),), None)
    run = types.SimpleNamespace(teachers=its, dataset=dataset(), config=default_config())

    def measured(split):
        assert "was measured on other data: its data had the fingerprint aaaaaaaa" in caplog.text
        raise KeyError(split)

    with caplog.at_level("WARNING"), pytest.raises(KeyError, match="test"):
        teacher_check.certify(run, types.SimpleNamespace(members_logits=measured), tmp_path)


def test_what_was_measured_is_the_test_split_alone():
    """As of a student without labels, whose teacher had them: the test split is the same."""
    data = dataset(size=32)
    fingerprints = {"data_fingerprint": "a" * 64, "test_fingerprint": data.test_digest}
    assert certificate.differences(card(certificate=fingerprints), data) == []
    more = dataclasses.replace(data, test=Split(data.test.images, 5 - data.test.labels))
    (says,) = certificate.differences(card(certificate=fingerprints), more)
    assert says.startswith(f"its test split had the fingerprint {data.test_digest[:8]}, this has")


@pytest.mark.parametrize(("fields", "size", "says"), [
    ({}, None, None),  # a file whose images nobody told
    ({"dataset": "cifar100"}, None, "it is for images of 32 x 32 pixels, these have 64 x 64"),
    ({}, 48, "it is for images of 48 x 48 pixels, these have 64 x 64"),
    ({"certificate": {"top1": 1.0}}, None, "its images had 32 x 32 pixels, these have 64 x 64"),
])  # fmt: skip
def test_the_size_of_images_differs_only_where_it_is_known(fields, size, says):
    own = card(**{"dataset": "imagenet2012"} | fields)
    if size:
        own = dataclasses.replace(own, image_shape=(size, size, 3))
    assert certificate.differences(own, dataset(size=64)) == ([says] if says else [])


@pytest.mark.parametrize("own", [None, NAMES])
@pytest.mark.parametrize("names", [None, NAMES])
def test_named_classes_and_a_network_without_names_are_said(own, names, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    nameless = card(names=own)
    assert heads.fit(nameless, {}, names, 6, "folder") == (nameless, {})
    said = caplog.text.count("its file does not name its classes: its 6 outputs are taken for")
    assert said == (own is None and names is not None)


def folder_config(root, teacher):
    config = digits_config(1)
    config.dataset.name, config.dataset.data_dir = "folder", str(root)
    config.dataset.val_examples = 4
    config.batch_size = 8
    config.distill.label_weight = 0.0
    config.teacher.weights = str(teacher)
    config.teacher.on_mismatch = "warn"
    return config


def test_a_run_takes_the_outputs_of_its_classes_and_refuses_others(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    known = ("ant", "bee", "cat", "über")
    own = card(names=known, classes=4)
    saved_network.save(tmp_path / "teacher", own, own.network().init(0, SHAPE))
    make_folder(tmp_path / "set", count=8)
    config = folder_config(tmp_path / "set", tmp_path / "teacher")
    run = setup.build(config)
    assert run.teachers.members[0].card.class_names == ("ant", "bee", "über")
    assert run.teachers.members[0].network.num_classes == run.student.num_classes == 3
    (tmp_path / "set" / "train" / "bee").rename(tmp_path / "set" / "train" / "aphid")
    with pytest.raises(UserError, match="knows other classes than folder: it does not know aphid"):
        setup.build(config)
    own = card(names=("aphid", "ant", "über"), classes=3)
    saved_network.save(tmp_path / "teacher", own, own.network().init(0, SHAPE))
    with pytest.raises(UserError, match="the classes of folder in another order"):
        setup.build(config)
