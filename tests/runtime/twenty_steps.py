"""Print the losses of 20 distillation steps as JSON, in the forms of this process's processor.

`test_processor.py` runs it under `KD_JAX_CPU` and `KD_JAX_NATIVE`: both are read when JAX starts.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kd_jax.runtime import devices as devices_lib


def main():
    devices_lib.prepare(2, 32)
    import numpy as np
    import training

    from kd_jax import models
    from kd_jax.data import sampler
    from kd_jax.distillation import ensemble
    from kd_jax.distillation import state as state_lib
    from kd_jax.distillation import step as step_lib
    from kd_jax.training import optimizer as optimizer_lib

    config = training.small_config(**{"student.arch": "mobilenet_v3_small"})
    normalisation = (0.5,) * 3, (0.25,) * 3
    student = models.build(config.student.arch, 10, *normalisation, axis_name=devices_lib.AXIS)
    teachers = [models.build(name, 10, *normalisation) for name in ("resnet8", "mobilenetv2_x0_5")]
    # As a run begins: at full rate 20 steps make much of the last digit of the first.
    optimizer = optimizer_lib.build(config, total_steps=2000, warmup_steps=200)
    state = state_lib.init_state(config, student.init(config.seed, (32, 32, 3)), optimizer)
    variables = tuple(teacher.init(9, (32, 32, 3)) for teacher in teachers)
    for tree, head in zip(variables, ("fc", "classifier.1"), strict=True):
        tree["params"][head]["kernel"] *= 30.0  # or untrained teachers know nothing
    group = ensemble.Ensemble(tuple(teachers), (0.5, 0.5), "probabilities")
    step = step_lib.make_train_step(config, student, group, optimizer)
    devices = devices_lib.select(2, 32)
    run = devices_lib.pmap(step, devices, (False, False, True), donate_argnums=0)
    constants = state_lib.Constants(training.IMAGES, None, variables)
    state, constants = devices_lib.replicate((state, constants), devices)
    losses = []
    for i in range(20):
        batch = sampler.batch_at(i, 32, len(training.IMAGES), seed=3)
        state, metrics = run(state, constants, devices_lib.shard(batch, devices))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    from kd_jax.kernels import forms

    print(json.dumps({"losses": losses, "forms": forms.chosen()}))


if __name__ == "__main__":
    main()
