"""What ``import lrphooks`` brings with it, and what is found in it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lrphooks
from lrphooks.cli.commands import COMMANDS
from lrphooks.cli.options import MODELS
from lrphooks.models import SOURCES

ROOT = Path(__file__).parents[1]
#: What takes long to import.
SLOW = ("torch._dynamo", "torch._inductor", "sympy", "matplotlib")


def loaded(code, *modules):
    """Return which modules are loaded after code ran in a new process, and which are not."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('loaded', *[m for m in {modules} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.rpartition("loaded")[2].split()


def test_the_package_by_itself_imports_no_torch():
    assert loaded("import lrphooks", "torch", "numpy", "PIL") == []


def test_all_that_it_offers_comes_without_what_torch_itself_does_not_import():
    assert loaded("from lrphooks import *; lrp, audit, compiled, tune", "torch", *SLOW) == ["torch"]


def test_audit_is_the_function_whatever_was_imported_first():
    for first in ("import lrphooks.audit.report", "from lrphooks import audit", "from lrphooks import *"):
        code = f"{first}\nimport lrphooks\nlrphooks.audit.__code__\nfrom lrphooks import audit\naudit.__code__"
        assert loaded(code) == []


def test_every_public_name_is_there_and_listed():
    for name in lrphooks.__all__:
        assert getattr(lrphooks, name) is not None
    assert set(lrphooks.__all__) <= set(dir(lrphooks))
    with pytest.raises(AttributeError, match="module 'lrphooks' has no attribute 'nothing'"):
        _ = lrphooks.nothing


def test_what_the_documentation_names_is_an_attribute_of_the_package():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    named = {name for page in pages for name in re.findall(r"\blrphooks\.([A-Za-z]\w*)", page.read_text("utf-8"))}
    assert len(named) > 15
    assert loaded(f"import lrphooks\nfor name in {sorted(named - {'cli', 'engine'})}: getattr(lrphooks, name)") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command.name, "--help"] for command in COMMANDS)])
def test_help_imports_no_torch(arguments):
    code = f"""
from lrphooks.cli import main
try:
    main({arguments})
except SystemExit as ended:
    assert ended.code == 0
"""
    assert loaded(code, "torch", "numpy", "PIL") == []


def test_help_names_the_sources_of_models():
    assert tuple(source.form for source in SOURCES) == MODELS
