"""The training step: equal to PyTorch's, equal on any number of devices, traced once."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helpers import GOLDEN, golden_state_dict
from kd_jax import models, recipes
from kd_jax.config import default_config
from kd_jax.data import sampler
from kd_jax.distillation import objective
from kd_jax.distillation import state as state_lib
from kd_jax.distillation.student import StudentGradients, StudentSpec
from kd_jax.distillation.update import apply_gradients
from kd_jax.kernels import lowering, ordering
from kd_jax.models import norm as norm_lib
from kd_jax.runtime import devices as devices_lib
from kd_jax.training import hlo
from kd_jax.training import optimizer as optimizer_lib
from kd_jax.weights import torch_import
from tiny_runs import IMAGES, LABELS, run, set_up, small_config

RAW = ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("row", ["funmatch", "seed"])
def test_five_steps_equal_pytorch(row):
    """`kd_steps.npz`: losses of the two recipes in PyTorch, see golden/README.md."""
    golden = np.load(GOLDEN / "kd_steps.npz")[row]
    config = recipes.apply(row)
    # The reference takes one fixed batch, with neither mixup nor clipping, decay or schedule.
    config.optimizer.clip_norm = 0.0
    config.weight_decay = {"funmatch": 0.0, "seed": 1e-4}[row]
    config.schedule.name = "constant"
    x = np.random.default_rng(1).standard_normal((64, 32, 32, 3)).astype("float32")
    teacher = models.build("resnet20", 100, *RAW)
    student = models.build("mobilenet_v3_small", 100, *RAW)
    shape = (32, 32, 3)
    teacher_variables = torch_import.from_state_dict(teacher, golden_state_dict("resnet20"), shape)
    reference = golden_state_dict("mobilenet_v3_small_torchvision")
    variables = torch_import.from_state_dict(student, reference, shape)
    teacher_logits = teacher.logits(teacher_variables, x)
    optimizer = optimizer_lib.build(config, total_steps=1000, warmup_steps=0)
    size = len(x) if config.distill.reduction == "sum" else 1

    @jax.jit
    def step(variables, opt_state):
        params = variables["params"]

        def loss_of(params):
            logits, stats = student.train_logits({**variables, "params": params}, x, None)
            loss = objective.student_loss(config, logits, (teacher_logits,), (1.0,), None, None)
            return size * loss.mean(), stats

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return {"params": params, "batch_stats": stats.of_batch}, opt_state, loss

    opt_state, ours = optimizer.init(variables["params"]), []
    for _ in range(5):
        variables, opt_state, loss = step(variables, opt_state)
        ours.append(float(loss))
    assert ours[0] == pytest.approx(golden[0], rel=1e-4)
    assert ours[-1] == pytest.approx(golden[-1], rel=1e-2)


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


def test_a_student_that_starts_from_weights_keeps_their_batch_statistics():
    """At the first step a tenth was all that was left of them; nine tenths are, at momentum 0.9."""
    student = models.build("resnet8", 10, *RAW)
    variables = {
        "params": {"bias": jnp.zeros(1)},
        "batch_stats": {"bn1": {"mean": jnp.full(3, 2.0)}},
    }
    for weights, old_share in (("", 0.1), ("somewhere", 0.9)):
        config = small_config(**{"student.weights": weights})
        state = state_lib.init_state(config, variables, optax.sgd(0.1))
        spec = StudentSpec(config, student, optax.sgd(0.1))
        metrics = {"loss": jnp.zeros(()), "agreement": jnp.zeros(())}
        of_batch = norm_lib.Statistics({"bn1": {"mean": jnp.full(3, 4.0)}}, {})
        gradients = StudentGradients({"bias": jnp.ones(1)}, metrics, of_batch)
        after, _ = apply_gradients(spec, state, gradients)
        expected = old_share * 2.0 + (1 - old_share) * 4.0
        np.testing.assert_allclose(after.batch_stats["bn1"]["mean"], expected, rtol=1e-6)


def updated(state, loss, log_every_steps):
    """The state and the metrics after one update of one number."""
    config = small_config(log_every_steps=log_every_steps)
    network = types.SimpleNamespace(average_statistics=lambda running, of_batch, step: of_batch)
    spec = StudentSpec(config, network, optax.sgd(0.1))
    gradients = StudentGradients({"bias": jnp.ones(1)}, {"loss": jnp.float32(loss)}, {})
    return apply_gradients(spec, state, gradients)


@pytest.mark.parametrize(("before", "after", "at"), [(10, 4, 13), (4, 10, 13), (100, 5, 7)])
def test_logged_means_are_true_when_log_every_steps_changes_at_a_resume(before, after, at):
    """The mean was divided by the steps since the last multiple of the new value."""
    config = small_config()
    variables = {"params": {"bias": jnp.zeros(1)}, "batch_stats": {}}
    state = state_lib.init_state(config, variables, optax.sgd(0.1))
    state = state.replace(metric_sums={n: jnp.zeros(()) for n in ("loss", "grad_norm", "steps")})
    loss, since = np.random.default_rng(0).random(40), 0
    for step in range(40):
        every = before if step < at else after
        since = step if step % every == 0 else since
        state, metrics = updated(state, loss[step], every)
        assert float(metrics["loss"]) == pytest.approx(loss[since : step + 1].mean(), rel=1e-5)
        assert set(metrics) == {"loss", "grad_norm"}


def test_two_runs_are_bit_identical():
    config = small_config()
    (first, _), (second, _) = run(config, 2, 6), run(config, 2, 6)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_pmap_equals_jit_over_a_mesh():
    """The reference: one program over the global batch, split by the compiler alone."""
    config = small_config()
    _, recorded = run(config, 4, 5)
    step, state, constants = set_up(config, axis_name=None)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    @jax.jit
    def reference(state, constants, batch):
        # An axis of size one stands for the device axis, so the very same step runs.
        one = jax.tree.map(lambda field: field[None], batch)
        mapped = jax.vmap(step, (None, None, 0), axis_name=devices_lib.AXIS)
        out = mapped(state, constants, one)
        return jax.tree.map(lambda leaf: leaf[0], out)

    state, constants = jax.device_put((state, constants), whole)
    for i in range(5):
        batch = jax.device_put(sampler.batch_at(i, 32, len(IMAGES), seed=3), split)
        state, metrics = reference(state, constants, batch)
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
    step, state, constants = set_up(config)
    devices = jax.devices()[:1]
    train_step = devices_lib.pmap(step, devices, (False, False, True))
    batch = devices_lib.shard(sampler.batch_at(0, 32, 200, 3), devices)
    constants = constants._replace(teacher_variables=(state.variables,))
    new_state, metrics = train_step(state, constants, batch)
    assert float(metrics["loss"]) > 0
    before = jax.tree.leaves(state.batch_stats)
    after = jax.tree.leaves(new_state.batch_stats)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_step_is_traced_once():
    traces = 0
    config = small_config()
    step, state, constants = set_up(config)

    def counted(*args):
        nonlocal traces
        traces += 1
        return step(*args)

    devices = jax.devices()[:2]
    train_step = devices_lib.pmap(counted, devices, (False, False, True), donate_argnums=0)
    state, constants = devices_lib.replicate((state, constants), devices)
    for i in range(4):
        batch = devices_lib.shard(sampler.batch_at(i, 32, 200, 3), devices)
        state, _ = train_step(state, constants, batch)
    assert traces == 1
    assert int(state.step) == 4


def test_the_teacher_answers_before_the_student_begins():
    """See `ordering.after`: on CPU collectives wait for the teacher, as a broken one shows."""
    ones = np.ones((2, 3), np.float32)
    pixels = np.float32(IMAGES[:2] / 255)
    np.testing.assert_array_equal(ordering.after([ones, ones], pixels), pixels)
    step, state, constants = set_up(small_config(), axis_name=None)
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), constants.teacher_variables)
    devices = jax.devices()[:1]
    train_step = devices_lib.pmap(step, devices, (False, False, True))
    batch = devices_lib.shard(sampler.batch_at(0, 32, 200, 3), devices)
    for variables, finite in ((constants.teacher_variables, True), (broken, False)):
        after, _ = train_step(state, constants._replace(teacher_variables=variables), batch)
        for leaf in jax.tree.leaves(after.batch_stats):
            assert np.isfinite(leaf).all() == finite
    with lowering.forced("plain"):
        assert ordering.after(ones, IMAGES) is IMAGES


def test_nothing_large_is_copied_at_a_step():
    """Replicated arguments are passed on as they are: only the batch travels."""
    config = small_config()
    step, state, constants = set_up(config)
    devices = jax.devices()[:2]
    train_step = devices_lib.pmap(step, devices, (False, False, True), donate_argnums=0)
    state, constants = devices_lib.replicate((state, constants), devices)
    batch = devices_lib.shard(sampler.batch_at(0, 32, 200, 3), devices)
    state, _ = train_step(state, constants, batch)
    with jax.transfer_guard_device_to_device("disallow"):
        state, _ = train_step(state, constants, batch)
    assert int(state.step) == 2


@pytest.mark.parametrize(("options", "parts"), [
    ({}, 1),
    ({"accumulate": 2}, 2),
    ({"batch_norm.sync": False}, 0),
])  # fmt: skip
def test_gradients_and_statistics_are_reduced_in_few_collectives(options, parts):
    """In the compiled program, and to the byte.

    One for all gradients and metrics, and for every batch norm one each way of each part; without
    synchronisation the statistics go with the gradients.
    """
    config = small_config(**options)
    step, state, constants = set_up(config)
    devices = jax.devices()[:2]
    train_step = devices_lib.pmap(step, devices, (False, False, True))
    batch = devices_lib.shard(sampler.batch_at(0, 32, 200, 3), devices)
    program = train_step.lower(state, constants, batch).compile()
    number, size = hlo.collectives(program.as_text())
    norms = len(jax.tree.leaves(state.batch_stats)) // 2
    assert 1 <= number <= 1 + 2 * norms * parts
    params, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    )
    metrics = 2  # loss and agreement
    assert size == 4 * (params + metrics + statistics * (2 * parts or 1))


def test_decoupled_decay_shrinks_kernels_alone_whatever_the_learning_rate():
    config = small_config(**{"weight_decay": 0.01, "warmup_epochs": 0.0})
    params = {"conv": {"kernel": jnp.ones(4), "bias": jnp.ones(4)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    for rate in (1e-3, 1e-1):
        config.learning_rate = rate
        optimizer = optimizer_lib.build(config, total_steps=100, warmup_steps=0)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["conv"]["kernel"], -0.01, rtol=1e-3)
        np.testing.assert_array_equal(updates["conv"]["bias"], 0)


def test_the_average_of_the_weights_is_what_is_kept():
    config = small_config(**{"student.ema_decay": 0.5})
    averaged, metrics = run(config, 2, 4)
    plain, plain_metrics = run(small_config(), 2, 4)
    assert [m["loss"] for m in metrics] == [m["loss"] for m in plain_metrics]
    jax.tree.map(np.testing.assert_array_equal, averaged.params, plain.params)
    assert plain.variables["params"] is plain.params

    states = [set_up(config)[1], *(run(config, 2, n)[0] for n in (1, 2, 3, 4))]
    expected = jax.device_get(states[0].params)
    for step, state in enumerate(states[1:]):
        share = min(0.5, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda old, new, share=share: share * old + (1 - share) * new, expected, state.params
        )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7),
        averaged.variables["params"],
        expected,
    )
    assert set(averaged.variables) == {"params", "batch_stats"}


def test_smoothed_labels_are_in_the_loss():
    options = {"distill.label_weight": 1.0, "mixup.kind": "none"}
    _, hard = run(small_config(**options), 1, 1, labels=LABELS)
    _, soft = run(small_config(**options, **{"distill.label_smoothing": 0.3}), 1, 1, labels=LABELS)
    _, uniform = run(
        small_config(**options, **{"distill.label_smoothing": 1 - 1e-7}), 1, 1, labels=LABELS
    )
    expected = 0.7 * hard[0]["loss"] + 0.3 * uniform[0]["loss"]
    assert soft[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_sgd_with_l2_equals_its_definition():
    config = small_config(**{
        "optimizer.name": "sgd", "optimizer.decay": "l2", "optimizer.decay_on": "all",
        "optimizer.clip_norm": 0.0, "weight_decay": 0.1, "learning_rate": 0.5,
    })  # fmt: skip
    optimizer = optimizer_lib.build(config, total_steps=10**9, warmup_steps=0)
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


def trained(optimizer, params, gradients, times=1.0):
    """Parameters after one update for each gradient, times a number."""
    params = {leaf: jnp.float32(value) for leaf, value in params.items()}
    state = optimizer.init(params)
    for gradient in gradients:
        gradient = {leaf: times * jnp.float32(value) for leaf, value in gradient.items()}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def of_pytorch(params, gradients, name, clip_norm, decay, rate):
    """What `clip_grad_norm_` and a step of torch.optim.SGD or Adam make of them, in float64."""
    params = {leaf: np.array(value, np.float64) for leaf, value in params.items()}
    first = {leaf: np.zeros_like(value) for leaf, value in params.items()}
    second = {leaf: np.zeros_like(value) for leaf, value in params.items()}
    for step, gradient in enumerate(gradients, 1):
        norm = np.sqrt(sum((np.array(g) ** 2).sum() for g in gradient.values()))
        for leaf, value in params.items():
            g = np.array(gradient[leaf]) * min(1.0, clip_norm / (norm + 1e-6))
            g = g + decay * value  # weight_decay comes after clipping
            if name == "sgd":
                first[leaf] = 0.9 * first[leaf] + g
                params[leaf] = value - rate * (g + 0.9 * first[leaf])
            else:
                first[leaf] = 0.9 * first[leaf] + 0.1 * g
                second[leaf] = 0.999 * second[leaf] + 0.001 * g**2
                root = np.sqrt(second[leaf] / (1 - 0.999**step)) + 1e-8
                params[leaf] = value - rate * first[leaf] / (1 - 0.9**step) / root
    return params


PARAMS = {"kernel": [[3.0, -2.0], [1.0, 4.0]], "bias": [2.0, -1.0]}
GRADIENTS = [  # the second is short enough to be left alone
    {"kernel": [[5.0, 1.0], [-2.0, 0.5]], "bias": [3.0, -4.0]},
    {"kernel": [[0.1, 0.2], [-0.1, 0.3]], "bias": [0.2, 0.1]},
    {"kernel": [[-1.0, 2.0], [4.0, -3.0]], "bias": [0.0, 1.0]},
]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_l2_is_added_after_the_gradient_is_clipped(name):
    config = small_config(**{
        "optimizer.name": name, "optimizer.decay": "l2", "optimizer.decay_on": "all",
        "optimizer.clip_norm": 1.0, "weight_decay": 0.5, "learning_rate": 0.1,
        "schedule.name": "constant",
    })  # fmt: skip
    ours = trained(optimizer_lib.build(config, total_steps=10, warmup_steps=0), PARAMS, GRADIENTS)
    expected = of_pytorch(PARAMS, GRADIENTS, name, 1.0, 0.5, 0.1)
    for leaf, value in expected.items():
        np.testing.assert_allclose(ours[leaf], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_pytorch_is_said_to_do_it_does(name):
    torch = pytest.importorskip("torch")
    params = {leaf: torch.nn.Parameter(torch.tensor(value)) for leaf, value in PARAMS.items()}
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.5),
        "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.5),
    }[name](params.values())
    for gradient in GRADIENTS:
        for leaf, param in params.items():
            param.grad = torch.tensor(gradient[leaf])
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
    expected = of_pytorch(PARAMS, GRADIENTS, name, 1.0, 0.5, 0.1)
    for leaf, param in params.items():
        np.testing.assert_allclose(param.detach().numpy(), expected[leaf], rtol=1e-5)


@pytest.mark.parametrize("decay", ["l2", "decoupled"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_the_optimisers_state_has_the_layout_of_old_checkpoints(decay, clip_norm):
    """Runs of version 1 of the trajectory are evaluated from their checkpoints, which hold it."""
    config = small_config(**{"optimizer.decay": decay, "optimizer.clip_norm": clip_norm})
    decays = optax.add_decayed_weights(config.weight_decay, optimizer_lib.kernels)
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    old = optax.chain(
        decays if decay == "l2" else optax.identity(),
        optax.flatten(optax.chain(*clip, optax.scale_by_adam(), optax.scale(1.0))),
        decays if decay == "decoupled" else optax.identity(),
        optax.scale_by_schedule(lambda step: 1.0),
        optax.scale(-1.0),
    )
    new = optimizer_lib.build(config, total_steps=10, warmup_steps=0)
    params = {leaf: jnp.float32(value) for leaf, value in PARAMS.items()}
    assert jax.tree.structure(new.init(params)) == jax.tree.structure(old.init(params))


@pytest.mark.parametrize("decay", ["l2", "decoupled"])
@pytest.mark.parametrize("name", ["adam", "muon"])
def test_what_is_clipped_is_the_gradient_whatever_the_decay(name, decay):
    """A gradient and ten times it give the same, since both are cut to the norm 1."""
    config = small_config(**{
        "optimizer.name": name, "optimizer.decay": decay, "optimizer.clip_norm": 1.0,
        "weight_decay": 0.3, "learning_rate": 0.1,
    })  # fmt: skip
    optimizer = optimizer_lib.build(config, total_steps=10, warmup_steps=0)
    one, ten = (trained(optimizer, PARAMS, GRADIENTS[:1], times) for times in (1.0, 10.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one, ten)


def test_schedule_warms_up_then_falls_to_zero():
    schedule = optimizer_lib.relative_schedule(100, 10, default_config().schedule)
    values = [float(schedule(step)) for step in range(101)]
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-5)
    assert all(np.diff(values[10:]) <= 0)
    assert values[100] == pytest.approx(0, abs=1e-6)
    shortened = optimizer_lib.relative_schedule(100, 10**6, default_config().schedule)
    assert float(shortened(10)) == 1.0


def losses_of(num_devices, **options):
    _, recorded = run(small_config(**options), num_devices, num_steps=10)
    return [metrics["loss"] for metrics in recorded]


@pytest.mark.slow
def test_parts_one_after_another_are_as_devices_beside_each_other():
    """Without synchronised batch norm: in either case each part has its own statistics."""
    apart = {"batch_norm.sync": False}
    beside = losses_of(2, **apart)
    np.testing.assert_allclose(losses_of(1, accumulate=2, **apart), beside, rtol=3e-6)
    whole = losses_of(2)
    assert np.abs(np.array(beside) / whole - 1).max() > 2e-5  # another training
    np.testing.assert_allclose(losses_of(1, **apart), losses_of(1), rtol=1e-5)


@pytest.mark.parametrize("loss", ["forward_kl", "dist"])
def test_parts_are_the_same_on_any_number_of_devices(loss):
    """With synchronised batch norm, and with DIST's correlation over the examples of a part."""
    options = {"accumulate": 2, "distill.loss": loss}
    one, two, four = (losses_of(devices, **options) for devices in (1, 2, 4))
    np.testing.assert_allclose(two, one, rtol=1e-4)
    np.testing.assert_allclose(four, one, rtol=1e-4)


def test_a_part_is_the_same_examples_however_they_are_dealt_out(monkeypatch):
    """On 1, 2 and 4 devices, and in two processes of two."""
    batch = np.arange(32).reshape(16, 2)
    devices, parts = jax.devices(), 2
    expected = [set(range(16)), set(range(16, 32))]

    def parts_of(dealt):
        assert dealt.shape == (len(dealt), 16 // len(dealt), 2)
        by_part = dealt.reshape(len(dealt), parts, -1)
        return [set(by_part[:, part].ravel().tolist()) for part in range(parts)]

    for number in (1, 2, 4):
        assert parts_of(devices_lib.shard(batch, devices[:number], parts)) == expected
    whole = devices_lib.shard(batch, devices[:4], parts)
    monkeypatch.setattr(devices_lib.processes, "count", lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        dealt = devices_lib.shard(batch, devices[:2], parts)
        np.testing.assert_array_equal(dealt, whole[2 * process : 2 * process + 2])
