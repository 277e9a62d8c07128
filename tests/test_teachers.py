"""Published teachers reach their published accuracy here; another normalisation is noticed."""

import pytest

from kd_jax import experiment, measure, teachers
from kd_jax.config import default_config
from kd_jax.errors import UserError

PUBLISHED = {"resnet20": (68.83, 91.01), "resnet44": (71.63, 91.58)}


def certify(arch, cifar100_dir, teacher_dir):
    config = default_config()
    config.dataset.data_dir = str(cifar100_dir)
    config.teacher.arch = arch
    config.teacher.weights = str(teacher_dir / f"cifar100_{arch}.pth")
    run = experiment.build(config)
    measured = measure.Judge(run).measure_teacher("test")
    certified = teachers.certificate(run.teacher, measured, len(run.dataset.test), "")
    return config, certified


@pytest.mark.slow
@pytest.mark.parametrize("arch", PUBLISHED)
def test_a_real_teacher_reaches_its_published_accuracy(arch, cifar100_dir, teacher_dir):
    config, certified = certify(arch, cifar100_dir, teacher_dir)
    assert (certified["top1"], certified["top5"]) == pytest.approx(PUBLISHED[arch], abs=0.005)
    assert certified["examples"] == 10_000
    teachers.check_claim(certified, PUBLISHED[arch][0], config.teacher)
    with pytest.raises(UserError, match=r"expected to reach 75\.00 % .*normalisation"):
        teachers.check_claim(certified, 75.0, config.teacher)
