"""The corpus of an experiment: its documents as ids, packed into the rows of two splits."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stagjax.config import DataConfig
from stagjax.data.manifest import ContentHash, Manifest, rows_hash
from stagjax.data.packing import Rows, concatenate, pack, unpack
from stagjax.data.prepared import Prepared, check_use, config_path, open_prepared, open_vocabulary
from stagjax.data.row_files import StoredRows
from stagjax.data.sources import SPLITS, Source, open_source, unread_lines
from stagjax.data.vocabulary import EOS, Vocabulary
from stagjax.errors import UserError, unknown
from stagjax.printable import one_line

_SHOWN = 5  # Skipped documents that a report names.


class EncodedDocument(NamedTuple):
    """A document and its ids, int32, with EOS."""

    name: str
    text: str
    ids: np.ndarray
    subset: str = ""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What training and validation read.

    Attributes:
      vocabulary: of the ids.
      train: packed rows.
      validation: packed rows of documents that training never sees, each of a single subset.
      manifest: their identity.
      skipped: "name: reason" for what could not be read.
      subsets: names by the index that validation rows hold; ("",) where the corpus has none.
      notes: lines for people on what else lies where the corpus does.
    """

    vocabulary: Vocabulary
    train: Rows | StoredRows
    validation: Rows | StoredRows
    manifest: Manifest
    skipped: list[str]
    subsets: tuple[str, ...] = ("",)
    notes: tuple[str, ...] = ()

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the validation texts, over which bits per byte are taken."""
        return self.manifest.validation_bytes

    def report(self) -> list[str]:
        """Return lines that tell a person what was read."""
        vocabulary, fields = self.vocabulary, self.manifest.to_dict()
        lines = [f"source {self.manifest.source}, vocabulary {vocabulary.name} of {vocabulary.size:,} ids"]
        for split, rows in zip(SPLITS, (self.train, self.validation), strict=True):
            lines.append(
                f"{split}: {fields[f'{split}_documents']:,} documents, {fields[f'{split}_bytes']:,} bytes, "
                f"{rows.num_tokens:,} tokens in {rows.num_rows:,} rows of {rows.row_length} ({rows.fill:.1%} full)"
            )
        return [*lines, *self.notes, *skipped_lines(self.skipped)]


def load_corpus(config: DataConfig, vocab_size: int) -> Corpus:
    """Read, encode and pack both splits.

    Args:
      config: the experiment's data section.
      vocab_size: V of the model, at least the vocabulary's size.

    Raises:
      UserError: a source or vocabulary that cannot be read, more ids than `vocab_size`, or an empty split.
    """
    vocabulary = open_vocabulary(config)
    if vocabulary.size > vocab_size:
        raise UserError(
            f"model.vocab_size={vocab_size} is below the {vocabulary.size} ids of vocabulary {vocabulary.name!r}; "
            f"set model.vocab_size={vocabulary.size} or more"
        )
    if config.source == "prepared":
        return _prepared_corpus(config, vocabulary)
    source = open_source(config)
    train: list[np.ndarray] = []
    validation: dict[str, list[np.ndarray]] = {}
    content = {split: ContentHash() for split in SPLITS}
    for split, document in _encoded(source, vocabulary, config, SPLITS):
        (train if split == "train" else validation.setdefault(document.subset, [])).append(document.ids)
        content[split].add(document.name, document.text)
    check_splits(config, {split: content[split].num_documents for split in SPLITS}, source.skipped)
    subsets = tuple(sorted(validation))
    rows = {
        "train": pack(train, config.row_length),
        "validation": concatenate(
            [pack(validation.pop(name), config.row_length, index) for index, name in enumerate(subsets)]
        ),
    }
    manifest = Manifest(
        source=config.source,
        vocabulary_name=vocabulary.name,
        vocabulary_fingerprint=vocabulary.fingerprint,
        row_length=config.row_length,
        validation_percent=config.validation_percent,
        train_documents=content["train"].num_documents,
        train_bytes=content["train"].num_bytes,
        train_content_hash=content["train"].hexdigest(),
        train_rows_hash=rows_hash(rows["train"]),
        validation_documents=content["validation"].num_documents,
        validation_bytes=content["validation"].num_bytes,
        validation_content_hash=content["validation"].hexdigest(),
        validation_rows_hash=rows_hash(rows["validation"]),
    )
    notes = tuple(unread_lines(source.unread, source.suffixes))
    return Corpus(vocabulary, rows["train"], rows["validation"], manifest, source.skipped, subsets, notes)


def _prepared_corpus(config: DataConfig, vocabulary: Vocabulary) -> Corpus:
    prepared = open_prepared(config_path(config))
    check_use(prepared, config, vocabulary)
    rows = {split: prepared.rows(split) for split in SPLITS}
    for split in SPLITS:
        if not rows[split].num_rows:
            raise UserError(f"empty corpus: data.path={config.path} has no row for {split}; prepare it with more text")
    # What could not be read was said when it was prepared, and is in report.json.
    return Corpus(vocabulary, rows["train"], rows["validation"], prepared.manifest(), [], prepared.subsets)


def documents(config: DataConfig, split: str) -> Iterator[EncodedDocument]:
    """Yield the documents of a split, in order, with the ids that training packs.

    Those of prepared data are read back from the rows, in the order in which they end there: with the text that their
    ids stand for, numbered instead of named, and of a subset where rows are of one. They have a "test" split too.

    Raises:
      UserError: an unknown split, or a source or vocabulary that cannot be read.
    """
    splits = (*SPLITS, "test") if config.source == "prepared" else SPLITS
    if split not in splits:
        raise unknown("split", split, splits)
    if config.source == "prepared":
        return _unpacked(open_prepared(config_path(config)), open_vocabulary(config), split)
    source, vocabulary = open_source(config), open_vocabulary(config)
    return (document for _, document in _encoded(source, vocabulary, config, (split,)))


def _unpacked(prepared: Prepared, vocabulary: Vocabulary, split: str) -> Iterator[EncodedDocument]:
    subsets = (*prepared.subsets, "")  # The last, -1, where rows mix them.
    for number, (ids, subset) in enumerate(unpack(prepared.rows(split).blocks()), 1):
        yield EncodedDocument(f"{split}#{number}", vocabulary.decode(ids[:-1]), ids, subsets[subset])


def check_splits(config: DataConfig, num_documents: dict[str, int], skipped: list[str]) -> None:
    """Raise `UserError` if a split has no document.

    Args:
      config: named in the message.
      num_documents: by split.
      skipped: what could not be read; the first is named.
    """
    where = f"data.source={config.source!r}" + (f", data.path={config.path!r}" if config.path else "")
    unread = f" ({len(skipped)} could not be read, the first: {skipped[0]})" if skipped else ""
    total = sum(num_documents.values())
    if not total:
        raise UserError(
            f"empty corpus: {where} has no document that can be read{unread}; correct the files or the path"
        )
    for split, number in num_documents.items():
        if not number:
            remedy = "raise" if split == "validation" else "lower"
            raise UserError(
                f"empty corpus: data.validation_percent={config.validation_percent} leaves no document for {split} of "
                f"the {total} of {where}{unread}; {remedy} it or add documents"
            )


def skipped_lines(skipped: list[str]) -> list[str]:
    """Return lines that tell a person what could not be read: the number, and the first few by name."""
    if not skipped:
        return []
    more = [f"  and {len(skipped) - _SHOWN:,} more"] if len(skipped) > _SHOWN else []
    return [f"skipped {len(skipped):,}:", *(f"  {one_line(line, 300)}" for line in skipped[:_SHOWN]), *more]


def _encoded(
    source: Source, vocabulary: Vocabulary, config: DataConfig, splits: tuple[str, ...]
) -> Iterator[tuple[str, EncodedDocument]]:
    """Yield (split, document) for the documents of `splits`: the one way from a source to ids."""
    for document in source.documents():
        split = source.split_of(document, config.validation_percent)
        if split in splits:
            ids = np.append(vocabulary.encode(document.text), np.int32(EOS))
            yield split, EncodedDocument(document.name, document.text, ids, document.subset)
