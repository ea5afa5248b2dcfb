"""`stagjax data prepare` and `verify`: a corpus turned into rows that training reads, and those rows checked."""

import argparse
import contextlib
import os
import pathlib
import types
from typing import TYPE_CHECKING

from stagjax.cli import add_subcommand, count, number
from stagjax.errors import RunFailed, UserError
from stagjax.printable import one_line
from stagjax.rules import ROW_LENGTH, VALIDATION_PERCENT, Number

if TYPE_CHECKING:
    from stagjax.data.preparing import Outcome

PREPARE_EPILOG = """\
examples:
  stagjax data prepare --path=pile/ --vocabulary=vocab/pile.model --row-length=1280 --output=pile_1280
      The Pile's layout: train/00.jsonl.zst ..., val.jsonl.zst, test.jsonl.zst
  stagjax data prepare --path=gs://BUCKET/pile --vocabulary=bytes --row-length=256 --output=pile_bytes --processes=8
      read from a bucket (pip install 'stagjax[gcs]'); the output is on this machine
  stagjax data prepare --path=texts/ --validation-percent=1 --vocabulary=bytes --row-length=256 --output=texts_256
      a directory of *.jsonl (or .jsonl.zst, .jsonl.zstd, .jsonl.gz) without a file for validation

then, to train on it (the vocabulary is a part of it):
  stagjax train --config=experiments/pile.py:shared_2x18 --workdir=runs/shared --config.data.path=pile_1280

Every shard is read once, by one process. The same line goes on after any interruption, with the shards that are not
done; a second run finds all there. OUTPUT then holds
  rows/         packed rows of train, validation and test, the latter two of one subset each
  documents/    the texts, for tfds.builder_from_directory (left away by --rows-only)
  report.json   what is broken in the input, by kind, with file and line; hashes of the sources
docs/data.md describes them exactly.

Broken input is counted: truncated files, damaged zstd or gzip, wrong checksums, invalid JSON, missing text, text that
is not a string, invalid UTF-8, lone surrogates, empty documents. Above --max-broken the run ends with status 3 and
OUTPUT stays incomplete. Repair the files and start again: only those are read anew. Shards without checksums can change
unseen: give the published hashes by --sha256.
"""

VERIFY_EPILOG = """\
examples:
  stagjax data verify --path=pile_1280
      compares every file with the hash that was taken when it was written; status 3 if one differs
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `prepare` and `verify` to the subcommands of `stagjax data`."""
    prepare = add_subcommand(commands, "prepare", "turn JSON lines into documents and packed rows", PREPARE_EPILOG)
    prepare.add_argument(
        "--path", required=True, metavar="DIR", help="directory of the shards, here or gs://BUCKET/DIRECTORY"
    )
    prepare.add_argument("--output", required=True, metavar="DIR", help="directory to be made, on this machine")
    prepare.add_argument(
        "--vocabulary", required=True, metavar="bytes|FILE.model", help="bytes, or a model made by `stagjax data vocab`"
    )
    prepare.add_argument(
        "--row-length",
        required=True,
        type=number(ROW_LENGTH),
        metavar="N",
        help="ids in a row, as data.row_length: 1280 in the paper",
    )
    prepare.add_argument(
        "--processes",
        type=count,
        metavar="N",
        help="shards at the same time, a core each (default: all cores)",
    )
    prepare.add_argument(
        "--validation-percent",
        type=number(VALIDATION_PERCENT),
        metavar="N",
        help="share of the documents to hold out, 1 to 50, where no file is made for validation",
    )
    prepare.add_argument(
        "--max-broken",
        type=number(Number(float, 0, 1)),
        default=0.001,
        metavar="SHARE",
        help="share of documents that may be broken; what a damaged shard lost counts by bytes (default: 0.001)",
    )
    prepare.add_argument(
        "--sha256", metavar="FILE", help="hashes that the shards must have, in the format of sha256sum, one for each"
    )
    prepare.add_argument(
        "--rows-only", action="store_true", help="no documents beside the rows: half the space, no tensorflow-datasets"
    )
    prepare.set_defaults(action=_prepare)
    verify = add_subcommand(commands, "verify", "compare prepared data with the hashes of its files", VERIFY_EPILOG)
    verify.add_argument("--path", required=True, metavar="DIR", help="directory made by `stagjax data prepare`")
    verify.set_defaults(action=_verify)


