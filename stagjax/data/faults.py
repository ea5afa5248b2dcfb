"""Broken input, counted by kind, with file and line of the first cases, so that no text goes missing unseen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

TRUNCATED, DAMAGED, CHECKSUM = "truncated zstd", "damaged zstd", "wrong checksum"
TRUNCATED_GZIP, DAMAGED_GZIP, TRUNCATED_FILE = "truncated gzip", "damaged gzip", "truncated file"
NOT_UTF8, NOT_JSON, NO_TEXT = "invalid UTF-8", "invalid JSON", "missing text"
NOT_A_STRING, SURROGATE, EMPTY = "text not a string", "lone surrogate", "empty document"

_KEPT = 20  # Cases of each kind that are kept by name.
_SHOWN = 3  # And shown on a terminal; the report has the others.


class Fault(NamedTuple):
    """One thing that is wrong with the input.

    Attributes:
      kind: one of the names above.
      where: "train/00.jsonl.zst:17", file and line, or the file alone where all the rest of it is concerned.
      detail: what is wrong with it, for people.
    """

    kind: str
    where: str
    detail: str


class Faults:
    """How many faults there are of each kind, and the first cases.

    Attributes:
      counts: by kind.
      first: of each kind the first 20, in the order of the input.
    """

    def __init__(self):
        self.counts: dict[str, int] = {}
        self.first: dict[str, list[Fault]] = {}

    def add(self, fault: Fault) -> None:
        """Count one more."""
        self._add(fault.kind, 1, [fault])

    def merge(self, other: "Faults") -> None:
        """Count those of a later part of the input."""
        for kind, count in other.counts.items():
            self._add(kind, count, other.first[kind])

    def to_dict(self) -> dict[str, Any]:
        """Return {kind: {"count", "first": [{"where", "detail"}]}}, ready for JSON."""
        return {
            kind: {
                "count": count,
                "first": [{"where": fault.where, "detail": fault.detail} for fault in self.first[kind]],
            }
            for kind, count in sorted(self.counts.items())
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Faults":
        """Return the faults that `to_dict` gave."""
        faults = cls()
        for kind, part in tree.items():
            faults._add(kind, part["count"], [Fault(kind, **case) for case in part["first"]])
        return faults

    def lines(self) -> list[str]:
        """Return lines that tell a person what is wrong: each kind with its number, and the first cases."""
        lines = []
        for kind, count in sorted(self.counts.items()):
            lines.append(f"{kind}: {count:,}")
            lines += [f"  {fault.where}: {fault.detail}" for fault in self.first[kind][:_SHOWN]]
            if count > _SHOWN:
                lines.append(f"  and {count - _SHOWN:,} more")
        return lines

    def _add(self, kind: str, count: int, first: list[Fault]) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        kept = self.first.setdefault(kind, [])
        kept.extend(first[: _KEPT - len(kept)])
