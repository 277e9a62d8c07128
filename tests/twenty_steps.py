"""Print the losses of 20 distillation steps as JSON, in the forms of this process's processor.

`test_processors.py` runs it under `KD_JAX_CPU` and `KD_JAX_NATIVE`: both are read when JAX starts.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kd_jax import parallel


def main():
    parallel.prepare(2, 32)
    import numpy as np

    import training
    from kd_jax import batches, ensemble, models, optim, steps

    config = training.small_config(**{"student.arch": "mobilenet_v3_small"})
    normalisation = (0.5,) * 3, (0.25,) * 3
    student = models.build(config.student.arch, 10, *normalisation, axis_name=parallel.AXIS)
    teachers = [models.build(name, 10, *normalisation) for name in ("resnet8", "mobilenetv2_x0_5")]
    # As a run begins: at full rate 20 steps make much of the last digit of the first.
    optimizer = optim.build(config, total_steps=2000, warmup_steps=200)
    state = steps.init_state(config, student.init(config.seed, (32, 32, 3)), optimizer)
    variables = tuple(teacher.init(9, (32, 32, 3)) for teacher in teachers)
    for tree, head in zip(variables, ("fc", "classifier.1"), strict=True):
        tree["params"][head]["kernel"] *= 30.0  # or untrained teachers know nothing
    group = ensemble.Ensemble(tuple(teachers), (0.5, 0.5), "probabilities")
    step = steps.make_train_step(config, student, group, optimizer)
    devices = parallel.select(2, 32)
    run = parallel.pmap(step, devices, (False, False, True), donate_argnums=0)
    constants = steps.Constants(training.IMAGES, None, variables)
    state, constants = parallel.replicate((state, constants), devices)
    losses = []
    for i in range(20):
        batch = batches.batch_at(i, 32, len(training.IMAGES), seed=3)
        state, metrics = run(state, constants, parallel.shard(batch, devices))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    from kd_jax.models import forms

    print(json.dumps({"losses": losses, "forms": forms.taken()}))


if __name__ == "__main__":
    main()
