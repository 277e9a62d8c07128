"""What TensorFlow says of itself is kept from the terminal, and nothing else is."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT
from kd_jax.runtime import quiet_tensorflow

# As TensorFlow 2.21 prints them under TF_CPP_MIN_LOG_LEVEL=3.
NOTES = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795732535.224410   23767 port.cc:153] oneDNN custom operations are on. You may\n"
)
ERROR = "F0000 00:00:1795732535.224410   23767 cpu_feature_guard.cc:67] needs AVX2 instructions\n"


def test_notes_are_kept_back_and_errors_pass(capfdbinary):
    with quiet_tensorflow.without_notes():
        os.write(2, (NOTES + ERROR).encode() + b"a line of ours, \xff among it\n")
    os.write(2, b"I0000 afterwards\n")
    expected = ERROR.encode() + b"a line of ours, \xff among it\nI0000 afterwards\n"
    assert capfdbinary.readouterr().err == expected


def test_an_error_of_the_import_passes_and_leaves_stderr_as_it_was(capfd):
    with pytest.raises(ImportError), quiet_tensorflow.without_notes():
        raise ImportError
    os.write(2, b"I0000 afterwards\n")
    assert capfd.readouterr().err == "I0000 afterwards\n"


def test_the_last_words_before_an_abort_pass():
    code = (
        "import os\nfrom kd_jax.runtime import quiet_tensorflow\n"
        f"with quiet_tensorflow.without_notes():\n    os.write(2, {(NOTES + ERROR).encode()!r})\n"
        "    os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode < 0
    assert done.stderr == ERROR


def test_without_grep_all_is_seen(capfd, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with quiet_tensorflow.without_notes():
        os.write(2, NOTES.encode())
    assert capfd.readouterr().err == NOTES
