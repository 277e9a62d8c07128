"""What all tests share: four CPU devices, one compilation cache, the real data where it is."""

import contextlib
import ctypes
import gc
import logging
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Shared by the workers and the commands. Small programs too: there are thousands of them.
os.environ.setdefault("KD_JAX_CACHE_DIR", str(ROOT / ".cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from kd_jax.runtime import caches, processor  # noqa: E402

os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(caches.directory("xla") / processor.cache_key())
)

import jax  # noqa: E402
import pytest  # noqa: E402

import tiny_runs  # noqa: E402
from helpers import patched_zoo  # noqa: E402
from kd_jax.data import sources  # noqa: E402
from kd_jax.runtime.console import logger  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)


# Where most of the time goes, longest first: so that two workers end together.
LONGEST = (
    "step", "recipes", "study", "cohort", "processes", "faults", "sources", "commands", "models",
    "prefetch", "bit", "torch_import", "teachers", "losses", "fidelity", "config",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def _tiny(request):
    """Put a network into the zoo for files that make whole runs in this process."""
    whole_runs = hasattr(request.module, "digits_config")
    with patched_zoo(tiny=tiny_runs.Tiny) if whole_runs else contextlib.nullcontext():
        yield


@pytest.fixture(scope="module")
def digits():
    """Images and labels to train with from Python."""
    assert len(jax.devices()) == 4  # and JAX runs, so that a config cannot change them
    whole = sources.digits()
    return whole.train.images[:300], whole.train.labels[:300]


@pytest.fixture(autouse=True)
def _log_as_it_was():
    """Undo what commands do to the log: pytest catches it twice where it changes inside a test."""
    handlers = set(logger.handlers)
    yield
    logger.propagate = True
    for handler in set(logger.handlers) - handlers:
        if type(handler) is logging.StreamHandler:  # and not one of pytest's own
            logger.removeHandler(handler)


@pytest.fixture(scope="module", autouse=True)
def _free_programs():
    """Drop a file's compiled programs: Linux allows a process 65,530 mappings, and each takes some.

    Past that LLVM aborts the process. What the C library keeps of their memory goes back as well.
    """
    yield
    jax.clear_caches()
    gc.collect()
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


@pytest.fixture(scope="session")
def cifar100_dir() -> Path:
    """The directory of tfds that holds CIFAR-100."""
    directory = Path(os.environ.get("TFDS_DATA_DIR", ""))
    if not os.environ.get("TFDS_DATA_DIR") or not (directory / "cifar100").is_dir():
        pytest.skip("set TFDS_DATA_DIR to a directory in which tfds has prepared cifar100")
    return directory


@pytest.fixture(scope="session")
def teacher_dir() -> Path:
    """The directory of the published teachers' PyTorch files."""
    directory = Path(os.environ.get("KD_JAX_TEACHERS", ""))
    if not (directory / "cifar100_resnet44.pth").is_file():
        pytest.skip("set KD_JAX_TEACHERS to a directory with cifar100_resnet{20,44}.pth")
    return directory


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("run as root (or where tmpfs can be mounted) to test a full disk")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)
