"""The zoo's entries: free of JAX, and equal to what is counted from the code."""

import subprocess
import sys

import pytest

from helpers import ROOT, run
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
    before_head = params - 10 * (features + 1), madds - 10 * features, features
    assert cost == zoo.Cost(*before_head, cost.flattened)
    for classes, counts in counted.items():
        assert (cost.total_params(classes), cost.total_madds(classes)) == counts


def test_a_name_that_models_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'kd_jax\.models' has no attribute 'nothing'"):
        models.nothing  # noqa: B018


def test_names_are_those_of_the_entries():
    with pytest.raises(UserError, match="unknown architecture 'none': expected one of resnet8, "):
        zoo.check_arch("none")
    assert list(zoo.NAMES) == list(zoo.MODELS)


@pytest.mark.parametrize("size", [64, 72])
@pytest.mark.parametrize("arch", ["resnet8", "vgg11_bn"])
def test_parameters_of_other_sizes_of_images_are_those_of_the_code(arch, size):
    network = models.build(arch, 7, (0.5,) * 3, (0.25,) * 3)
    counted = models.count_params(network, (size, size, 3))
    assert zoo.MODELS[arch].cost.total_params(7, size) == counted


def test_a_network_that_flattens_takes_no_image_that_is_too_small():
    assert zoo.MODELS["vgg11_bn"].cost.total_params(7, 31) is None
    assert zoo.MODELS["resnet8"].cost.total_params(7, 31) is not None


def table(*arguments):
    done = run("kd_jax.models", *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return rows[0], {row[0]: row[1:] for row in rows[2:]}, lines[-1]


def test_a_budget_of_bytes_leaves_what_fits():
    head, rows, summary = table("--budget_mb=2", "--classes=10")
    assert head[1:4] == ["parameters M", "float32 MB", "int8 MB"]
    counts = {name: entry.cost.total_params(10) for name, entry in zoo.MODELS.items()}
    assert rows.keys() == {name for name, params in counts.items() if params <= 2e6}
    assert list(rows) == sorted(rows, key=counts.__getitem__)
    for name, row in rows.items():
        assert row[1] == f"{4 * counts[name] / 1e6:.3f}"
        assert row[3] == ("float32, int8" if counts[name] <= 5e5 else "int8")
    assert f"{len(counts) - len(rows)} networks do not fit" in summary
    assert "bytes of the weights alone" in summary
    assert table("--budget_mb=0.001")[1] == {}


@pytest.mark.parametrize(("arguments", "says"), [
    (["--budget_ms=3"], "--budget_ms=3 needs --measure"),
    (["--image_size=64"], "--image_size=64 needs --budget_mb or --measure"),
    (["--image_size=4", "--measure"], "image_size"),
    (["--classes=0"], "classes"),
    (["--budget_mb=-1"], "budget_mb"),
    (["--budget_mb=small"], "expected a number"),
])  # fmt: skip
def test_a_wrong_budget_is_one_sentence(arguments, says):
    done = run("kd_jax.models", *arguments)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.proof
def test_files_are_measured_against_the_budget():
    pytest.importorskip("tensorflow", reason="pip install 'kd_jax[export]'")
    head, rows, summary = table("--budget_mb=0.15", "--budget_ms=1000", "--measure")
    assert head[4:6] == ["float32 ms", "int8 ms"]
    (row,) = rows.values()
    assert list(rows) == ["resnet8"]
    cost = zoo.MODELS["resnet8"].cost.total_params(100)
    assert 4 * cost < 1e6 * float(row[1]) < 4.2 * cost
    assert cost < 1e6 * float(row[2]) < 1.4 * cost
    assert all(0 < float(cell) < 1000 for cell in row[3:5])
    assert row[5] == "int8"
    assert "median of one image" in summary


def test_without_tensorflow_the_network_itself_is_measured(monkeypatch):
    from kd_jax.export import latency, zoo_files

    monkeypatch.setattr(zoo_files, "has_runtime", lambda: False)
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    measured = zoo_files.measure("resnet8", 5, 16, 1)
    assert list(measured) == ["float32"]
    assert measured["float32"].bytes is None
    assert measured["float32"].p50_ms > 0
