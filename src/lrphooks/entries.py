"""The entries of a composite as plain data: which rule is for what, and what to do with what has none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lrphooks import matching
from lrphooks.checking import checked
from lrphooks.rules.base import Rule

Unmatched = Literal["error", "warn", "gradient"]
Entry = tuple[matching.Matcher, Rule]


@dataclass(frozen=True, repr=False)
class Entries:
    """What the engine reads of a composite (see :class:`lrphooks.Composite`)."""

    entries: tuple[Entry, ...] = ()
    unmatched: Unmatched = "error"
    attribution: Literal["relevance", "gradient"] = "relevance"

    def __post_init__(self) -> None:
        if not isinstance(self.entries, Iterable) or isinstance(self.entries, str):
            raise TypeError(f"Composite: entries must be a list of (matcher, rule) pairs, got {self.entries!r}.")
        entries: list[Entry] = []
        for index, entry in enumerate(self.entries):
            if not isinstance(entry, tuple | list) or len(entry) != 2:
                raise TypeError(f"Composite: entry {index} must be a (matcher, rule) pair, got {entry!r}.")
            matcher, rule = entry
            try:
                matcher = checked(matcher)
            except (TypeError, ValueError) as error:
                raise type(error)(f"Composite: entry {index}: {error}") from None
            if not isinstance(rule, Rule):
                hint = f" Did you mean {rule.__name__}()?" if isinstance(rule, type) else ""
                raise TypeError(
                    f"Composite: entry {index}: expected a rule such as lrphooks.rules.Epsilon(), got {rule!r}.{hint}"
                )
            entries.append((matcher, rule))
        object.__setattr__(self, "entries", tuple(entries))
        for name, allowed in (("unmatched", ("error", "warn", "gradient")), ("attribution", ("relevance", "gradient"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Composite: {name} must be one of {allowed}, got {getattr(self, name)!r}.")

    def __repr__(self) -> str:
        entries = ", ".join(f"({matching.describe(matcher)}, {rule!r})" for matcher, rule in self.entries)
        options = ""
        if self.unmatched != "error":
            options += f", unmatched={self.unmatched!r}"
        if self.attribution != "relevance":
            options += f", attribution={self.attribution!r}"
        return f"Composite([{entries}]{options})"
