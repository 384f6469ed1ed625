"""Makes the pictures of the documents: ``python docs/pictures.py``.

The pictures of docs/looking.md are what its code makes: before each stands a block that leaves it as ``picture``.
README's is that of ``lrphooks explain``. It needs the extras ``imagenet`` and ``test``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import skimage.data
from PIL import Image

from lrphooks.cli import main as command_line

DOCS = Path(__file__).parent
PAGE = DOCS / "looking.md"


def pictures_of_the_page() -> Iterator[tuple[Path, Image.Image]]:
    """Run the page's code from its top to its end; yield each picture with its file."""
    namespace: dict[str, Any] = {}
    for code, name in re.findall(
        r"```python\n(.*?)```(?:\s+!\[[^\]]*\]\(([^)]+)\))?", PAGE.read_text("utf-8"), re.DOTALL
    ):
        exec(compile(code, PAGE.name, "exec"), namespace)  # noqa: S102  # our own page
        if name:
            yield DOCS / name, reduced(namespace.pop("picture"))


def picture_of_the_readme() -> tuple[Path, Image.Image]:
    """Return what ``lrphooks explain cat.png --model efficientnet-lite0`` draws of "chelsea", and its file."""
    with TemporaryDirectory() as folder:
        photograph = Path(folder) / "cat.png"
        Image.fromarray(skimage.data.chelsea()).save(photograph)
        if status := command_line(["explain", str(photograph), "--model", "efficientnet-lite0"]):
            raise RuntimeError(f"lrphooks explain ended with status {status}")
        with Image.open(photograph.with_name("cat-relevance.png")) as picture:
            return DOCS / "images" / "cat.png", reduced(picture.convert("RGB"))


def reduced(picture: Image.Image) -> Image.Image:
    """Return a picture in steps of 5 of 255, too fine to see: a much smaller file."""
    return picture.point([5 * round(level / 5) for level in range(256)] * 3)


def main() -> None:
    """Write all pictures."""
    for path, picture in (picture_of_the_readme(), *pictures_of_the_page()):
        picture.save(path, optimize=True)
        print(f"{path.name}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
