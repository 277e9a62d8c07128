"""Workdirs as finished runs leave them, written in milliseconds: made-up numbers, real formats."""

import base64
import io
import json
import math

import numpy as np
from PIL import Image

from kd_jax import config as config_lib
from kd_jax.data import catalog

NETWORKS = {"resnet44": 71.63, "vgg11_bn": 70.78, "mobilenetv2_x0_75": 73.61}


def write_run(
    directory,
    *,
    top1=40.0,
    teacher="mobilenetv2_x0_75",
    overrides=None,
    result=None,
    finished=True,
    epochs=20,
):
    """Write a run of the study's student; `teacher=None` is one from scratch."""
    directory.mkdir(parents=True)
    config = config_lib.default_config()
    config.total_epochs = float(epochs)
    if teacher is None:
        config.distill.label_weight = 1.0
        config.mixup.kind = "none"
    else:
        config.teacher.arch, config.teacher.weights = teacher, f"teachers/{teacher}"
        certificate = {"arch": teacher, "sha256": f"{teacher}'s", "top1": NETWORKS[teacher]}
        (directory / "teacher.json").write_text(json.dumps(certificate))
    config.update_from_flattened_dict(overrides or {})
    (directory / "config.json").write_text(config_lib.to_json(config))
    records = []
    for step in range(1, 10 * epochs + 1):
        grown = 1 - math.exp(-step / (3 * epochs))
        loss = 5 * math.exp(-step / (4 * epochs)) + 1 / top1
        records.append({"kind": "train", "step": step, "epoch": step / 10, "loss": loss})
        if step % 10 == 0:
            measured = {"top1": top1 * grown, "nll": 4.6 - 3 * grown, "ece": 5.0}
            if teacher:
                measured |= {"agreement": 1.2 * top1 * grown, "kl_to_teacher": 3 - 2 * grown}
            records.append({"kind": "val", "step": step, **measured})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(text)
    if not finished:
        return directory
    content = {
        "student": "mobilenet_v3_small",
        "teacher": teacher,
        "teacher_top1": NETWORKS.get(teacher),
        "dataset": "cifar100",
        "test_top1": top1,
        "test_ece": 7.25,
        "agreement": 1.2 * top1 if teacher else None,
        "kl_to_teacher": 100 / top1 if teacher else None,
        "steps": 10 * epochs,
        "epochs": float(epochs),
        "images_per_second": 1234.5,
        "params": 1_620_356,
        "madds": 2_262_272,
        "best": {"step": 10, "val_top1": top1, "test_top1": top1 - 0.5},
        **(result or {}),
    }
    (directory / "result.json").write_text(json.dumps(content))
    return directory


def write_probe(directory, names=None):
    """Write `probe.json` as `kd_jax.probe` does, of 100 classes."""
    rng = np.random.default_rng(0)
    groups = len(catalog.facts("cifar100").superclass_names)
    by_superclass = rng.integers(0, 4, (groups, groups)) + 60 * np.eye(groups, dtype=int)
    first = [{"class": c, "probability": p} for c, p in ((3, 0.6), (4, 0.25), (99, 0.05))]
    example = {
        "share": 0.7,
        "own": {"image": png(rng), "label": 3},
        "other": {"image": png(rng), "label": 4},
        "mixture": png(rng),
        "teacher": first,
        "student": first[::-1],
    }
    shares = [i / 10 for i in range(11)]
    fields = ("teacher_entropy", "student_entropy", "kl_to_teacher", "agreement")
    probe = {
        "step": 10,
        "class_names": names or [f"class {i}" for i in range(100)],
        "line": [{"share": s, **dict.fromkeys(fields, 1 + s * (1 - s))} for s in shares],
        "examples": [example | {"share": share} for share in (0.5, 0.9, 0.7)],
        "softmax": {
            "index": 7,
            "image": png(rng),
            "label": 3,
            "logits": rng.normal(0, 3, 100).tolist(),
        },
        "confusion": {
            "by_class": np.eye(100, dtype=int).tolist(),
            "by_superclass": by_superclass.tolist(),
            "superclasses": list(catalog.facts("cifar100").superclass_names),
        },
    }
    (directory / "probe.json").write_text(json.dumps(probe))
    return probe


def png(rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# Row, top-1 that is made up here, teacher, changes of the config: the settings of the study's rows.
ROWS = (
    ("scratch", 33.1, None, {}),
    ("ResNet44", 41.2, "resnet44", {}),
    ("VGG11", 38.0, "vgg11_bn", {}),
    ("MobileNetV2", 42.9, "mobilenetv2_x0_75", {}),
    ("T 2", 40.3, "mobilenetv2_x0_75", {"distill.temperature": 2.0}),
    ("T 10", 43.8, "mobilenetv2_x0_75", {"distill.temperature": 10.0}),
    ("lr 0.01", 41.0, "mobilenetv2_x0_75",
     {"distill.temperature": 10.0, "learning_rate": 0.01}),
    ("lr 0.003", 42.5, "mobilenetv2_x0_75", {"learning_rate": 0.003}),
    ("no mixup", 47.6, "mobilenetv2_x0_75",
     {"distill.temperature": 10.0, "mixup.kind": "none"}),
)  # fmt: skip


def write_study(directory, seeds=2, probed=True):
    """Write a study of the rows of Table 2, `seeds` runs each, one of them unfinished."""
    runs = []
    for row, top1, teacher, overrides in ROWS:
        for seed in range(seeds):
            name = f"{row.replace(' ', '_')}-{seed}"
            write_run(
                directory / "runs" / name,
                top1=round(top1 + 0.4 * seed, 2),
                teacher=teacher,
                overrides=overrides | {"seed": seed},
            )
            runs.append(_planned(name, row, seed))
    write_run(directory / "runs" / "more", overrides={"distill.loss": "dist"}, finished=False)
    runs.append(_planned("more", "more", 0))
    if probed:
        write_probe(directory / "runs" / "MobileNetV2-0")
    content = {"title": "A made-up study", "baseline": "MobileNetV2", "runs": runs}
    (directory / "study.json").write_text(json.dumps(content))
    return directory


def _planned(name, row, seed):
    place = f"runs/{name}"
    nothing = {"published": None, "source": None}
    return {"name": name, "row": row, "seed": seed, "workdir": place, **nothing}
