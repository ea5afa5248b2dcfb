"""`stagjax data`: vocabularies, and corpora prepared for training."""

import argparse
import time
from typing import TYPE_CHECKING

from stagjax.cli import add_subcommand, count, data_prepare, number
from stagjax.errors import RunFailed, UserError
from stagjax.printable import one_line
from stagjax.rules import VALIDATION_PERCENT, Number

if TYPE_CHECKING:
    from stagjax.data.vocabulary import Vocabulary

EPILOG = """\
examples:
  stagjax data vocab --source=stdlib --size=8192 --output=vocab/stdlib_8k.model
  stagjax data vocab --source=jsonl --path=pile/ --size=256000 --output=vocab/pile.model
  stagjax data prepare --path=pile/ --vocabulary=vocab/pile.model --row-length=1280 --output=pile_1280
  stagjax data verify --path=pile_1280

`stagjax data COMMAND --help` explains a command's arguments.
"""

VOCAB_EPILOG = """\
examples:
  stagjax data vocab --source=stdlib --size=8192 --output=vocab/stdlib_8k.model
      8,192 pieces from the Python standard library: a few seconds, no download
  stagjax data vocab --source=text --path=books/ --size=32000 --output=vocab/books.model
      every .txt, .md and .py file below books/ is a document
  stagjax data vocab --source=jsonl --path=pile/ --size=256000 --output=vocab/pile.model
      every line {"text": ...} of every .jsonl, .jsonl.zst, .jsonl.zstd and .jsonl.gz file below pile/ is a document;
      with a directory train/ it learns from that alone, and is checked on val.jsonl.zst too; --share=0.001 takes a
      thousandth of the documents

then, to train with it (the model needs a row for each id):
  stagjax train --config=experiments/stdlib.py:separate_2x3 --workdir=runs/pieces \\
      --config.data.vocabulary=vocab/stdlib_8k.model --config.model.vocab_size=8192

Only the training split is read for training, so keep --validation-percent equal to the experiment's
data.validation_percent. The vocabulary is byte-pair encoding with byte fallback: it reproduces every text exactly,
which is checked here on every document of both splits.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `stagjax data`."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    summary = "train a SentencePiece vocabulary that loses no text, and check it on the whole corpus"
    vocab = add_subcommand(commands, "vocab", summary, VOCAB_EPILOG)
    vocab.add_argument(
        "--source",
        required=True,
        metavar="KIND",
        help="stdlib (the running Python's standard library), text (a file is a document) or jsonl (a line is one)",
    )
    vocab.add_argument("--path", metavar="DIR", help="directory of the documents, for text and jsonl")
    vocab.add_argument(
        "--size",
        required=True,
        type=count,
        metavar="N",
        help="ids, including 3 specials, the unknown and 256 bytes: 8192 suits 10 MB of text, 256000 the Pile",
    )
    vocab.add_argument("--output", required=True, metavar="FILE.model", help="file to write; never overwritten")
    vocab.add_argument(
        "--validation-percent",
        type=number(VALIDATION_PERCENT),
        default=5,
        metavar="N",
        help="share of documents that is held out, as data.validation_percent in the experiment (default: 5)",
    )
    vocab.add_argument(
        "--share",
        type=number(Number(float, 0, 1, open_low=True)),
        default=1.0,
        metavar="X",
        help="share of the documents to use, chosen by their names, where all are too many to be held in memory: 0.001 "
        "of The Pile is 0.8 GB (default: 1, all)",
    )
    vocab.set_defaults(action=_vocab)
    data_prepare.add_commands(commands)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if args.overrides:
        raise UserError(
            f"--config.{args.overrides[0]}: `stagjax data {args.data_command}` reads no experiment; see its --help"
        )
    return args.action(args)


def _vocab(args: argparse.Namespace) -> int:
    """Run `stagjax data vocab` and return the exit status.

    Raises:
      UserError: bad arguments, an empty corpus, an existing output, or more pieces than the text yields.
      RunFailed: the trained vocabulary does not reproduce a document.
    """
    from rich.console import Console

    from stagjax.data.vocabulary import refuse_existing, train_sentencepiece

    refuse_existing(args.output)  # Before reading for minutes, too.
    console = Console(markup=False, highlight=False, soft_wrap=True)
    try:
        texts, notes = _read(args)
    except UserError as error:
        raise UserError(_with_flags(str(error))) from None
    for split, documents in texts.items():
        num_bytes = sum(len(text.encode()) for _, text in documents)
        console.print(f"read {split}: {len(documents):,} documents, {num_bytes:,} bytes")
    for line in notes:
        console.print(line)

    start = time.perf_counter()
    with console.status(f"training {args.size:,} pieces on the training split"):
        vocabulary = train_sentencepiece((text for _, text in texts["train"]), args.size, args.output)
    console.print(f"trained {vocabulary.size:,} ids in {time.perf_counter() - start:.1f} s: {one_line(args.output)}")
    for split, documents in texts.items():
        console.print(_verify(vocabulary, split, documents, args.output))
    return 0


def _read(args: argparse.Namespace) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """Return (name, text) of all documents by split, and lines on what was not read."""
    from stagjax.config import DataConfig
    from stagjax.data.corpus import check_splits, skipped_lines
    from stagjax.data.sources import SPLITS, is_drawn, open_source, unread_lines

    config = DataConfig(source=args.source, path=args.path, validation_percent=args.validation_percent)
    config.check()
    source = open_source(config)
    texts: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for document in source.documents():
        split = source.split_of(document, config.validation_percent)
        if split in texts and is_drawn(document.name, args.share):
            texts[split].append((document.name, document.text))
    check_splits(config, {split: len(texts[split]) for split in SPLITS}, source.skipped)
    return texts, [*unread_lines(source.unread, source.suffixes), *skipped_lines(source.skipped)]


def _with_flags(message: str) -> str:
    """Name this command's flags where an error names the fields of an experiment."""
    for prefix in ("--config.data.", "data."):
        for field in ("source", "path", "validation_percent"):
            message = message.replace(f"{prefix}{field}", f"--{field.replace('_', '-')}")
    return message


def _verify(vocabulary: "Vocabulary", split: str, texts: list[tuple[str, str]], output: str) -> str:
    """Return a line on the tokens of a split; raises `RunFailed` if a document does not decode exactly."""
    num_tokens = num_bytes = 0
    start = time.perf_counter()
    for name, text in texts:
        ids = vocabulary.encode(text)
        if vocabulary.decode(ids) != text:
            raise RunFailed(f"{output} does not reproduce the document {name!r}; do not use it, and report this")
        num_tokens += len(ids)
        num_bytes += len(text.encode())
    return (
        f"checked {split}: all {len(texts):,} documents decode exactly; {num_tokens:,} tokens, "
        f"{num_bytes / max(1, num_tokens):.2f} bytes a token ({time.perf_counter() - start:.1f} s)"
    )
