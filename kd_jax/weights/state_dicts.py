"""Select the weights of a network among the contents of a file, under whatever names they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError

# Keys under which training scripts store a network; the first that exists is used.
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "student",
         "weights", "params", "module")  # fmt: skip
# Keys that begin so hold tensors of something else, such as the state of an optimiser.
_OTHER_KEYS = ("optim", "sched", "lr_", "scaler", "grad", "amp", "rng", "criterion", "loss",
               "callback")  # fmt: skip
_DEEPEST = 3
_LONGEST_KEY = 300  # characters: the keys of all sets that are found are kept in memory
_MOST_SETS = 100
_MOST_NAMES = 10
# Prefixes that wrappers add to every name: torch.compile, data parallel and averaged models, and
# modules with the network as an attribute.
_PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "network.", "student.")
_COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel


def choose(content: Any, key: str, path: Path, is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
    """Return one set of weights: the dict of names to tensors that `key` selects.

    Args:
      content: content of the file.
      key: key of the dict; for a dict in a dict the keys joined by dots. Or a prefix of the wanted
        names, without the dot. Empty: the only set, or the one under the first key of `_KEYS`; if
        there are several, a warning says which is used.
      path: path of the file, for messages.
      is_tensor: returns whether a value is a tensor, which has a shape.

    Raises:
      UserError: there is no set, none with this key, or several without a usual key.
    """
    sets = _find(content, path, is_tensor)
    if not sets:
        raise UserError(
            f"{path} holds no state dict (names with tensors): save the model's state_dict()"
        )
    if key:
        return _of_key(sets, key, path)
    if len(sets) == 1:
        return next(iter(sets.values()))
    usual_names = [name for usual_key in _KEYS for name in sets if usual_key in name.split(".")]
    if not usual_names:
        raise UserError(
            f"{path} holds several sets of weights ({_shortened(sets)}): choose one with "
            "kd_jax.import_teacher --key=NAME, or save the model's state_dict() alone"
        )
    choice = usual_names[0]
    if other_names := [name for name in sets if name not in ("", choice)]:
        logger.warning(
            "%s holds several sets of weights: %s is taken; %s can be had with "
            "kd_jax.import_teacher --key=NAME", path, choice, _shortened(other_names),
        )  # fmt: skip
    if "" in sets:
        logger.warning("%s: %s is taken; the tensors beside it are left out", path, choice)
    return sets[choice]


def under(arrays: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return the arrays whose names begin with `key` and a dot or a slash; the prefix is removed.

    Raises:
      UserError: there are none.
    """
    for prefix in (f"{key}.", f"{key}/"):
        if inner_arrays := {
            n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)
        }:
            return inner_arrays
    raise UserError(
        f"{path} has no weights under --key={key}: expected one of "
        f"{_shortened(_first_words(arrays))}"
    )


def without_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays by their names in the network, without prefixes and counters of wrappers."""
    weights = {name: array for name, array in arrays.items() if name not in _COUNTERS}
    while weights:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None)
        if prefix is None:
            break
        weights = {name.removeprefix(prefix): array for name, array in weights.items()}
        weights = {name: array for name, array in weights.items() if name not in _COUNTERS}
    return weights


def common_prefix(names: Mapping[str, Any]) -> str:
    """Return the longest common prefix of all names in whole words, with its last dot; or empty."""
    words = [name.split(".")[:-1] for name in names]
    prefix_words = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        prefix_words.append(column[0])
    return "".join(f"{word}." for word in prefix_words)


def _find(content: Any, path: Path, is_tensor: Callable[[Any], bool]) -> dict[str, dict[str, Any]]:
    """Return every dict of tensors by its keys; of dicts with other values too, only the tensors.

    Dicts with other values count only if they look like a network, or if there is nothing else:
    metrics are tensors too.
    """
    search = _Search(is_tensor)
    search.look(content, "")
    if search.is_incomplete:
        logger.warning(
            "%s has more dicts than are looked at: of %d sets of weights the first are, and names "
            "of up to %d letters", path, _MOST_SETS, _LONGEST_KEY,
        )  # fmt: skip
    sets = search.sets
    likely_sets = {name: tensors for name, (tensors, is_likely) in sets.items() if is_likely}
    return likely_sets or {name: tensors for name, (tensors, _) in sets.items()}


class _Search:
    """Recursive search for dicts of tensors. A dict under several keys is added once.

    Attributes:
      sets: joined keys -> (tensors by name, whether they are likely a network's).
      is_incomplete: whether a limit was reached.
    """

    def __init__(self, is_tensor: Callable[[Any], bool]):
        self.sets: dict[str, tuple[dict[str, Any], bool]] = {}
        self.is_incomplete = False
        self._is_tensor = is_tensor
        self._visited: set[int] = set()

    def look(self, node: Any, name: str) -> None:
        """Add all dicts of tensors in a value; `name` is its joined keys."""
        if not isinstance(node, dict) or id(node) in self._visited or name.count(".") >= _DEEPEST:
            return
        if len(self.sets) >= _MOST_SETS:
            self.is_incomplete = True
            return
        self._visited.add(id(node))
        tensors = {k: v for k, v in node.items() if isinstance(k, str) and self._is_tensor(v)}
        if node and len(tensors) == len(node):
            self.sets[name] = node, True
            return
        num_before = len(self.sets)
        for key, value in node.items():
            if isinstance(key, str) and not key[:_LONGEST_KEY].lower().startswith(_OTHER_KEYS):
                if len(key) <= _LONGEST_KEY:
                    self.look(value, f"{name}.{key}" if name else key)
                elif isinstance(value, dict):
                    self.is_incomplete = True
        if tensors:
            # A network has a kernel or a matrix. A set under a usual key counts without one.
            has_matrix = any(len(tensor.shape) > 1 for tensor in tensors.values())
            is_usual = name.rpartition(".")[2] in _KEYS
            if has_matrix or is_usual or len(self.sets) == num_before:
                self.sets[name] = tensors, has_matrix or is_usual


def _of_key(sets: Mapping[str, dict[str, Any]], key: str, path: Path) -> dict[str, Any]:
    if key in sets:
        return sets[key]
    set_names = [name for name in sets if any(n.startswith(f"{key}.") for n in sets[name])]
    if len(set_names) == 1:
        return under(sets[set_names[0]], key, path)
    names = [*filter(None, sets), *(n for arrays in sets.values() for n in _first_words(arrays))]
    raise UserError(
        f"{path} has no weights under --key={key}: expected one of {_shortened(names) or 'none'}"
    )


def _first_words(arrays: Mapping[str, Any]) -> list[str]:
    """Return the different first words of names, in order."""
    return list(dict.fromkeys(name.replace("/", ".").split(".")[0] for name in arrays))


def _shortened(names: Any) -> str:
    texts = [name[:80] or "one that has no name" for name in names]
    omission = f" and {len(texts) - _MOST_NAMES} more" if len(texts) > _MOST_NAMES else ""
    return ", ".join(texts[:_MOST_NAMES]) + omission
