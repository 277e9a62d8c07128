"""Golden weights, PyTorch files written without PyTorch, and commands run as a user runs them."""

import contextlib
import dataclasses
import io
import json
import pickle
import subprocess
import sys
import time
import types
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl import flags

import commands
from kd_jax import models
from kd_jax.kernels import lowering
from kd_jax.models import zoo

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def patched_zoo(*kept, **added):
    """A context in which the zoo has the modules `added` beside all others, or beside `kept`."""
    entries = {name: zoo.MODELS[name] for name in kept}
    for name, module in added.items():
        entries[name] = zoo.Architecture(module, {}, zoo.Cost(0, 0, 0))
    return mock.patch.dict(zoo.MODELS, entries, clear=bool(kept))


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


@dataclasses.dataclass
class View:
    """A tensor as a file may describe it, true or not: steps count elements of the storage."""

    storage: np.ndarray
    offset: int
    shape: tuple
    steps: tuple


def write_pth(path, content, byteorder="little"):
    """Write arrays, in whatever containers, in the layout of torch.save, without PyTorch.

    Arrays are cut to float32; a `View` is described as it says.
    """
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

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            known = [n for n, array in enumerate(storages) if array is obj.array]
            if not known:
                storages.append(obj.array)
            number = known[0] if known else len(storages) - 1
            return "storage", storage_type, str(number), "cpu", obj.array.size

        def reducer_override(self, obj):
            if isinstance(obj, np.ndarray):
                array = np.ascontiguousarray(obj, np.float32).reshape(obj.shape)
                obj = View(array, 0, array.shape, tuple(s // 4 for s in array.strides))
            if not isinstance(obj, View):
                return NotImplemented
            return rebuild, (Storage(obj.storage), obj.offset, obj.shape, obj.steps, False, {})

    before = {name: sys.modules.get(name) for name in fake}
    sys.modules.update(fake)
    try:
        described = io.BytesIO()
        Pickler(described, protocol=2).dump(content)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    write_archive(path, described.getvalue(), storages, byteorder)


def write_archive(path, described, storages=(), byteorder="little", compression=zipfile.ZIP_STORED):
    """Write the zip archive of a PyTorch file around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", described)
        archive.writestr("archive/byteorder", byteorder)
        for number, array in enumerate(storages):
            archive.writestr(f"archive/data/{number}", array.tobytes())


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
    with lowering.forced("cpu"):
        jax.eval_shape(lambda v, p: network.train_logits(v, p, None), variables, pixels)
        assert not calls
        jax.eval_shape(network.logits, variables, pixels)
        assert calls
    calls.clear()
    with lowering.forced("plain"):
        jax.eval_shape(network.logits, variables, pixels)
    assert not calls


@contextlib.contextmanager
def flags_apart():
    """Context without the flags of absl that there are: two commands may have one of a name."""
    known = flags.FLAGS._flags()
    before = dict(known)
    known.clear()
    try:
        yield
    finally:
        known.clear()
        known.update(before)
