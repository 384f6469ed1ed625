"""The pages of docs/examples: their code runs in order, and prints what they say."""

import logging
import os
import re
from pathlib import Path

import pytest

import torchvision_shim  # noqa: F401

os.environ.setdefault("KERAS_BACKEND", "torch")
ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "examples").glob("*.md"))


def steady(text):
    """A text without the mantissa of amounts so small that they are a result of rounding."""
    return re.sub(r"-?\d(\.\d+)?e-\d+", "~", text)


@pytest.mark.filterwarnings(
    "ignore:Do not pass an `input_shape`", "ignore:__array__ implementation doesn't accept a copy"
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logging.getLogger("absl").setLevel(logging.ERROR)  # it calls .h5 a thing of the past
    blocks = re.findall(r"```(python|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names, printed = {}, ""
    for kind, content in blocks:
        if kind == "python":
            exec(compile(content, page.name, "exec"), names)
            printed += capsys.readouterr().out
        else:
            assert steady(printed) == steady(content)
            printed = ""
    assert not printed
