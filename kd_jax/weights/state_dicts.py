"""Find the weights of a network among what a file holds, whatever it calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

# Where training scripts keep a network; of several the first that is there is taken.
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "student",
         "weights", "params", "module")  # fmt: skip
# What holds tensors and is no network: the state of optimisers and the like begins so.
_OTHERS = ("optim", "sched", "lr_", "scaler", "grad", "amp", "rng", "criterion", "loss", "callback")
_DEEPEST = 3
_LONGEST_KEY = 300  # letters: every set that is found keeps its keys
_MOST_SETS = 100
_MOST_NAMES = 10
# Prefixes that wrappers put before every name: torch.compile, data parallel and averaged models,
# and modules that hold the network as an attribute.
_PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "network.", "student.")
_COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel


def choose(content: Any, key: str, path: Path, is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the one dict of names with tensors that is meant.

    Args:
      content: what the file holds.
      key: where it is; for a dict in a dict the keys joined by dots. Or what the names of the
        wanted tensors begin with, without the dot. Empty: the only one, or the one under the first
        of the usual keys; of several it is said which.
      path: of the file, for what is said.
      is_tensor: tells whether a value is a tensor, which has a shape.

    Raises:
      UserError: there is none, or none of this key, or several that nothing tells apart.
    """
    found = _find(content, path, is_tensor)
    if not found:
        raise UserError(
            f"{path} holds no state dict (names with tensors): save the model's state_dict()"
        )
    if key:
        return _of_key(found, key, path)
    if len(found) == 1:
        return next(iter(found.values()))
    usual = [name for known in _KEYS for name in found if known in name.split(".")]
    if not usual:
        raise UserError(
            f"{path} holds several sets of weights ({_some(found)}): choose one with "
            "kd_jax.import_teacher --key=NAME, or save the model's state_dict() alone"
        )
    taken = usual[0]
    if others := [name for name in found if name not in ("", taken)]:
        logger.warning(
            "%s holds several sets of weights: %s is taken; %s can be had with "
            "kd_jax.import_teacher --key=NAME", path, taken, _some(others),
        )  # fmt: skip
    if "" in found:
        logger.warning("%s: %s is taken; the tensors beside it are left out", path, taken)
    return found[taken]


def under(arrays: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return the arrays whose names begin with a key and a dot or a slash, without these.

    Raises:
      UserError: no name begins so.
    """
    for prefix in (f"{key}.", f"{key}/"):
        if inner := {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}:
            return inner
    raise UserError(
        f"{path} has no weights under --key={key}: expected one of {_some(_firsts(arrays))}"
    )


def without_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays by their names in the network itself: what wrappers put before them is gone."""
    kept = {name: array for name, array in arrays.items() if name not in _COUNTERS}
    while kept:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in kept)), None)
        if prefix is None:
            break
        kept = {name.removeprefix(prefix): array for name, array in kept.items()}
        kept = {name: array for name, array in kept.items() if name not in _COUNTERS}
    return kept


def common_prefix(names: Mapping[str, Any]) -> str:
    """Return the words, each with its dot, that all names begin with; empty if there are none."""
    words = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "".join(f"{word}." for word in shared)


def _find(content: Any, path: Path, is_tensor: Callable[[Any], bool]) -> dict[str, dict[str, Any]]:
    """Return every dict of tensors by its keys; of those that hold other values too, the tensors.

    The latter only where they look like a network's, or where nothing else is found: measured
    numbers are tensors too.
    """
    search = _Search(is_tensor)
    search.look(content, "")
    if search.left_out:
        logger.warning(
            "%s has more dicts than are looked at: of %d sets of weights the first are, and names "
            "of up to %d letters", path, _MOST_SETS, _LONGEST_KEY,
        )  # fmt: skip
    sets = search.found
    likely = {name: tensors for name, (tensors, is_likely) in sets.items() if is_likely}
    return likely or {name: tensors for name, (tensors, _) in sets.items()}


class _Search:
    """What was found, by its keys, each with whether it is likely to be a network's.

    A dict that has several keys is found once.
    """

    def __init__(self, is_tensor: Callable[[Any], bool]):
        self.found: dict[str, tuple[dict[str, Any], bool]] = {}
        self.left_out = False
        self._is_tensor = is_tensor
        self._seen: set[int] = set()

    def look(self, node: Any, name: str) -> None:
        """Add the dicts of tensors in a value, which lies under these keys."""
        if not isinstance(node, dict) or id(node) in self._seen or name.count(".") >= _DEEPEST:
            return
        if len(self.found) >= _MOST_SETS:
            self.left_out = True
            return
        self._seen.add(id(node))
        tensors = {k: v for k, v in node.items() if isinstance(k, str) and self._is_tensor(v)}
        if node and len(tensors) == len(node):
            self.found[name] = node, True
            return
        before = len(self.found)
        for key, value in node.items():
            if isinstance(key, str) and not key[:_LONGEST_KEY].lower().startswith(_OTHERS):
                if len(key) <= _LONGEST_KEY:
                    self.look(value, f"{name}.{key}" if name else key)
                elif isinstance(value, dict):
                    self.left_out = True
        if tensors:
            # A network has a kernel or a matrix; a set under a usual name need not prove itself.
            has_matrix = any(len(tensor.shape) > 1 for tensor in tensors.values())
            is_usual = name.rpartition(".")[2] in _KEYS
            if has_matrix or is_usual or len(self.found) == before:
                self.found[name] = tensors, has_matrix or is_usual


def _of_key(found: Mapping[str, dict[str, Any]], key: str, path: Path) -> dict[str, Any]:
    if key in found:
        return found[key]
    inside = [name for name in found if any(n.startswith(f"{key}.") for n in found[name])]
    if len(inside) == 1:
        return under(found[inside[0]], key, path)
    names = [*filter(None, found), *(n for arrays in found.values() for n in _firsts(arrays))]
    raise UserError(
        f"{path} has no weights under --key={key}: expected one of {_some(names) or 'none'}"
    )


def _firsts(arrays: Mapping[str, Any]) -> list[str]:
    """Return the first words of names."""
    return list(dict.fromkeys(name.replace("/", ".").split(".")[0] for name in arrays))


def _some(names: Any) -> str:
    listed = [name[:80] or "one that has no name" for name in names]
    more = f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more
