"""Print the recipes, or the differences between two.

python -m kd_jax.recipes                      every recipe and its source
python -m kd_jax.recipes hinton               one, and where it differs from funmatch
python -m kd_jax.recipes diff funmatch seed   what differs between two
"""

from __future__ import annotations

from collections.abc import Sequence

from kd_jax.recipes import RECIPES, difference
from kd_jax.runtime.errors import UserError, run_command

_DEFAULT = "funmatch"


def main(argv: Sequence[str]) -> None:
    """Print all recipes, or one, or the fields that differ between two."""
    if len(argv) == 1:
        for name in RECIPES:
            print(f"{_described(name)}\n")
        return
    if len(argv) == 2 and argv[1] in RECIPES:
        print(_described(argv[1]))
        if argv[1] != _DEFAULT:
            print("\n".join(["", *difference(_DEFAULT, argv[1])]))
        return
    if argv[1] != "diff" or len(argv) != 4:
        raise UserError(
            f"{' '.join(argv[1:])!r} is not understood: expected nothing, a recipe "
            f"({', '.join(RECIPES)}), or `diff RECIPE RECIPE`"
        )
    print("\n".join(difference(argv[2], argv[3])))


def _described(name: str) -> str:
    return f"{name}: {' '.join((RECIPES[name].__doc__ or '').split())}"


if __name__ == "__main__":
    run_command(main, takes_words=True)
