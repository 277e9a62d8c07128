"""The five lines of the README, on the embedded digits and on the real CIFAR-100."""

import pytest

import kd_jax as kd
from kd_jax.data import sources

SHORT = {"progress_line": False, "num_devices": 2, "steps": 8, "batch_size": 64}


@pytest.mark.slow
def test_the_five_lines_on_the_digits(tmp_path):
    kd.distill(
        None, "resnet8", "digits", recipe="scratch", val_examples=144, workdir=tmp_path / "teacher",
        **SHORT,
    )  # fmt: skip
    teacher = kd.teacher(tmp_path / "teacher")
    run = kd.distill(
        teacher, "resnet8", data="digits", val_examples=144, workdir=tmp_path / "a", **SHORT
    )
    images = sources.digits().test.images
    assert run.student(images).shape == (360, 10)
    assert run.metrics["test_top1"] > 5
    assert run.student.class_names == tuple("0123456789")
    assert "resnet8" in str(run.report())
    assert run.certificate["top1"] == pytest.approx(
        kd.load(tmp_path / "teacher").metrics["test_top1"], abs=0.3
    )


@pytest.mark.proof
def test_the_five_lines_on_cifar100(cifar100_dir, teacher_dir, tmp_path):
    teacher = kd.teacher(teacher_dir / "cifar100_resnet20.pth")
    run = kd.distill(
        teacher, "mobilenet_v3_small_cifar", data="cifar100", workdir=tmp_path / "a",
        data_dir=str(cifar100_dir), teacher__arch="resnet20", **SHORT,
    )  # fmt: skip
    assert run.certificate["top1"] == pytest.approx(68.83, abs=0.02)
    assert [each["kind"] for each in run.history] == ["train", "val"]
    assert run.student.class_names[0] == "apple"
