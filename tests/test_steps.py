"""The training step: equal to PyTorch's, equal on any number of devices, traced once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helpers import GOLDEN, golden_state_dict
from kd_jax import batches, losses, models, optim, parallel, steps, torch_import
from kd_jax.config import default_config

RAW = ((0.0,) * 3, (1.0,) * 3)
IMAGES = np.random.default_rng(5).integers(0, 256, (200, 32, 32, 3), np.uint8)
LABELS = np.random.default_rng(6).integers(0, 10, 200).astype(np.int32)


def test_five_steps_equal_pytorch():
    """`kd_steps.npz`: T^2 KL, averaged over the batch, Adam at 1e-3, against PyTorch's losses."""
    golden = np.load(GOLDEN / "kd_steps.npz")["funmatch"]
    x = np.random.default_rng(1).standard_normal((64, 32, 32, 3)).astype("float32")
    teacher = models.build("resnet20", 100, *RAW)
    student = models.build("mobilenet_v3_small", 100, *RAW)
    shape = (32, 32, 3)
    teacher_variables = torch_import.from_state_dict(teacher, golden_state_dict("resnet20"), shape)
    reference = golden_state_dict("mobilenet_v3_small_torchvision")
    variables = torch_import.from_state_dict(student, reference, shape)
    teacher_logits = teacher.logits(teacher_variables, x)
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(variables, opt_state):
        def loss_of(params):
            logits, stats = student.train_logits({**variables, "params": params}, x, None)
            return losses.kl_divergence(teacher_logits, logits, 5.0).mean(), stats

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": stats}, opt_state, loss

    opt_state, ours = optimizer.init(variables["params"]), []
    for _ in range(5):
        variables, opt_state, loss = step(variables, opt_state)
        ours.append(float(loss))
    assert ours[0] == pytest.approx(golden[0], rel=1e-4)
    assert ours[-1] == pytest.approx(golden[-1], rel=1e-2)


def small_config(**options):
    config = default_config()
    config.student.arch = "resnet8"
    config.batch_size = 32
    config.seed = 3
    config.log_every_steps = 1
    config.update_from_flattened_dict(options)
    return config


def set_up(config, axis_name=parallel.AXIS):
    mean, std = (0.5,) * 3, (0.25,) * 3
    rate = config.student.dropout
    student = models.build("resnet8", 10, mean, std, axis_name=axis_name, dropout_rate=rate)
    teacher = models.build("resnet8", 10, (0.4,) * 3, std)
    optimizer = optim.build(config, total_steps=100, warmup_steps=5)
    state = steps.init_state(config, student, optimizer, (32, 32, 3))
    step = steps.make_train_step(config, student, teacher, optimizer)
    teacher_variables = teacher.init(9, (32, 32, 3))
    teacher_variables["params"]["fc"]["kernel"] *= 100.0  # or an untrained teacher knows nothing
    return step, state, teacher_variables


def run(config, num_devices, num_steps=20, labels=None):
    devices = jax.devices()[:num_devices]
    step, state, teacher_variables = set_up(config)
    train_step = parallel.pmap(step, devices, (False,) * 4 + (True,), donate_argnums=0)
    state, teacher_variables, images = parallel.replicate(
        (state, teacher_variables, IMAGES), devices
    )
    labels = None if labels is None else parallel.replicate(labels, devices)
    recorded = []
    for i in range(num_steps):
        batch = batches.batch_at(i, config.batch_size, len(IMAGES), seed=3)
        args = (state, teacher_variables, images, labels, parallel.shard(batch, devices))
        state, metrics = train_step(*args)
        recorded.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), recorded


