"""The configs that this repository has, each with the arguments that it takes."""

from helpers import ROOT
from kd_jax.config import config_file

CONFIGS = {
    "resnet44": [
        (),
        ("recipe=seed",),
        ("recipe=hinton",),
        ("recipe=scratch",),
        ("recipe=dkd",),
        ("recipe=dist",),
        ("recipe=lskd",),
        ("recipe=crd_protocol",),
        ("recipe=crd_protocol+lskd",),
    ],
    "mbv2": [(), ("recipe=seed",)],
    "vgg11_bn": [(), ("recipe=seed",)],
    "scratch": [()],
    "teacher": [("resnet44",), ("mobilenetv2_x0_75",), ("vgg11_bn",)],
    "folder": [
        (),
        ("teacher",),
        ("distil",),
        ("alone",),
        ("recipe=hinton",),
        ("recipe=scratch",),
    ],
    "bit": [()],
    "demo": [(), ("teacher",), ("distil",), ("scratch",)],
}


def load(name):
    return config_file.load(ROOT / "configs" / f"{name}.py", "configs/demo.py")


def cases():
    return [(name, arguments) for name, several in CONFIGS.items() for arguments in several]
