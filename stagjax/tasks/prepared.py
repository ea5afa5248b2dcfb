"""Benchmarks out of tensorflow-datasets, where they lie prepared on this machine; nothing is downloaded.

Its files are in another order than the official ones: metrics without examples are the same, but draws of examples are
not those of the harness.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from stagjax.errors import DataError
from stagjax.tasks.benchmark import Benchmark, Data, Source
from stagjax.tasks.records import Document, Record


def load_prepared(benchmark: Benchmark, directory: str | os.PathLike[str] | None = None, pool: bool = True) -> Data:
    """Read a benchmark that tensorflow-datasets has prepared.

    Args:
      benchmark: whose.
      directory: of the prepared datasets, by default that of tensorflow-datasets.
      pool: whether to read what few-shot examples are drawn from.

    Raises:
      DataError: tensorflow-datasets does not have it, or it is not prepared; or a record is malformed.
    """
    prepared = benchmark.prepared
    if prepared is None:
        raise DataError(
            f"{benchmark.name} is not in tensorflow-datasets as the prompts need it; use its official files"
        )
    try:
        builder = tfds.builder(prepared.name, data_dir=directory, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise DataError(f"{benchmark.name}: tensorflow-datasets has no {prepared.name} ({error})") from None
    if not builder.is_prepared():
        raise DataError(
            f"{benchmark.name}: {builder.data_path} is not prepared; run `tfds build {prepared.name}`, or use the "
            "official files"
        )
    documents, source = _read(benchmark, builder, prepared.evaluated)
    sources, examples = [source], ()
    if pool and prepared.pool:
        examples, source = _read(benchmark, builder, prepared.pool)
        sources.append(source)
    elif pool and isinstance(benchmark.pool, tuple):
        examples = benchmark.pool
    return Data(documents, examples, tuple(sources))


def _read(benchmark: Benchmark, builder: tfds.core.DatasetBuilder, split: str) -> tuple[list[Document], Source]:
    name = f"{builder.info.full_name}:{split}"
    documents = [
        benchmark.prepared.document(Record(record, f"{name}:{number}"))
        for number, record in enumerate(_records(builder, split), 1)
    ]
    official = benchmark.evaluated if split == benchmark.prepared.evaluated else benchmark.pool
    return documents, Source(split, name, len(documents), official.documents, "", None)


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
    for example in tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)):
        yield _plain(example)


def _plain(value: Any) -> Any:
    """Return what JSON would have: text, numbers, lists."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
