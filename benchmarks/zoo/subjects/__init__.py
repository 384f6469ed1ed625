"""The models of the zoo, one module a source; each has a function ``subjects()``."""

from __future__ import annotations

from importlib import import_module

from benchmarks.zoo.case import Subject

#: Sources in the order of the table; a module of this package each.
SOURCES = ("torchvision", "timm", "transformers", "keras", "recurrent", "spatial", "graphs", "plain")


def subjects(source: str) -> list[Subject]:
    """Return the models of one source.

    Raises
    ------
    ImportError
        If the library that they come from is not installed.
    """
    found: list[Subject] = import_module(f"benchmarks.zoo.subjects.from_{source}").subjects()
    return found
