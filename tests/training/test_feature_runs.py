"""Whole runs that match features: what is logged and kept, resume, cohorts, what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax as kd
from kd_jax.api.teachers import TeacherSpec
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from kd_jax.teachers.teacher import ForeignNetwork
from kd_jax.training import saved_student
from kd_jax.weights import saved_network

OPTIONS = {
    "batch_size": 32, "steps": 4, "log_every_steps": 1, "checkpoint_every_steps": 2,
    "num_devices": 2, "progress_line": False, "distill__features": (("trunk", "layer1"),),
}  # fmt: skip


class Plain(nn.Module):
    """A Linen module that was not written for kd_jax."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(12, (3, 3), strides=2, name="trunk")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def teacher():
    module = Plain()
    return kd.teacher(module, module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


def logged(run, name):
    return [each[name] for each in run.history if each["kind"] == "train"]


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory):
    place = tmp_path_factory.mktemp("features") / "run"
    return kd.distill(teacher(), "resnet8", data=digits, workdir=place, **OPTIONS)


def test_a_run_learns_features_and_keeps_the_student_alone(unbroken):
    apart = logged(unbroken, "feature_loss")
    assert len(apart) == 4
    assert 0 < apart[-1] < apart[0]
    assert np.all(np.array(logged(unbroken, "loss")) > apart)  # weight 1
    _, variables = saved_network.load(unbroken.workdir)
    card_of_plain = saved_network.load_card(unbroken.workdir)
    names = jax.tree_util.tree_leaves_with_path(variables)
    assert not any("projector" in jax.tree_util.keystr(path) for path, _ in names)
    shapes = card_of_plain.network().abstract_variables((32, 32, 3))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)


@pytest.mark.proof
def test_a_stopped_run_resumes_with_its_projectors(digits, unbroken, tmp_path):
    class Stop(kd.Callback):
        def on_step(self, step, metrics):
            if step == 2:
                raise kd.StopTraining

    where = dict(data=digits, workdir=tmp_path / "run", **OPTIONS)
    assert not kd.distill(teacher(), "resnet8", callbacks=[Stop()], **where).finished
    run = kd.distill(teacher(), "resnet8", **where)
    for name in ("loss", "feature_loss"):
        assert logged(run, name) == logged(unbroken, name)
    files = [each.workdir / "model.safetensors" for each in (run, unbroken)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_shapes_are_told_and_modules_out_of_reach_are_refused(digits, tmp_path, caplog):
    logger.propagate = True
    host = TeacherSpec(
        "python:host",
        ForeignNetwork(
            "python:host", "a test", "1", call=lambda images: images.mean((1, 2))[:, [0] * 10]
        ),
    )
    function = kd.teacher(lambda v, x: x.reshape(len(x), -1) @ v, np.ones((3072, 10)), name="f")
    for given, says in (
        (host, "does not run in JAX, so its modules are out of reach"),
        (function, "f has no modules that go by a path"),
    ):
        with pytest.raises(UserError, match=says):
            kd.distill(given, "resnet8", data=digits, workdir=tmp_path / "run", **OPTIONS)
        assert not (tmp_path / "run").exists()


@pytest.mark.proof
def test_members_of_a_cohort_may_have_features_of_their_own(tmp_path):
    from kd_jax.training.train import train, train_together
    from tiny_runs import digits_config

    configs = []
    for number, pairs in enumerate(((), (("layer1", "layer1"),), (("conv1", "layer1.0/conv1"),))):
        config = digits_config(2)
        config.student.arch = "resnet8"
        config.distill.label_weight, config.total_steps = 0.0, 4
        config.teacher.arch, config.teacher.weights = "resnet8", str(tmp_path / "teacher")
        config.teacher.tolerance_points = 100.0
        config.distill.features = pairs
        config.distill.feature_loss = "attention" if number == 2 else "mse"
        configs.append(config)
    first = digits_config(2)
    first.student.arch, first.total_steps, first.mixup.kind = "resnet8", 2, "none"
    train(first, tmp_path / "teacher")
    together = train_together(configs, [tmp_path / f"together{n}" for n in range(3)])
    for number, config in enumerate(configs):
        alone = train(config, tmp_path / f"alone{number}")
        assert together[number]["test_nll"] == pytest.approx(alone["test_nll"], rel=1e-3)
    run, step, variables = saved_student.student(tmp_path / "together1", "last")
    assert (step, set(variables)) == (4, {"params", "batch_stats"})
    assert run.features.pairs[0].teacher == "layer1.0"
