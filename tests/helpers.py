"""Golden weights, PyTorch files written without PyTorch, and commands run as a user runs them."""

import collections
import json
import pickle
import subprocess
import sys
import time
import types
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np

import commands
from kd_jax import models
from kd_jax.models import layers

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def golden_card(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_state_dict(name):
    """The reference weights, from the formula in golden/README.md."""
    state_dict = {}
    for key, shape in golden_card(name)["state_dict"]:
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif key.endswith("running_mean"):
            value = 0.1 * rng.standard_normal(shape)
        elif key.endswith("running_var"):
            value = np.exp(0.1 * rng.standard_normal(shape))
        elif key.endswith("bias"):
            value = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            value = 1 + 0.1 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
        state_dict[key] = value.astype(np.float32)
    return state_dict


def golden_logits(name):
    return np.load(GOLDEN / f"{name}.npz")["logits"]


def golden_images():
    return np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype("float32")


def write_pth(path, state_dict):
    """Write a state dict in the layout of torch.save, without PyTorch."""
    fake = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    storages = []

    def rebuild(*args):
        raise AssertionError("only named, never called")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    fake["torch._utils"]._rebuild_tensor_v2 = rebuild
    storage_type = type("FloatStorage", (), {"__module__": "torch"})
    fake["torch"].FloatStorage = storage_type

    class Storage:
        def __init__(self, array):
            self.array = array

    class Tensor:
        def __init__(self, array):
            self.array = np.ascontiguousarray(array, np.float32)

        def __reduce__(self):
            strides = tuple(s // 4 for s in self.array.strides)
            args = (Storage(self.array), 0, self.array.shape, strides, False, {})
            return rebuild, args

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            storages.append(obj.array)
            return "storage", storage_type, str(len(storages) - 1), "cpu", obj.array.size

    before = {name: sys.modules.get(name) for name in fake}
    sys.modules.update(fake)
    try:
        with zipfile.ZipFile(path, "w") as archive:
            content = collections.OrderedDict((k, Tensor(v)) for k, v in state_dict.items())
            with archive.open("archive/data.pkl", "w") as file:
                Pickler(file, protocol=2).dump(content)
            archive.writestr("archive/byteorder", "little")
            for i, array in enumerate(storages):
                archive.writestr(f"archive/data/{i}", array.tobytes())
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def command(module, *arguments, environment=None):
    """Return the arguments of subprocess.Popen for a command that starts from nothing."""
    return {
        "args": [sys.executable, "-m", module, *map(str, arguments)],
        "cwd": ROOT,
        "env": commands.variables(environment),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def run(module, *arguments, environment=None):
    """Run one of the project's commands to its end."""
    process = commands.Command(module, *arguments, environment=environment)
    try:
        said = process.communicate(timeout=600)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def wait_for(condition, process, seconds=120, pause=0.02):
    """Wait until a condition holds, while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(pause)


def tree_digest(directory):
    """Names, sizes and contents of everything below a directory."""
    directory = Path(directory)
    if not directory.exists():
        return None
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def assert_only_frozen_networks_on_cpu_take(arch, module, name, monkeypatch):
    """Trace a network in training, frozen, and as on other devices, and watch who calls it."""
    calls = []
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a: calls.append(1) or original(*a))
    network = models.build(arch, 10, (0.5,) * 3, (0.25,) * 3)
    pixels = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda: network.init(0, (32, 32, 3)))
    with layers.lowering("cpu"):
        jax.eval_shape(lambda v, p: network.train_logits(v, p, None), variables, pixels)
        assert not calls
        jax.eval_shape(network.logits, variables, pixels)
        assert calls
    calls.clear()
    with layers.lowering("plain"):
        jax.eval_shape(network.logits, variables, pixels)
    assert not calls
