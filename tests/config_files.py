"""The configs that this repository has, each with the arguments that it takes."""

import importlib.util

from helpers import ROOT

CONFIGS = {
    "resnet44": [(), ("recipe=seed",), ("recipe=hinton",), ("recipe=scratch",)],
    "mbv2": [(), ("recipe=seed",)],
    "vgg11_bn": [(), ("recipe=seed",)],
    "scratch": [()],
    "teacher": [("resnet44",), ("mobilenetv2_x0_75",), ("vgg11_bn",)],
    "folder": [(), ("teacher",), ("distil",)],
    "bit": [()],
    "demo": [(), ("teacher",), ("distil",), ("scratch",)],
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases():
    return [(name, arguments) for name, several in CONFIGS.items() for arguments in several]
