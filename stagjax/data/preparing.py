"""Preparing a corpus: shards in parallel, each once, killed at any time and gone on with by the same call."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from stagjax.data.layout import SPLITS, Shard
from stagjax.data.prepare_shard import PARTIAL, DocumentWriter, Job, disk_errors
from stagjax.data.prepared import (
    DOCUMENTS,
    FORMAT,
    PLAN,
    PREPARED,
    RECEIPTS,
    REPORT,
    ROWS,
    VOCABULARY,
)
from stagjax.data.receipts import Broken, Receipt, broken_share
from stagjax.data.vocabulary import Vocabulary, load_vocabulary
from stagjax.data.workers import prepare_shards
from stagjax.errors import RunFailed, UserError
from stagjax.files import FULL, is_utf8, read_json, write_whole

_SHOWN = 5  # Differences that an error names.


class DocumentStore(Protocol):
    """How documents are kept beside the rows; plain functions, for they travel to the workers."""

    def open_writer(self, path: pathlib.Path) -> DocumentWriter:
        """Return a writer of the documents of one shard and split."""

    def describe(self, directory: pathlib.Path, shards: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Write what readers need to know: for each split the number of documents and the bytes of each file."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What prepared data depends on, besides its sources.

    Attributes:
      vocabulary: "bytes", or the path of a SentencePiece model.
      row_length: T.
      validation_percent: of documents held out; 0 where validation has files of its own.
      with_documents: whether documents are written too.
    """

    vocabulary: str
    row_length: int
    validation_percent: int
    with_documents: bool = True


class Outcome(NamedTuple):
    """What was done.

    Attributes:
      receipts: of all shards.
      num_new: shards that were prepared now; the others had been.
      num_tokens: of those.
      cpu_seconds: of the workers, for those.
      broken: share of the input that is broken.
    """

    receipts: list[Receipt]
    num_new: int
    num_tokens: int
    cpu_seconds: float
    broken: Broken


class Watcher(Protocol):
    """Shows a person how far it is."""

    def begin(self, num_shards: int, num_done: int, total_bytes: int, done_bytes: int) -> None:
        """Told once, with what an earlier call has done."""

    def advance(self, done_bytes: int) -> None:
        """Bytes of the sources that are read, in all."""

    def finished(self, receipt: Receipt) -> None:
        """A shard is done."""


def prepare(
    shards: Sequence[Shard],
    settings: Settings,
    output: pathlib.Path,
    watcher: Watcher,
    processes: int = 1,
    max_broken: float = 0.001,
    expected_hashes: Mapping[str, str] | None = None,
    documents: DocumentStore | None = None,
) -> Outcome:
    """Write the documents and rows of all shards to `output`, or what of them is not there yet.

    Args:
      shards: of the source, sorted by name.
      settings: with which they are prepared.
      output: the directory.
      watcher: told of the progress.
      processes: that work at the same time, each on a shard.
      max_broken: share of the input that may be broken.
      expected_hashes: sha256 of each shard's file, by name.
      documents: how documents are kept; None for rows alone.

    Raises:
      UserError: `output` cannot be used, or holds data of other sources or settings.
      RunFailed: too much is broken, a source cannot be read or has another hash, the disk is full, a worker died.
      KeyboardInterrupt: Ctrl-C; what is finished stays.
    """
    vocabulary = load_vocabulary(settings.vocabulary)
    with _owned(output):
        with disk_errors(output):
            _claim(output, shards, settings, vocabulary)
        jobs = _jobs(shards, settings, output, expected_hashes or {}, documents)
        done = {job.shard.name: receipt for job in jobs if (receipt := _finished(job)) is not None}
        todo = [job for job in jobs if job.shard.name not in done]
        total = sum(shard.size for shard in shards)
        watcher.begin(len(jobs), len(done), total, sum(job.shard.size for job in jobs if job.shard.name in done))
        cpu_seconds = 0.0
        if todo:
            (output / PREPARED).unlink(missing_ok=True)
            for receipt, seconds in prepare_shards(todo, _spec(output), processes, watcher.advance):
                done[receipt.name] = receipt
                cpu_seconds += seconds
                watcher.finished(receipt)
        # Only now, with all shards done: those that are whole need not be read again once the others are repaired.
        receipts = [done[job.shard.name] for job in jobs]
        broken = broken_share(receipts)
        with disk_errors(output):
            _report(output, receipts, broken, max_broken)
        if max(broken.share, *broken.by_split.values()) > max_broken:
            raise RunFailed(_too_much(output, broken, max_broken))
        if not (output / PREPARED).exists():
            with disk_errors(output):
                _complete(output, settings, vocabulary, receipts, documents)
        new = [done[job.shard.name] for job in todo]
        num_tokens = sum(part.tokens for receipt in new for part in receipt.parts.values())
        return Outcome(receipts, len(new), num_tokens, cpu_seconds, broken)


