"""Print every field of the config: default, values, rules and meaning, as in docs/config.md.

python -m kd_jax.config
"""

from __future__ import annotations

from collections.abc import Sequence

from kd_jax.config import document
from kd_jax.runtime.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Print the document."""
    del argv
    print(document.markdown(), end="")


if __name__ == "__main__":
    run_command(main)
