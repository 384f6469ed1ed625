"""The tests on the releases of Python and torch that the package says it supports.

nox                                          every pair below, one after the other
nox --list                                   the pairs
nox --session "tests(3.11, torch 2.14.1)"    one of them
nox --session tests -- tests/test_session.py -x    arguments of pytest, for every pair
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True

#: A torchvision is built for one torch.
TORCHVISION = {
    "2.8.0": "0.23.0",
    "2.11.0": "0.26.0",
    "2.13.0": "0.28.0",
    "2.14.1": "0.29.1",
    "2.15.0": "0.29.2",
}
#: Each torch on one Python, each Python with one torch.
PAIRS = [("3.10", "2.8.0"), ("3.11", "2.11.0"), ("3.12", "2.13.0"), ("3.11", "2.14.1"), ("3.13", "2.14.1")]


@nox.session
@nox.parametrize(
    ("python", "torch"), [nox.param(python, torch, id=f"{python}, torch {torch}") for python, torch in PAIRS]
)
def tests(session: nox.Session, torch: str) -> None:
    """Run the tests on one Python and one torch."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text(_constraints(torch), encoding="utf-8")
    session.run("bash", ".ci/develop", session.virtualenv.location, str(constraints), *session.posargs, external=True)


def _constraints(torch: str) -> str:
    """Return the project's constraints with another torch and the torchvision built for it."""
    kept = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    others = [line for line in kept if not line.startswith(("torch==", "torchvision=="))]
    return "\n".join([*others, f"torch=={torch}", f"torchvision=={TORCHVISION[torch]}", ""])
