"""The project's commands, each in a process of its own that need not import JAX again.

Importing JAX, Orbax and TensorFlow takes seconds of a core, several times what most of the tests'
commands compute. So they are forked from a server (`multiprocessing`'s) that has imported these
libraries and has not looked for devices. From there on it is as `python -m`: arguments,
environment, files, signals and the exit code.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parent.parent
_KEPT = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    ["pytest", "scipy.stats", "kd_jax.training.train", "tensorflow", "clu.metric_writers"]
)


def variables(environment=None):
    """Return the environment of a command: of what JAX is told here, only the cache."""
    own = {k: v for k, v in os.environ.items() if k in _KEPT or k[:4] not in ("JAX_", "XLA_")}
    return own | (environment or {})


class Command:
    """A running command, with what the tests need of subprocess.Popen.

    Of the environment, `JAX_...` are set as JAX's options, because JAX is imported already.
    """

    def __init__(self, module, *arguments, environment=None):
        self.args = (module, *map(str, arguments))
        # Huge pages are there, or commands would start Python again (kd_jax/runtime/huge_pages.py).
        settings = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | variables(environment)
        self._said = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._said]
        self._process = _FORKING.Process(
            target=_run, args=(self.args, settings, names), daemon=True
        )
        before = dict(os.environ)
        os.environ |= settings | {"TF_CPP_MIN_LOG_LEVEL": "3"}  # the server's, where it starts here
        for name in before.keys() - settings.keys():
            del os.environ[name]
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ |= before
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=None):
        """Wait for the end; return what was said on stdout and on stderr."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return tuple(Path(file.name).read_text() for file in self._said)


def _run(arguments, settings, said):
    for number, name in enumerate(said, 1):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ |= settings
    os.chdir(ROOT)
    sys.path = [str(ROOT), *(path for path in sys.path if path != str(ROOT / "tests"))]
    for name in (name for name in settings if name.startswith("JAX_")):
        value = settings[name]
        jax.config.update(name.lower(), int(value) if value.isdecimal() else value)
    module, *rest = arguments
    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
