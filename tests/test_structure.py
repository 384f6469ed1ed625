"""The structure of the package: arrows that run one way, and modules that are one idea each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lrphooks

ROOT = Path(lrphooks.__file__).parents[1]
#: The longest module of the core.
LINES = 350


def _modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "lrphooks").rglob("*.py")
    }


def _imports(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, at run time, inside functions, or for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    known = set(modules)
    return {
        name: {found for found in _imports(ast.parse(path.read_text()), known) if found in known} - {name}
        for name, path in modules.items()
    }


def test_no_module_imports_one_that_imports_it_not_even_for_types() -> None:
    graph = _graph(_modules())
    assert len(graph) > 150
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_the_check_finds_a_circle(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from two import b\n")
    (tmp_path / "two.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from one import a\n")
    graph = _graph({"one": tmp_path / "one.py", "two": tmp_path / "two.py"})
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("below", ["rules", "layers", "operations"])
def test_the_engine_is_above_rules_layers_and_operations(below: str) -> None:
    graph = _graph(_modules())
    for name, imported in graph.items():
        if name.startswith(f"lrphooks.{below}"):
            assert not [other for other in imported if other.startswith(("lrphooks.engine", "lrphooks.composite"))], (
                name
            )


def test_modules_of_the_core_are_short() -> None:
    lengths = {
        name: len(path.read_text().splitlines())
        for name, path in _modules().items()
        if name.startswith(("lrphooks.engine", "lrphooks.rules", "lrphooks.layers", "lrphooks.operations"))
    }
    assert len(lengths) > 60
    assert not {name: lines for name, lines in lengths.items() if lines > LINES}
