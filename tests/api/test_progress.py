"""A run is told once on stderr, in every call, whatever libraries do to the root logger."""

import contextlib
import logging

from kd_jax.api import progress
from kd_jax.runtime.console import logger


@contextlib.contextmanager
def bare(monkeypatch):
    """As in a script that has set up no logging; in the test itself, where pytest has its own."""
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        patch.setattr(logger, "handlers", [])
        patch.setattr(logger, "propagate", True)
        yield


def test_each_run_is_told_once(monkeypatch, capsys):
    with bare(monkeypatch):
        for run in ("first", "second"):
            with progress.shown(True):
                logging.basicConfig()  # as absl does at its first line
                logger.info("the %s run", run)
            assert capsys.readouterr().err == f"the {run} run\n"
        assert logging.getLogger().handlers == []
        assert logger.propagate


def test_an_application_with_logging_of_its_own_is_left_alone(monkeypatch, capsys):
    with bare(monkeypatch):
        own = logging.NullHandler()
        logging.getLogger().addHandler(own)
        with progress.shown(True):
            logger.warning("told by the application")
        assert capsys.readouterr().err == ""
        assert logging.getLogger().handlers == [own]


def test_an_application_that_keeps_our_lines_to_themselves_does_so_afterwards(monkeypatch):
    with bare(monkeypatch):
        logger.propagate = False
        with progress.shown(True):
            pass
        assert not logger.propagate


def test_silence_is_kept(monkeypatch, capsys):
    with bare(monkeypatch):
        with progress.shown(False):
            logger.info("nobody hears this")
        assert capsys.readouterr().err == ""