@contextlib.contextmanager
def _owned(output: pathlib.Path) -> Iterator[None]:
    """Hold the directory for this process; create it where it is missing."""
    if not is_utf8(output):
        raise UserError(f"--output={os.fspath(output)!r} has bytes that are not UTF-8; give another directory")
    try:
        output.mkdir(parents=True, exist_ok=True)
        others = [name for name in os.listdir(output) if not name.startswith(".") and not name.endswith(PARTIAL)]
        if others and not (output / PLAN).exists():
            raise UserError(
                f"--output={output} is not empty and was not made by stagjax data prepare; give a new directory"
            )
        lock = open(output / ".lock", "w")
    except OSError as error:
        if error.errno in FULL:
            raise RunFailed(f"cannot write to {output} ({error.strerror}); free some space and start again") from error
        raise UserError(f"--output={output} cannot be written: {error.strerror}; give another directory") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--output={output} is in use by another process; wait for it or end it") from error
        yield


def _claim(output: pathlib.Path, shards: Sequence[Shard], settings: Settings, vocabulary: Vocabulary) -> None:
    """Store the plan in a new directory; refuse one that was made with another."""
    wanted = {
        "format": FORMAT,
        "vocabulary": vocabulary.fingerprint,
        "row_length": settings.row_length,
        "validation_percent": settings.validation_percent,
        "documents": settings.with_documents,
        **{shard.name: shard.split or "split by name" for shard in shards},
    }
    if (output / PLAN).exists():
        stored = read_json(output / PLAN, "give a new --output")
        names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
        if names:
            lines = [f"{name}: {_short(stored.get(name))} -> {_short(wanted.get(name))}" for name in names[:_SHOWN]]
            more = f"; {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UserError(
                f"--output={output} was made from other sources or settings: {'; '.join(lines)}{more}; give a new "
                "directory, or the same sources and settings"
            )
    else:
        write_whole(output / PLAN, json.dumps(wanted, indent=1))
    for directory in (ROWS, RECEIPTS, *([DOCUMENTS] if settings.with_documents else [])):
        (output / directory).mkdir(exist_ok=True)
        for partial in (output / directory).glob(f"*{PARTIAL}"):
            partial.unlink()  # Of a worker that was killed; there is no other while this process holds the lock.
    if settings.vocabulary != "bytes" and not (output / VOCABULARY).exists():
        partial = output / (VOCABULARY + PARTIAL)
        shutil.copyfile(settings.vocabulary, partial)
        os.replace(partial, output / VOCABULARY)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else "none" if value is None else str(value)


def _jobs(
    shards: Sequence[Shard],
    settings: Settings,
    output: pathlib.Path,
    expected_hashes: Mapping[str, str],
    documents: DocumentStore | None,
) -> list[Job]:
    giving = {
        split: [shard.name for shard in shards if split == shard.split or (shard.split is None and split != "test")]
        for split in SPLITS
    }
    return [
        Job(
            shard,
            output,
            {split: (names.index(shard.name), len(names)) for split, names in giving.items() if shard.name in names},
            settings.row_length,
            settings.validation_percent,
            expected_hashes.get(shard.name),
            documents and documents.open_writer,
        )
        for shard in shards
    ]


