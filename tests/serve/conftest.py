"""Two small networks as exported files, and images that a server must bear."""

import numpy as np
import pytest

from helpers import patched_zoo
from kd_jax import models
from kd_jax.inference import opening
from networks import SHAPE, of_network
from tiny_runs import Tiny

NAMES = tuple(f"class {number}" for number in range(100))


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Paths of a student and a teacher, which choose different classes."""
    pytest.importorskip("onnxruntime", reason="pip install 'kd_jax[export]'")
    from kd_jax.export import onnx_file

    place = tmp_path_factory.mktemp("exported")
    with patched_zoo(tiny=Tiny):
        network = models.build("tiny", 100, (0.5,) * 3, (0.25,) * 3)
        for seed, name in enumerate(("student", "teacher")):
            variables = network.init(seed, SHAPE)
            head = variables["params"]["fc"]
            head["kernel"] = 30 * np.asarray(head["kernel"])  # or all classes are as probable
            content = onnx_file.content(of_network(network, variables, NAMES), "logits")
            (place / f"{name}.onnx").write_bytes(content)
    return place / "student.onnx", place / "teacher.onnx"


@pytest.fixture(scope="session")
def networks(exported):
    return opening.classifiers(exported[0], teacher=exported[1])
