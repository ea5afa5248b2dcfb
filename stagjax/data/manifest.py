"""The manifest: what a run was trained on, in hashes, so that a resumed run reads the same or says what changed."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stagjax.data.packing import Rows
from stagjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The identity of a packed corpus.

    Attributes:
      source: the kind of source; where it lies does not matter.
      vocabulary_name: for people, and not compared.
      vocabulary_fingerprint: of the vocabulary.
      row_length: T.
      validation_percent: share of documents held out.
      train_documents: how many.
      train_bytes: of their texts, in UTF-8.
      train_content_hash: sha256 of their names and texts, in order.
      train_rows_hash: sha256 of the packed rows.
      validation_documents: as above, for the other split.
      validation_bytes: likewise.
      validation_content_hash: likewise.
      validation_rows_hash: likewise.
    """

    source: str
    vocabulary_name: str = dataclasses.field(metadata={"compared": False})
    vocabulary_fingerprint: str
    row_length: int
    validation_percent: int
    train_documents: int
    train_bytes: int
    train_content_hash: str
    train_rows_hash: str
    validation_documents: int
    validation_bytes: int
    validation_content_hash: str
    validation_rows_hash: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a flat dict, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Manifest":
        """Return the manifest that `to_dict` gave.

        Raises:
          UserError: a field is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(names ^ set(fields)):
            raise UserError(
                f"the stored data manifest was written by another version of stagjax: it differs in "
                f"{', '.join(wrong)}; go on with that version, or start in a new workdir"
            )
        return cls(**fields)


class ContentHash:
    """sha256 over the names and texts of documents, in order, and what they amount to.

    Attributes:
      num_documents: added so far.
      num_bytes: of their texts, in UTF-8.
    """

    def __init__(self):
        self._hash = hashlib.sha256()
        self.num_documents = 0
        self.num_bytes = 0

    def add(self, name: str, text: str) -> None:
        """Count one more document."""
        content = text.encode()
        for part in (name.encode(), content):
            # The length first: otherwise characters could move from a name to its text unseen.
            self._hash.update(len(part).to_bytes(8, "little"))
            self._hash.update(part)
        self.num_documents += 1
        self.num_bytes += len(content)

    def hexdigest(self) -> str:
        """Return the hash of what was added, in hexadecimal."""
        return self._hash.hexdigest()


def rows_hash(rows: Rows) -> str:
    """Return sha256 of packed rows, in hexadecimal, the same on every machine."""
    digest = hashlib.sha256(repr(rows.targets_RT.shape).encode())
    for array in (rows.targets_RT, rows.segment_ids_RT, rows.first_inputs_R):
        digest.update(np.ascontiguousarray(array, "<i4"))
    return digest.hexdigest()


def differences(stored: Manifest, wanted: Manifest) -> list[str]:
    """Return "field: stored -> wanted" for every field that makes them different data."""
    lines = []
    for field in dataclasses.fields(Manifest):
        old, new = getattr(stored, field.name), getattr(wanted, field.name)
        if old != new and field.metadata.get("compared", True):
            lines.append(f"{field.name}: {old} -> {new}")
    return lines