def _finished(job: Job) -> Receipt | None:
    """Return the receipt of a shard that needs no more work.

    Raises:
      UserError: the shard is another file than the one that was read, which was not broken.
    """
    try:
        receipt = Receipt.from_dict(json.loads(job.receipt_path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # Damaged: the shard is read again.
    if receipt.size != job.shard.size or job.expected_sha256 not in (None, receipt.sha256):
        if receipt.faults:
            return None  # It was broken and has been repaired.
        raise UserError(
            f"--output={job.output} was made from another {job.shard.name}, of {receipt.size:,} bytes and sha256 "
            f"{receipt.sha256[:12]}; give a new directory, or the same sources"
        )
    paths = {job.output / file.name: file.size for part in receipt.parts.values() for file in part.files}
    whole = all(path.exists() and path.stat().st_size == size for path, size in paths.items())
    return receipt if whole else None


def _spec(output: pathlib.Path) -> str:
    return str(output / VOCABULARY) if (output / VOCABULARY).exists() else "bytes"


def _report(output: pathlib.Path, receipts: Sequence[Receipt], broken: Broken, max_broken: float) -> None:
    """Write what is wrong with the sources, and their hashes."""
    report = {
        "broken_share": broken.share,
        "broken_documents": broken.documents,
        "lost_bytes": broken.bytes,
        "lost_bytes_by_split": broken.by_split,
        "max_broken": max_broken,
        "faults": broken.faults.to_dict(),
        "sources": {
            receipt.name: {
                "sha256": receipt.sha256,
                "bytes": receipt.size,
                "lines": receipt.lines,
                "broken_lines": receipt.broken,
                "content_bytes": receipt.content_bytes,
                "lost_share": receipt.lost_share,
                "frames": receipt.frames,
                "frames_without_checksum": receipt.unchecked,
            }
            for receipt in receipts
        },
    }
    write_whole(output / REPORT, json.dumps(report, indent=1))


def _too_much(output: pathlib.Path, broken: Broken, max_broken: float) -> str:
    cases = "; ".join(
        f"{kind}: {count:,}, the first {broken.faults.first[kind][0].where}"
        for kind, count in sorted(broken.faults.counts.items())
    )
    what = f"{broken.share:.3%} of the input is broken"
    if broken.share <= max_broken:
        split = max(broken.by_split, key=broken.by_split.__getitem__)
        what = f"{broken.by_split[split]:.3%} of {split} is lost"
    return (
        f"{what}, above --max-broken={max_broken:g} ({cases}); see "
        f"{output / REPORT}; repair the sources and start again, which reads only those anew, or raise --max-broken"
    )


def _complete(
    output: pathlib.Path,
    settings: Settings,
    vocabulary: Vocabulary,
    receipts: Sequence[Receipt],
    documents: DocumentStore | None,
) -> None:
    """Describe the documents, then write the file whose presence says that all is there."""
    if documents is not None:
        parts = {split: [receipt.parts[split] for receipt in receipts if split in receipt.parts] for split in SPLITS}
        documents.describe(
            output / DOCUMENTS,
            {split: [(part.documents, part.document_file.size) for part in parts[split]] for split in SPLITS},
        )
    tree = {
        "format": FORMAT,
        "settings": {
            "vocabulary_name": pathlib.Path(settings.vocabulary).name,
            "vocabulary_fingerprint": vocabulary.fingerprint,
            "row_length": settings.row_length,
            "validation_percent": settings.validation_percent,
        },
        "receipts": [dataclasses.asdict(receipt) for receipt in receipts],
    }
    write_whole(output / PREPARED, json.dumps(tree, indent=1))
