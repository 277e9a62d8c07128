"""Teachers in PyTorch: any module by its factory, and the networks of timm and torchvision.

They run in eval mode without gradients, on a GPU where PyTorch has one, in `channels_last`.
`torch.compile` is not used: its first call takes a minute, and a run that resumes would wait again.
"""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_jax.runtime.errors import UserError, in_short, reachable
from kd_jax.teachers import foreign
from kd_jax.teachers.teacher import ForeignNetwork
from kd_jax.weights import state_files

_CHUNK = 64  # images at a time: what fits into caches, and the fastest of those measured
_MOST_NAMES = 4


def load(kind: str, what: str, file: str, num_classes: int | None) -> ForeignNetwork:
    """Return the network of `KIND:WHAT[@FILE]`, see `foreign`.

    Args:
      kind: `torch`, `timm` or `torchvision`.
      what: `package.module:factory`, or a name.
      file: of weights; empty: those that the factory gives, or the pretrained ones.
      num_classes: of the data set, for a network of timm or torchvision with weights of a file.

    Raises:
      UserError: something about it is wrong.
    """
    name = f"{kind}:{what}"
    foreign.package("torch")
    make, facts = {"torch": _factory, "timm": _timm, "torchvision": _torchvision}[kind](
        what, file, num_classes
    )
    try:
        module = make()
    except UserError:
        raise
    except Exception as error:  # whatever a factory raises, or a download
        text = in_short(error, 300)
        raise UserError(f"{name} cannot be made, {type(error).__name__}: {text}") from error
    if file:
        _load_weights(module, name, file)
    return wrap(module, name, file or "its factory", **facts)


def wrap(module: Any, name: str, source: str, **facts: Any) -> ForeignNetwork:
    """Return a PyTorch module as a teacher.

    Args:
      module: a `torch.nn.Module`; it is put into eval mode.
      name: for messages and certificates.
      source: where its weights come from.
      facts: further fields of `ForeignNetwork`.

    Raises:
      UserError: it is no module.
    """
    torch = foreign.package("torch")
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{name} makes a {type(module).__name__}: expected a torch.nn.Module")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = module.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def call(images: np.ndarray) -> np.ndarray:
        answers = []
        with torch.inference_mode():
            for first in range(0, len(images), _CHUNK):
                # A copy, since JAX's arrays may not be written to. NHWC in memory is what PyTorch
                # calls channels_last of NCHW: nothing else is moved.
                chunk = torch.from_numpy(np.array(images[first : first + _CHUNK]))
                answers.append(module(chunk.to(device).permute(0, 3, 1, 2)))
            return torch.cat(answers).float().cpu().numpy()

    return ForeignNetwork(name, source, _digest(module), call=call, **facts)


def _digest(module: Any) -> str:
    """Return the hex sha256 of a module's arrays, its description, and its classes' source."""
    torch, digest = foreign.package("torch"), hashlib.sha256()
    buffers = {f"buffer {key}": tensor for key, tensor in module.named_buffers()}
    for key, tensor in sorted({**buffers, **module.state_dict()}.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().data if array.numel() else b"")
    digest.update(repr(module).encode())
    classes = {type(part) for part in module.modules()}
    for kind in sorted(classes, key=lambda each: f"{each.__module__}.{each.__qualname__}"):
        if kind.__module__.partition(".")[0] == "torch":
            continue
        try:
            digest.update(inspect.getsource(kind).encode())
        except (OSError, TypeError):  # made at a prompt
            digest.update(kind.__qualname__.encode())
    return digest.hexdigest()


def _load_weights(module: Any, name: str, file: str) -> None:
    """Load a state dict; every key must fit.

    Raises:
      UserError: the file cannot be read, or does not fit the module.
    """
    torch = foreign.package("torch")
    path = reachable(file, "the weights of config.teacher.weights")
    state_files.check(path)
    state = {
        key: torch.from_numpy(np.array(array)) for key, array in state_files.read(path).items()
    }
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    problems = [f"missing {key}" for key in expected.keys() - state.keys() - counters]
    problems += [f"unexpected {key}" for key in state.keys() - expected.keys()]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, expected {expected[key]}"
        for key in state.keys() & expected.keys()
        if tuple(state[key].shape) != expected[key]
    ]
    if problems:
        more = f" and {len(problems) - _MOST_NAMES} more" if len(problems) > _MOST_NAMES else ""
        raise UserError(
            f"{file} does not hold the weights of {name}: "
            f"{'; '.join(sorted(problems)[:_MOST_NAMES])}{more}"
        )
    module.load_state_dict(state, strict=False)  # but for counters, which eval mode does not read


def _factory(
    what: str, file: str, num_classes: int | None
) -> tuple[Callable[[], Any], dict[str, Any]]:
    del file, num_classes
    if ":" not in what:
        raise UserError(
            f"config.teacher.weights is torch:{what}: expected torch:package.module:factory, a "
            "callable without arguments that returns a torch.nn.Module"
        )
    try:
        factory = pkgutil.resolve_name(what)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.teacher.weights is torch:{what}, and that cannot be imported ({error}): "
            "expected torch:package.module:factory, importable from the current directory"
        ) from None
    except (Exception, SystemExit) as error:  # of a module that is the user's
        raise UserError(
            f"config.teacher.weights is torch:{what}, and importing that fails with "
            f"{type(error).__name__}: {in_short(error)}: mend the module"
        ) from error
    if not callable(factory):
        raise UserError(f"torch:{what} is a {type(factory).__name__}: expected a callable")
    return factory, {}


def _timm(
    what: str, file: str, num_classes: int | None
) -> tuple[Callable[[], Any], dict[str, Any]]:
    timm = foreign.package("timm")
    if not timm.is_model(what):
        raise UserError(
            f"timm has no network {what!r}: `python -c 'import timm; print(timm.list_models())'` "
            "lists them"
        )
    facts: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(what)
    if config is not None:
        facts = {
            "mean": tuple(config.mean),
            "std": tuple(config.std),
            "input_size": config.input_size[-1],
        }

    def make() -> Any:
        if not file:
            return timm.create_model(what, pretrained=True)
        return timm.create_model(what, pretrained=False, num_classes=num_classes)

    return make, {} if file else facts


def _torchvision(
    what: str, file: str, num_classes: int | None
) -> tuple[Callable[[], Any], dict[str, Any]]:
    torchvision = foreign.package("torchvision")
    if what not in torchvision.models.list_models():
        raise UserError(
            f"torchvision has no network {what!r}: "
            "`python -c 'import torchvision; print(torchvision.models.list_models())'` lists them"
        )
    if file:
        return lambda: torchvision.models.get_model(what, num_classes=num_classes), {}
    weights = torchvision.models.get_model_weights(what).DEFAULT
    transforms = weights.transforms()
    facts = {
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "input_size": transforms.crop_size[0],
        "class_names": tuple(weights.meta.get("categories", ())) or None,
    }
    return lambda: torchvision.models.get_model(what, weights=weights), facts
