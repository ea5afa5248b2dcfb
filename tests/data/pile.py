"""A small corpus in the layout of The Pile, made up by a seeded generator."""

import json
import random

import zstandard

WORDS = "the of stack reads what another made in time né 水 \n\n    def f(x): return 42".split(" ")
SUBSETS = ("Github", "Wikipedia (en)", "Gutenberg (PG-19)")


def documents(seed, number):
    """Return [(text, subset)]."""
    random_ = random.Random(seed)
    return [
        (" ".join(random_.choices(WORDS, k=random_.randrange(2, 160))), random_.choice(SUBSETS)) for _ in range(number)
    ]


def lines(documents):
    """Return the bytes of a shard before compression."""
    records = [{"text": text, "meta": {"pile_set_name": subset}} for text, subset in documents]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def compress(data, checksum=True, frames=1):
    """Return `data` as zstd frames that state their size."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=checksum, write_content_size=True)
    size = -(-len(data) // frames)
    return b"".join(compressor.compress(data[start : start + size]) for start in range(0, len(data), size))


def write_pile(root, shards=3, number=40, checksum=True):
    """Write train/00.jsonl.zst ..., val.jsonl.zst and test.jsonl.zst; return their documents by name."""
    (root / "train").mkdir(parents=True)
    names = [*(f"train/{index:02d}.jsonl.zst" for index in range(shards)), "val.jsonl.zst", "test.jsonl.zst"]
    corpus = {name: documents(seed, number) for seed, name in enumerate(names)}
    for name, texts in corpus.items():
        (root / name).write_bytes(compress(lines(texts), checksum))
    return corpus
