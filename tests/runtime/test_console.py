"""What a terminal shows: how far a run is, and nothing where nobody reads any more."""

import io
import logging
import os
import sys

import pytest

from kd_jax.api import progress
from kd_jax.runtime import console
from kd_jax.runtime.console import logger


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stderr(monkeypatch):
    """Return what puts a stream in the place of stderr, with our log going to it."""
    monkeypatch.setattr(logger, "propagate", False)

    def put(stream):
        monkeypatch.setattr("sys.stderr", stream)
        handler = console.handler(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        request.append(handler)
        return stream

    request: list[logging.Handler] = []
    yield put
    for handler in request:
        logger.removeHandler(handler)


def test_in_a_file_each_is_a_line(stderr):
    stream = stderr(io.StringIO())
    console.progress(10, 100, "a: ", "loss 0.5")
    console.progress(20, 100, "a: ", "loss 0.4")
    console.end_progress()
    assert stream.getvalue() == "a: step 10/100  loss 0.5\na: step 20/100  loss 0.4\n"


def test_on_a_terminal_it_is_one_line_below_the_log(stderr):
    stream = stderr(Terminal())
    console.progress(10, 100, "", "loss 0.5")
    logger.info("validation 40")
    console.progress(20, 100, "", "loss 0.4")
    text = stream.getvalue()
    assert "step 20/100 |" in text
    assert text.rstrip().endswith("loss 0.4")
    lines = [line.split("\r")[-1] for line in text.split("\n")]
    assert lines[0] == "validation 40"  # the only line that was ended
    assert len(lines) == 2
    console.end_progress()
    assert stream.getvalue().rsplit("\r", 2)[1].strip() == ""  # taken away
    logger.info("finished")
    assert stream.getvalue().endswith("finished\n")


def test_a_dumb_terminal_has_lines(stderr, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = stderr(Terminal())
    console.progress(10, 100, "", "loss 0.5")
    assert stream.getvalue() == "step 10/100  loss 0.5\n"


def test_python_users_are_told_unless_they_listen_themselves(monkeypatch):
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    level = logger.level
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    with progress.shown(True):
        console.progress(10, 100, "", "loss 0.5")
    assert "step 10/100" in stream.getvalue()
    assert (logger.handlers, logger.level) == ([], level)
    length = len(stream.getvalue())
    with progress.shown(False):
        console.progress(20, 100, "", "loss 0.5")
    logger.addHandler(own := logging.NullHandler())
    with progress.shown(True):
        console.progress(30, 100, "", "loss 0.5")
    logger.removeHandler(own)
    assert len(stream.getvalue()) == length


def unread():
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w")


def write_and_end(stream, text, ending):
    with console.until_the_reader_leaves():
        stream.write(text)
        if stream is sys.stderr:  # which Python writes at each line
            stream.flush()
        if ending:
            raise ending


@pytest.mark.parametrize("ending", [None, SystemExit(2)])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_command_ends_quietly_when_nobody_reads_it(name, ending, size, monkeypatch, capfd):
    with unread() as stream:
        monkeypatch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as raised:
            write_and_end(stream, size * "x", ending)
        assert raised.value.code == console.EXIT_READER_GONE
        stream.flush()  # goes nowhere, and is no error
    assert capfd.readouterr() == ("", "")


def test_a_command_whose_output_is_closed_ends_as_ever(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it behind `>&-`
    with console.until_the_reader_leaves():
        pass


def test_another_broken_pipe_is_an_error_all_the_same():
    with unread() as other, pytest.raises(BrokenPipeError), console.until_the_reader_leaves():
        os.write(other.fileno(), b"x")