def _prepare(args: argparse.Namespace) -> int:
    """Prepare, and say what there is.

    Raises:
      UserError: bad arguments, sources that cannot be listed, an output made from something else.
      RunFailed: too much is broken, a shard cannot be read, the disk is full.
      KeyboardInterrupt: Ctrl-C; what is finished stays.
    """
    _check(args)
    from stagjax.data.layout import list_shards, read_expected_hashes
    from stagjax.data.preparing import Settings, prepare
    from stagjax.reporting.preparation import PreparationProgress

    documents = None if args.rows_only else _documents()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(PreparationProgress("preparing"))
        shards = list_shards(args.path, args.validation_percent, note=progress.note)
        hashes = read_expected_hashes(args.sha256, [shard.name for shard in shards]) if args.sha256 else None
        settings = Settings(args.vocabulary, args.row_length, args.validation_percent or 0, not args.rows_only)
        processes = args.processes or _cores()
        try:
            outcome = prepare(
                shards, settings, pathlib.Path(args.output), progress, processes, args.max_broken, hashes, documents
            )
        except UserError as error:
            raise UserError(str(error).replace("data.vocabulary=", "--vocabulary=")) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on with the shards that are not done") from None
    for line in _summary(pathlib.Path(args.output), outcome):
        print(one_line(line))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise `UserError` for values that have no meaning."""
    if "://" in args.output:
        raise UserError(f"--output={args.output} is no directory of this machine; prepare here, then copy it")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _documents() -> types.ModuleType:
    try:
        from stagjax.tasks import documents
    except ImportError as error:
        raise UserError(
            f"documents are written by tensorflow-datasets, which is missing ({error}); pip install 'stagjax[data]', "
            "or use --rows-only"
        ) from None
    return documents


def _summary(output: pathlib.Path, outcome: "Outcome") -> list[str]:
    """Return lines on what there is, what is broken, and how fast it went."""
    lines = []
    for split in ("train", "validation", "test"):
        parts = [receipt.parts[split] for receipt in outcome.receipts if split in receipt.parts]
        if parts:
            tokens, rows = sum(part.tokens for part in parts), sum(part.rows for part in parts)
            lines.append(
                f"{split}: {sum(part.documents for part in parts):,} documents, {sum(part.bytes for part in parts):,} "
                f"bytes, {tokens:,} tokens in {rows:,} rows"
            )
    if outcome.broken.faults.counts:
        lines.append(f"broken: {outcome.broken.share:.4%} of the input (see {output / 'report.json'})")
        lines += [f"  {line}" for line in outcome.broken.faults.lines()]
    unchecked = sum(receipt.unchecked for receipt in outcome.receipts)
    if unchecked:
        lines.append(
            f"{unchecked:,} zstd frames have no checksum: only --sha256 would show that their text has changed"
        )
    if outcome.num_new:
        speed = outcome.num_tokens / max(outcome.cpu_seconds, 1e-9) / 1e6
        lines.append(
            f"prepared {outcome.num_new} of {len(outcome.receipts)} shards: {speed:.2f} Mtok/s a core "
            f"({outcome.cpu_seconds:.1f} s of processor time)"
        )
    else:
        lines.append(f"all {len(outcome.receipts)} shards were there already; nothing was done")
    return [*lines, f"train on it: --config.data.source=prepared --config.data.path={output}"]


def _verify(args: argparse.Namespace) -> int:
    """Check every file.

    Raises:
      UserError: no prepared data there.
      RunFailed: files differ.
    """
    from stagjax.data.prepared import open_prepared, verify
    from stagjax.reporting.preparation import PreparationProgress

    prepared = open_prepared(args.path, "--path")
    files = list(prepared.files)
    total, done = sum(file.size for file in files), 0
    with PreparationProgress("verifying") as progress:
        progress.begin(len(files), 0, total, 0)

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            progress.advance(done)

        wrong = verify(prepared, advance)
    if wrong:
        raise RunFailed(
            f"--path={args.path}: {len(wrong)} of {len(files)} files are not what was written: {'; '.join(wrong[:5])}; "
            "remove them and run the same `stagjax data prepare` again"
        )
    print(f"all {len(files)} files, {total:,} bytes, are as they were written")
    return 0
