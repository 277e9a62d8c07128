"""The Python surface: `kd_jax.teacher`, `kd_jax.distill` and what they return.

    import kd_jax as kd

    teacher = kd.teacher("teachers/resnet44")
    run = kd.distill(teacher, "mobilenet_v3_small_cifar", data="cifar100", epochs=50,
                     workdir="runs/a")
    run.metrics["test_top1"], run.student(images), run.history, run.report()

The commands read flags and call the same functions. A library, not a command: it installs no signal
handler, never starts or ends a process, and its errors are exceptions (`UserError`).
"""