RECIPES = {
    "label-free": {"mixup.kind": "batch"},
    "labels": {
        "distill.label_weight": 0.5,
        "mixup.kind": "example",
        "student.dropout": 0.2,
        "optimizer.name": "sgd",
    },
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_number_of_devices_gives_the_same_training(recipe):
    config = small_config(**RECIPES[recipe])
    labels = LABELS if recipe == "labels" else None
    runs = {n: run(config, n, labels=labels) for n in (1, 2, 4)}
    expected = [metrics["loss"] for metrics in runs[1][1]]
    assert np.isfinite(expected).all()
    for n in (2, 4):
        ours = [metrics["loss"] for metrics in runs[n][1]]
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_metrics_are_means_since_the_last_logged_step():
    _, single = run(small_config(), 1, 7)
    _, averaged = run(small_config(log_every_steps=3), 1, 7)
    loss = [metrics["loss"] for metrics in single]
    expected = [np.mean(loss[i - i % 3 : i + 1]) for i in range(7)]
    np.testing.assert_allclose([m["loss"] for m in averaged], expected, rtol=1e-5)


def test_two_runs_are_bit_identical():
    config = small_config()
    (first, _), (second, _) = run(config, 2, 6), run(config, 2, 6)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_pmap_equals_jit_over_a_mesh():
    """The reference: one program over the global batch, split by the compiler alone."""
    config = small_config()
    _, recorded = run(config, 4, 5)
    step, state, teacher_variables = set_up(config, axis_name=None)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    @jax.jit
    def reference(state, teacher_variables, images, batch):
        # An axis of size one stands for the device axis, so the very same step runs.
        one = jax.tree.map(lambda field: field[None], batch)
        mapped = jax.vmap(step, (None, None, None, None, 0), axis_name=parallel.AXIS)
        out = mapped(state, teacher_variables, images, None, one)
        return jax.tree.map(lambda leaf: leaf[0], out)

    fixed = jax.device_put((state, teacher_variables, IMAGES), whole)
    state, (teacher_variables, images) = fixed[0], fixed[1:]
    for i in range(5):
        batch = jax.device_put(batches.batch_at(i, 32, len(IMAGES), seed=3), split)
        state, metrics = reference(state, teacher_variables, images, batch)
        assert float(metrics["loss"]) == pytest.approx(recorded[i]["loss"], rel=1e-4)


def test_distillation_is_label_free():
    """The step takes no labels at all: None in their place is what every label-free run passes."""
    _, recorded = run(small_config(), 1, 3, labels=None)
    assert all(np.isfinite(metrics["loss"]) for metrics in recorded)
    with pytest.raises(AssertionError):
        run(small_config(**{"distill.label_weight": 0.5}), 1, 1, labels=None)


def test_a_perfect_student_has_nothing_to_learn_but_its_batch_statistics():
    """Teacher and student of equal weights: KL is what train mode alone makes of it."""
    config = small_config()
    step, state, _ = set_up(config)
    devices = jax.devices()[:1]
    train_step = parallel.pmap(step, devices, (False,) * 4 + (True,))
    batch = parallel.shard(batches.batch_at(0, 32, 200, 3), devices)
    new_state, metrics = train_step(state, state.variables, IMAGES, None, batch)
    assert float(metrics["loss"]) > 0
    before = jax.tree.leaves(state.batch_stats)
    after = jax.tree.leaves(new_state.batch_stats)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_step_is_traced_once():
    traces = 0
    config = small_config()
    step, state, teacher_variables = set_up(config)

    def counted(*args):
        nonlocal traces
        traces += 1
        return step(*args)

    devices = jax.devices()[:2]
    train_step = parallel.pmap(counted, devices, (False,) * 4 + (True,), donate_argnums=0)
    fixed = parallel.replicate((state, teacher_variables, IMAGES), devices)
    state, teacher_variables, images = fixed
    for i in range(4):
        batch = parallel.shard(batches.batch_at(i, 32, 200, 3), devices)
        state, _ = train_step(state, teacher_variables, images, None, batch)
    assert traces == 1
    assert int(state.step) == 4


def test_nothing_large_is_copied_at_a_step():
    """Replicated arguments are passed on as they are: only the batch travels."""
    config = small_config()
    step, state, teacher_variables = set_up(config)
    devices = jax.devices()[:2]
    train_step = parallel.pmap(step, devices, (False,) * 4 + (True,), donate_argnums=0)
    fixed = parallel.replicate((state, teacher_variables, IMAGES), devices)
    state, teacher_variables, images = fixed
    batch = parallel.shard(batches.batch_at(0, 32, 200, 3), devices)
    state, _ = train_step(state, teacher_variables, images, None, batch)
    with jax.transfer_guard_device_to_device("disallow"):
        state, _ = train_step(state, teacher_variables, images, None, batch)
    assert int(state.step) == 2


def test_gradients_and_statistics_are_reduced_in_few_collectives():
    """One all-reduce for all gradients and metrics, and one each way for every batch norm."""
    config = small_config()
    step, state, teacher_variables = set_up(config)
    devices = jax.devices()[:2]
    train_step = parallel.pmap(step, devices, (False,) * 4 + (True,))
    batch = parallel.shard(batches.batch_at(0, 32, 200, 3), devices)
    text = train_step.lower(state, teacher_variables, IMAGES, None, batch).as_text()
    norms = len(jax.tree.leaves(state.batch_stats)) // 2
    assert text.count("stablehlo.all_reduce") <= 1 + 2 * norms


def test_decoupled_decay_shrinks_kernels_alone_whatever_the_learning_rate():
    config = small_config(**{"weight_decay": 0.01, "warmup_epochs": 0.0})
    params = {"conv": {"kernel": jnp.ones(4), "bias": jnp.ones(4)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    for rate in (1e-3, 1e-1):
        config.learning_rate = rate
        optimizer = optim.build(config, total_steps=100, warmup_steps=0)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.01, rtol=1e-3)
        np.testing.assert_array_equal(updates["conv"]["bias"], 0)


def test_sgd_with_l2_equals_its_definition():
    config = small_config(**{
        "optimizer.name": "sgd", "optimizer.decay": "l2", "optimizer.decay_on": "all",
        "optimizer.clip_norm": 0.0, "weight_decay": 0.1, "learning_rate": 0.5,
    })  # fmt: skip
    optimizer = optim.build(config, total_steps=10**9, warmup_steps=0)
    weight, velocity, gradient = 2.0, 0.0, 0.3
    params = {"bias": jnp.array([weight])}
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update({"bias": jnp.array([gradient])}, state, params)
        params = optax.apply_updates(params, updates)
        total = gradient + 0.1 * weight
        velocity = total + 0.9 * velocity
        weight -= 0.5 * (total + 0.9 * velocity)
        assert float(params["bias"][0]) == pytest.approx(weight, rel=1e-5)


def test_schedule_warms_up_then_falls_to_zero():
    schedule = optim.relative_schedule(total_steps=100, warmup_steps=10)
    values = [float(schedule(step)) for step in range(101)]
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-5)
    assert all(np.diff(values[10:]) <= 0)
    assert values[100] == pytest.approx(0, abs=1e-6)
    shortened = optim.relative_schedule(total_steps=100, warmup_steps=10**6)
    assert float(shortened(10)) == 1.0
