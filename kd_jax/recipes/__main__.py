"""Print the recipes, or the differences between two.

python -m kd_jax.recipes                      every recipe and its source
python -m kd_jax.recipes diff funmatch seed   what differs between two
"""

from __future__ import annotations

from collections.abc import Sequence

from kd_jax.recipes import RECIPES, difference
from kd_jax.runtime.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Print all recipes, or the fields that differ between two."""
    if len(argv) == 1:
        for name, recipe in RECIPES.items():
            print(f"{name}: {' '.join((recipe.__doc__ or '').split())}\n")
        return
    if argv[1] != "diff" or len(argv) != 4:
        raise UserError(
            f"{' '.join(argv[1:])!r} is not understood: expected nothing, or `diff RECIPE RECIPE`"
        )
    print("\n".join(difference(argv[2], argv[3])))


if __name__ == "__main__":
    run_command(main, takes_words=True)
