"""Mutated shards: whatever happens to a file's bytes, all text comes through or a counted fault says that it did not.

A hundred: python -m pytest -m slow tests/data/test_mutations.py
"""

import random

import pytest

from stagjax.data.layout import list_shards
from stagjax.data.packing import unpack
from stagjax.data.prepare_shard import Job, prepare_shard
from stagjax.data.prepared import RECEIPTS, ROWS
from stagjax.data.receipts import broken_share
from stagjax.data.row_files import RowFile, StoredRows
from stagjax.data.vocabulary import ByteVocabulary
from stagjax.errors import RunFailed
from tests.data.pile import compress, documents, lines

TEXTS = documents(7, 150)
RAW = lines(TEXTS)


def cut(data, random_):
    return data[: random_.randrange(1, len(data))]


def flip(data, random_):
    place = random_.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random_.randrange(8)]) + data[place + 1 :]


def reorder(data, random_):
    first, second, third = sorted(random_.sample(range(len(data) + 1), 3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def prepared(root, name, data):
    """Prepare one shard; return its receipt and the texts of its rows."""
    (root / "in").mkdir()
    for directory in (ROWS, RECEIPTS):
        (root / "out" / directory).mkdir(parents=True)
    (root / "in" / name).write_bytes(data)
    (shard,) = list_shards(str(root / "in"), 1)
    job = Job(shard._replace(split="train"), root / "out", {"train": (0, 1)}, 64, 0)
    receipt = prepare_shard(job, ByteVocabulary(), lambda num_bytes: None)
    part = receipt.parts["train"]
    file = RowFile(root / "out" / part.row_file.name, part.rows, part.tokens, part.documents, ())
    texts = [ByteVocabulary().decode(ids[:-1]) for ids, _ in unpack(StoredRows([file], 64, False).blocks())]
    return receipt, texts


def check(root, kind, mutate, seed):
    """Mutate a shard, compressed or plain, and account for every text of it."""
    name = "a.jsonl.zst" if kind == "zstd" else "a.jsonl"
    data = compress(RAW, frames=1 + seed % 3) if kind == "zstd" else RAW
    mutated = mutate(data, random.Random(seed))
    try:
        receipt, texts = prepared(root, name, mutated)
    except RunFailed as error:
        assert name in str(error)
        return
    wanted = [text for text, _ in TEXTS]
    assert len(texts) == receipt.parts["train"].documents == receipt.lines - receipt.broken
    if kind == "plain":
        # Lines of plain files have no checksum: what still has the form of a document is one, and only the hash of the
        # file tells that it was changed. But no line goes missing.
        assert receipt.lines == sum(bool(line.strip()) for line in mutated.split(b"\n"))
        assert sum(part["count"] for part in receipt.faults.values()) == receipt.broken
    else:
        # A checksum covers every byte: no text goes missing or changes without a fault.
        assert texts == wanted or receipt.faults
        if set(wanted) - set(texts):
            assert broken_share([receipt]).share > 0.001


@pytest.mark.parametrize("seed", range(10))
def test_mutated_shards_give_counted_errors(tmp_path, seed):
    check(tmp_path, ("zstd", "zstd", "plain")[seed % 3], (cut, flip, reorder)[seed % 4 % 3], seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zstd", "plain"])
@pytest.mark.parametrize("mutate", [cut, flip, reorder])
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_hundred_mutated_shards_give_counted_errors(tmp_path, kind, mutate, seed):
    check(tmp_path, kind, mutate, seed)
