"""The zoo's entries: free of JAX, and equal to what is counted from the code."""

import importlib
import re
import subprocess
import sys

import pytest
from absl import flags

from helpers import ROOT, flags_apart, run
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
    head, rows, summary = table("--budget_mb=2", "--dataset=cifar10")
    assert head[1:4] == ["parameters M", "float32 MB", "int8 MB"]
    counts = {name: entry.cost.total_params(10) for name, entry in zoo.MODELS.items()}
    assert rows.keys() == {name for name, params in counts.items() if params <= 2e6}
    assert list(rows) == sorted(rows, key=counts.__getitem__)
    for name, row in rows.items():
        assert row[1] == f"{4 * counts[name] / 1e6:.3f}"
        assert row[3] == ("float32, int8" if counts[name] <= 5e5 else "int8")
    assert f"{len(counts) - len(rows)} of {len(counts)} networks do not fit" in summary
    assert "bytes of the weights alone" in summary


def test_an_empty_budget_names_the_smallest_network(monkeypatch, capsys):
    printed = printed_budget(monkeypatch, capsys, "--budget_mb=0.001")
    assert printed == (
        "No network fits. The smallest is resnet8, with 0.336 MB in float32, 0.084 MB in int8.\n\n"
        "100 classes, images of 32 x 32 pixels; bytes of the weights alone: --measure writes the "
        f"files; {len(zoo.MODELS)} of {len(zoo.MODELS)} networks do not fit.\n"
    )


def test_accuracies_of_other_classes_or_images_are_not_shown(monkeypatch, capsys):
    for options in (["--classes=7"], ["--classes=7", "--budget_mb=2"],
                    ["--image_size=64", "--budget_mb=2"]):  # fmt: skip
        printed = printed_budget(monkeypatch, capsys, *options)
        assert "68.83" not in printed
        assert printed.endswith(
            "No accuracy is shown: those of cifar100 are of 100 classes and 32 pixels.\n"
        )
    for options in ([], ["--classes=100"], ["--budget_mb=2"]):
        printed = printed_budget(monkeypatch, capsys, *options)
        assert "68.83 / 91.01" in printed
        assert "No accuracy" not in printed


def test_networks_that_take_no_image_of_a_size_are_counted(monkeypatch, capsys):
    printed = printed_budget(monkeypatch, capsys, "--budget_mb=2", "--image_size=16")
    assert f"4 of {len(zoo.MODELS)} networks take no image of this size" in printed


def printed_budget(monkeypatch, capsys, *options):
    """What the command prints, in this process."""
    with flags_apart():
        sys.modules.pop("kd_jax.models.__main__", None)
        command = importlib.import_module("kd_jax.models.__main__")
        flags.FLAGS(["kd_jax.models", *options])
        command.main([])
    return capsys.readouterr().out


def measured_as(monkeypatch, measure):
    """Have networks measured by `measure(arch)`, without compiling."""
    from kd_jax.export import zoo_files

    monkeypatch.setattr(zoo_files, "measure", lambda arch, *size: measure(arch))
    return zoo_files


def test_what_was_not_measured_does_not_fit(monkeypatch, capsys):
    jax_alone = lambda arch: {"float32": lib.Measured(None, 2.0, lib.JAX)}  # noqa: E731
    lib = measured_as(monkeypatch, jax_alone)
    printed = printed_budget(monkeypatch, capsys, "--measure", "--budget_mb=0.4")
    (row,) = [line for line in printed.splitlines() if line.startswith("| resnet8 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2:7] == ["0.336", "0.084", "2.00", "-", "float32, int8"]
    assert "run by JAX; " in printed
    assert "LiteRT" not in printed
    assert "bytes of the weights alone, and no latency in int8, because TensorFlow" in printed
    assert "| vgg11_bn" not in printed  # whose bytes no file tells
    printed = printed_budget(monkeypatch, capsys, "--measure", "--budget_mb=0.4", "--budget_ms=3")
    assert "| float32 " in printed
    assert "float32, int8" not in printed
    printed = printed_budget(monkeypatch, capsys, "--measure", "--budget_mb=0.1", "--budget_ms=1")
    assert printed.startswith("No network fits. The smallest is resnet8, with 0.336 MB and 2.00 ms")


def test_the_runtime_that_ran_is_named(monkeypatch, capsys):
    lib = measured_as(
        monkeypatch,
        lambda arch: {
            "float32": lib.Measured(400_000, 2.0, "TensorFlow Lite"),
            "int8": lib.Measured(110_000, 1.0, "TensorFlow Lite"),
        },
    )
    printed = printed_budget(monkeypatch, capsys, "--measure", "--budget_mb=0.1")
    assert "run by TensorFlow Lite; " in printed
    assert printed.startswith("No network fits. The smallest is resnet8, with 0.400 MB and 2.00 ms")


def test_what_cannot_be_measured_changes_the_exit_code(monkeypatch, capsys):
    def measure(arch):
        if arch == "resnet8":
            raise UserError("the converter does not take it")
        return {"float32": lib.Measured(10, 2.0, "LiteRT"), "int8": lib.Measured(9, 1.0, "LiteRT")}

    lib = measured_as(monkeypatch, measure)
    with pytest.raises(SystemExit) as raised:
        printed_budget(monkeypatch, capsys, "--measure", "--budget_mb=0.3")
    assert raised.value.code == 2
    said = capsys.readouterr()
    assert said.err == "error: resnet8 is left out: the converter does not take it\n"
    assert f"1 of {len(zoo.MODELS)} networks could not be measured" in said.out
    assert "| resnet20 " in said.out


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
    assert re.search(r"run by (LiteRT|TensorFlow Lite); median of one image", summary)


def test_without_tensorflow_the_network_itself_is_measured(monkeypatch):
    from kd_jax.export import latency, zoo_files

    monkeypatch.setattr(zoo_files, "has_runtime", lambda: False)
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    measured = zoo_files.measure("resnet8", 5, 16, 1)
    assert list(measured) == ["float32"]
    assert measured["float32"].bytes is None
    assert measured["float32"].runtime == "JAX"
    assert measured["float32"].p50_ms > 0
