"""TensorFlow only prepares and reads sets of tfds, and writes TensorBoard's files."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT
from kd_jax.config import default_config
from kd_jax.data import dataset

# As where they are not installed: nothing finds them.
BLOCK = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        blocked = name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "tensorboard")
        return None if blocked else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def run_blocked(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", BLOCK + program],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, check=False,
    )  # fmt: skip


def main(*arguments):
    return f"""
import runpy
sys.argv = {["main", *arguments]!r}
runpy.run_module("kd_jax.main", run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_trains_and_says_what_is_missing(tmp_path):
    done = run_blocked(
        main(
            "--config=configs/demo.py:teacher",
            f"--workdir={tmp_path / 'w'}",
            "--config.total_steps=3",
            "--config.log_every_steps=1",
            "--config.student.arch=resnet8",
        )
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w" / "result.json").exists()
    (line,) = [text for text in done.stderr.splitlines() if "TensorBoard" in text]
    assert "pip install 'kd_jax[tfds]'" in line


def test_a_set_that_must_be_read_by_tfds_is_refused_in_one_sentence(cifar100_dir, tmp_path):
    for split in ("train", "train[:100]"):
        done = run_blocked(
            main(
                "--config=configs/scratch.py", f"--workdir={tmp_path / 'w'}",
                f"--config.dataset.train_split={split}",
                f"--config.dataset.data_dir={cifar100_dir}",
            ),
            KD_JAX_CACHE_DIR=str(tmp_path / "cache"),
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
        assert "pip install 'kd_jax[tfds]'" in line
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "w").exists()


def test_a_set_that_was_decoded_before_needs_no_tfds(cifar100_dir):
    config = default_config().dataset
    config.data_dir = str(cifar100_dir)
    expected = dataset.load(config).fingerprint
    done = run_blocked(f"""
from kd_jax.config import default_config
from kd_jax.data import dataset
config = default_config().dataset
config.data_dir = {str(cifar100_dir)!r}
print(dataset.load(config).fingerprint)
""")
    assert done.stdout.split()[-1:] == [expected], done.stderr
