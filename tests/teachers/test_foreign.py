"""Teachers from other libraries: the same numbers, and one sentence for what is wrong."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kd_jax as kd
from kd_jax.config import default_config
from kd_jax.models import preprocessing
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import foreign
from kd_jax.training import setup
from kd_jax.training.evaluator import Evaluator

OPTIONS = {
    "student": "resnet8", "batch_size": 32, "steps": 20, "log_every_steps": 1, "num_devices": 2,
    "progress_line": False,
}  # fmt: skip


def losses(run):
    return [each["loss"] for each in run.history if each["kind"] == "train"]


def teach(teacher, digits, workdir, **options):
    run = kd.distill(teacher, data=digits, workdir=workdir, **{**OPTIONS, **options})
    assert len(losses(run)) == 20
    assert np.isfinite(losses(run)).all()
    return run


def test_preprocessing_resizes_orders_and_normalises():
    pixels = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    whole = preprocessing.Preprocessing(mean, std, "bgr", 16)(pixels)
    assert whole.shape == (2, 16, 16, 3)
    plain = preprocessing.Preprocessing(mean, std)(pixels)
    np.testing.assert_allclose(plain, (pixels - np.float32(mean)) / np.float32(std), rtol=1e-6)
    bgr = preprocessing.Preprocessing(mean, std, "bgr")(pixels)
    np.testing.assert_array_equal(bgr, plain[..., ::-1])


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("teachers/resnet44", ("", "teachers/resnet44", "")),
        ("torch:a.b:c", ("torch", "a.b:c", "")),
        ("torch:a.b:c@/x/y.pth", ("torch", "a.b:c", "/x/y.pth")),
        ("timm:resnet50.a1_in1k", ("timm", "resnet50.a1_in1k", "")),
        ("onnx:/a/b.onnx", ("onnx", "/a/b.onnx", "/a/b.onnx")),
        ("C:teacher", ("", "C:teacher", "")),
    ],
)
def test_kinds(place, parts):
    assert foreign.split(place) == parts


def test_a_linen_module_and_an_nnx_module_teach(digits, tmp_path):
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), 2)(x))
            return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x).mean((1, 2))))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(8, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))

    variables = Linen().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    run = teach(kd.teacher(Linen(), variables), digits, tmp_path / "linen")
    assert run.certificate["arch"] == "python:Linen"
    model = Nnx(nnx.Rngs(0))
    run = teach(kd.teacher(model), digits, tmp_path / "nnx")
    assert run.certificate["arch"] == "python:Nnx"
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    network = kd.teacher(model).network
    model.eval()
    np.testing.assert_allclose(network.apply(network.variables, images), model(images), atol=1e-5)


class TestTorch:
    """PyTorch, where it is installed."""

    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch", reason="pip install torch for its teachers")

    def test_a_module_that_is_in_no_zoo_teaches_from_a_name_and_as_an_object(
        self, digits, tmp_path
    ):
        import torch_networks

        named = teach("torch:torch_networks:small", digits, tmp_path / "named")
        given = teach(kd.teacher(torch_networks.small()), digits, tmp_path / "given")
        assert losses(named) == losses(given)
        assert named.certificate["arch"] == "torch:torch_networks:small"
        assert named.certificate["arrays_sha256"] == given.certificate["arrays_sha256"]

    def test_it_answers_as_pytorch_does(self):
        import torch_networks

        module = torch_networks.small()
        network = kd.teacher(module).network
        images = np.random.default_rng(0).normal(size=(150, 32, 32, 3)).astype(np.float32)
        with self.torch.no_grad():
            expected = module(self.torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
        np.testing.assert_allclose(network.call(images), expected, atol=1e-5)
        assert not module.training

    def test_its_input_size_and_channels(self, digits, tmp_path):
        teacher = kd.teacher(
            "torch:torch_networks:small", input_size=48, channels="bgr", normalisation="imagenet"
        )
        run = teach(teacher, digits, tmp_path / "run")
        assert run.certificate["mean"] == [0.485, 0.456, 0.406]
        other = teach("torch:torch_networks:small", digits, tmp_path / "other")
        assert losses(run) != losses(other)

    @pytest.mark.parametrize(
        ("place", "says"),
        [
            ("torch:torch_networks", "expected torch:package.module:factory"),
            ("torch:torch_networks:nothing", "cannot be imported"),
            ("torch:no_such_module:resnet", "cannot be imported"),
            ("torch:torch_networks:broken", "RuntimeError: no such checkpoint"),
            ("torch:torch_networks:no_module", "expected a torch.nn.Module"),
            ("torch:torch_networks:resnet44", "knows 100 classes"),
            ("torch:torch_networks:small@missing.pth", "missing.pth"),
            ("torch:", "expected a name after torch:"),
            ("python:Net", "was given as a Python object"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, digits, tmp_path, place, says):
        with pytest.raises(UserError, match=says):
            kd.distill(place, data=digits, workdir=tmp_path / "run", **OPTIONS)
        assert not (tmp_path / "run").exists()

    def test_a_module_that_fails_when_it_is_imported_is_one_sentence(
        self, digits, tmp_path, monkeypatch
    ):
        (tmp_path / "failing_networks.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(UserError, match="fails with ZeroDivisionError: division by zero"):
            kd.distill("torch:failing_networks:net", data=digits, workdir=tmp_path / "r", **OPTIONS)

    def test_weights_must_fit(self, digits, tmp_path):
        import torch_networks

        state = torch_networks.small().state_dict()
        state["head.weight"] = state["head.weight"][:, :4]
        state["tail"] = state.pop("stem.bias")
        self.torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"head.weight has shape \(10, 4\), expected \(10, 8\)"):
            kd.distill(
                f"torch:torch_networks:small@{tmp_path / 'w.pth'}", data=digits,
                workdir=tmp_path / "run", **OPTIONS,
            )  # fmt: skip

    @pytest.mark.proof
    @pytest.mark.parametrize(("arch", "top1"), [("resnet44", 71.63), ("resnet56", 72.63)])
    def test_real_weights_are_certified_through_pytorch(
        self, arch, top1, cifar100_dir, teacher_dir
    ):
        config = default_config()
        config.dataset.data_dir = str(cifar100_dir)
        weights = teacher_dir / f"cifar100_{arch}.pth"
        config.teacher.weights = f"torch:torch_networks:{arch}@{weights}"
        run = setup.build(config)
        logits = Evaluator(run).members_logits("test")[0]
        correct = logits.argmax(axis=-1) == run.dataset.test.labels
        assert 100 * correct.mean() == pytest.approx(top1, abs=0.02)

    @pytest.mark.slow
    def test_real_weights_teach_as_our_own_network(self, cifar100_dir, teacher_dir, tmp_path):
        """By SGD: Adam makes whole steps of gradients that are rounding noise."""
        weights = teacher_dir / "cifar100_resnet44.pth"
        options = {
            **OPTIONS, "data_dir": str(cifar100_dir), "student": "mobilenet_v3_small",
            "batch_size": 128, "optimizer__name": "sgd", "learning_rate": 0.01,
        }  # fmt: skip
        own = kd.distill(
            str(weights), workdir=tmp_path / "own", teacher__arch="resnet44", **options
        )
        through = kd.distill(
            f"torch:torch_networks:resnet44@{weights}", workdir=tmp_path / "torch", **options
        )
        np.testing.assert_allclose(losses(through), losses(own), rtol=1e-4)
        assert through.certificate["top1"] == pytest.approx(own.certificate["top1"], abs=0.02)


def test_an_onnx_file_teaches(digits, tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install onnx onnxruntime for their files")
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    for name, shape, kind in (
        ("float", ["n", 3, 32, 32], onnx.TensorProto.FLOAT),
        ("fixed", [16, 3, 32, 32], onnx.TensorProto.FLOAT),
    ):
        kernel = rng.normal(0, 0.1, (3 * 32 * 32, 10)).astype(np.float32)
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node("Flatten", ["x"], ["flat"]),
                onnx.helper.make_node("MatMul", ["flat", "kernel"], ["y"]),
            ],
            "linear",
            [onnx.helper.make_tensor_value_info("x", kind, shape)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [shape[0], 10])],
            [onnx.numpy_helper.from_array(kernel, "kernel")],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
        )
        onnx.save(model, tmp_path / f"{name}.onnx")
        place = f"onnx:{tmp_path / name}.onnx"
        run = teach(place, digits, tmp_path / name)
        assert run.certificate["source"] == f"{name}.onnx"
        network = foreign.load(place, 10)
        images = rng.normal(size=(37, 32, 32, 3)).astype(np.float32)
        expected = images.transpose(0, 3, 1, 2).reshape(37, -1) @ kernel
        np.testing.assert_allclose(network.call(images), expected, atol=1e-4)
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="is no ONNX network"):
        foreign.load(f"onnx:{tmp_path / 'bad.onnx'}", 10)
    with pytest.raises(UserError, match="no file"):
        foreign.load(f"onnx:{tmp_path / 'missing.onnx'}", 10)


@pytest.mark.slow
def test_a_keras_file_teaches(digits, tmp_path):
    keras = pytest.importorskip("keras", reason="pip install keras for its files")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    model.save(tmp_path / "net.keras")
    run = teach(f"keras:{tmp_path / 'net.keras'}", digits, tmp_path / "file")
    given = teach(kd.teacher(model, name="net"), digits, tmp_path / "given")
    assert losses(run) == losses(given)
    (tmp_path / "bad.keras").write_bytes(b"no network")
    with pytest.raises(UserError, match="is no Keras network"):
        foreign.load(f"keras:{tmp_path / 'bad.keras'}", 10)


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(foreign.PACKAGES, "timm", ("no_such_package", "timm"))
    with pytest.raises(UserError, match="pip install timm"):
        foreign.package("timm")


def test_options_that_are_for_other_kinds_are_refused(digits, tmp_path):
    teacher = kd.teacher(lambda v, x: x.mean((1, 2)) @ v, np.eye(3, 10), name="f")
    for options, says in (
        ({"teacher__dtype": "bfloat16"}, "expected float32"),
        ({"teacher__arch": "resnet8"}, "expected none with"),
    ):
        with pytest.raises(UserError, match=says):
            kd.distill(teacher, data=digits, workdir=tmp_path / "run", **{**OPTIONS, **options})


def test_two_teachers_of_different_kinds_teach_together(digits, tmp_path):
    first = kd.teacher(lambda v, x: x.mean((1, 2)) @ v, np.eye(3, 10, dtype=np.float32), name="f")
    second = kd.teacher(lambda v, x: x.std((1, 2)) @ v, np.eye(3, 10, dtype=np.float32), name="g")
    run = teach([first, second], digits, tmp_path / "run", shares=(3.0, 1.0))
    assert run.metrics["teacher"] == "python:f+python:g"
    stored = json.loads((run.workdir / "teacher.json").read_text())
    assert [each["arch"] for each in stored["members"]] == ["python:f", "python:g"]
