"""The command that makes a directory of a file of weights: what it takes, and what it refuses."""

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from helpers import golden_state_dict, write_pth
from kd_jax import import_teacher
from kd_jax.data import catalog
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import load
from kd_jax.weights import published, saved_network


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    state_dict = golden_state_dict("resnet20")
    averaged = state_dict | {"fc.bias": state_dict["fc.bias"] + 1}
    write_pth(path, {"state_dict": state_dict, "state_dict_ema": averaged})
    return path


def run(file, out, *more):
    """Run the command in this process; return the card and the variables that it wrote."""
    with flagsaver.flagsaver():
        flags.FLAGS(["command", "--arch=resnet20", f"--src={file}", f"--out={out}", *more])
        import_teacher.main([])
    return saved_network.load(out)


@pytest.mark.parametrize(("mean", "std", "expected"), [
    ("0,0,0", "1,1,1", ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),  # raw pixels in [0, 1]
    ("0,0,0", "0.00392156862745098," * 2 + "0.00392156862745098", ((0.0,) * 3, (1 / 255,) * 3)),
    ("0.5,1,0", "0.25,0.5,2", ((0.5, 1.0, 0.0), (0.25, 0.5, 2.0))),
])  # fmt: skip
def test_a_normalisation_may_be_any_that_divides(file, tmp_path, mean, std, expected):
    card, _ = run(file, tmp_path / "t", f"--mean={mean}", f"--std={std}")
    assert (card.mean, card.std) == expected


@pytest.mark.parametrize(("mean", "std", "says"), [
    ("0,0,0", "1,0,1", "--std=1,0,1: expected three numbers above 0"),
    ("0,0,0", "1,-1,1", "--std=1,-1,1: expected three numbers above 0"),
    ("0,0,0", "1,inf,1", "--std=1,inf,1: expected three numbers that are finite"),
    ("0,nan,0", "1,1,1", "--mean=0,nan,0: expected three numbers that are finite"),
    ("0,0", "1,1,1", "--mean=0,0: expected three numbers"),
    ("123.7,116.3,103.5", "58.4,57.1,57.4", r"in \[0, 1\] here; divide those of pixels up to 255"),
])  # fmt: skip
def test_a_normalisation_that_cannot_be_is_refused(file, tmp_path, mean, std, says):
    with pytest.raises(UserError, match=says):
        run(file, tmp_path / "t", f"--mean={mean}", f"--std={std}")
    assert not (tmp_path / "t").exists()


def test_one_may_choose_which_weights(file, tmp_path):
    (_, plain), (_, averaged) = (
        run(file, tmp_path / key, f"--key={key}") for key in ("state_dict", "state_dict_ema")
    )
    fc = [variables["params"]["fc"] for variables in (plain, averaged)]
    np.testing.assert_array_equal(fc[0]["bias"] + 1, fc[1]["bias"])
    np.testing.assert_array_equal(fc[0]["kernel"], fc[1]["kernel"])
    with pytest.raises(UserError, match="no weights under --key=ema"):
        run(file, tmp_path / "t", "--key=ema")


def test_the_card_has_the_names_of_the_classes(file, tmp_path):
    card, variables = run(file, tmp_path / "cifar")
    assert card.class_names == catalog.facts("cifar100").class_names
    assert card.claimed_top1 == published.TABLE["cifar100", "resnet20"].top1
    assert card.arrays_sha256 == saved_network.digest_of(variables)
    own = [f"kind {n} ü" for n in range(100)]
    (tmp_path / "names.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
    options = ("--dataset=ours", "--mean=0,0,0", "--std=1,1,1")
    card, _ = run(file, tmp_path / "ours", *options, f"--class_names={tmp_path}/names.txt")
    assert card.class_names == tuple(own)
    card, _ = run(file, tmp_path / "unnamed", *options, "--num_classes=100")
    assert card.class_names is None


@pytest.mark.parametrize("named", [False, True])
def test_a_network_of_other_classes_has_neither_the_names_nor_the_claim(named, tmp_path):
    """The data set is cifar100 where none is named."""
    state_dict = golden_state_dict("resnet20")
    for name in ("fc.weight", "fc.bias"):
        state_dict[name] = state_dict[name][:10]
    write_pth(tmp_path / "x.pth", state_dict)
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    classes = f"--class_names={tmp_path}/names.txt" if named else "--num_classes=10"
    card, _ = run(tmp_path / "x.pth", tmp_path / "t", classes, "--mean=0,0,0", "--std=1,1,1")
    assert card.num_classes == 10
    assert card.class_names == (tuple("abcdefghij") if named else None)
    assert card.claimed_top1 is None


@pytest.mark.parametrize(("arguments", "says"), [
    ((), r"--arch is missing: expected one of resnet8, .*bit_r152x2; --src=FILE.pth .* needed"),
    (("--arch=resnet20", "--src={file}", "--out={out}", "--num_classes=5"),
     r"5 classes is none of cifar100, which has 100 .*: give --dataset, one of .*, or --mean and"),
    (("--arch=resnet20", "--src={file}", "--out={out}", "--dataset=ours", "--num_classes=5"),
     r"unknown data set 'ours': expected one of .*, or besides --mean and --std, which say"),
    (("--arch=resnet20", "--src={file}", "--out={out}", "--dataset=ours"),
     r"or besides --num_classes \(or --class_names\), --mean and --std, which say"),
    (("--arch=resnet20", "--src={out}/nope.pth", "--out={out}"), r"no file of weights at .*nope"),
    (("--arch=resnet20", "--src={place}", "--out={out}"), "is a directory: expected a .pth"),
])  # fmt: skip
def test_what_is_missing_is_told_before_anything_is_read(
    arguments, says, file, tmp_path, monkeypatch
):
    monkeypatch.setattr(load, "import_file", None)
    places = {"file": file, "out": tmp_path / "t", "place": tmp_path}
    with flagsaver.flagsaver():
        flags.FLAGS(["command", *(argument.format(**places) for argument in arguments)])
        with pytest.raises(UserError, match=says):
            import_teacher.main([])
    assert not (tmp_path / "t").exists()


def test_more_of_a_known_set_may_be_taken_for_granted(file, tmp_path, monkeypatch):
    """Where the set is named, its normalisation is meant."""
    seen = []
    monkeypatch.setattr(load, "import_file", lambda *given, **_: seen.append(given) or 1 / 0)
    for options in (("--dataset=cifar100", "--num_classes=5"), ("--num_classes=100",), ()):
        with pytest.raises(ZeroDivisionError):
            run(file, tmp_path / "t", *options)
    assert [given[4] for given in seen] == [5, 100, None]


@pytest.mark.parametrize(("content", "more", "says"), [
    ("a\nb\nb\n", (), "has 3 names, 2 of them different"),
    ("a\n", (), "has 1 names"),
    ("a\nb\n", ("--num_classes=3",), "--num_classes=3, but .* names 2 classes"),
    (None, (), r"names\.txt cannot be read"),
])  # fmt: skip
def test_names_that_cannot_be_are_refused(file, tmp_path, content, more, says):
    if content is not None:
        (tmp_path / "names.txt").write_text(content)
    with pytest.raises(UserError, match=says):
        run(file, tmp_path / "t", f"--class_names={tmp_path}/names.txt", *more)
