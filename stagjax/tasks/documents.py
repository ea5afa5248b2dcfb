"""The documents of prepared data as a tensorflow-datasets data set in ArrayRecord files; TensorFlow is not loaded.

builder = tfds.builder_from_directory("pile_1280/documents")
builder.as_data_source("train")[0]    # {"text": b"...", "name": b"train/00.jsonl.zst#1", "subset": b"Github"}
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from stagjax.data.shards import Document

NAME = "documents"
_DESCRIPTION = """\
Documents prepared by stagjax: the text as it stands in the source, the document's name (file and line), and the subset
of the corpus that it belongs to.
"""


def open_writer(path: pathlib.Path) -> "DocumentWriter":
    """Return a writer of the documents of one shard and split."""
    return DocumentWriter(path)


def describe(directory: pathlib.Path, shards: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Write features.json and dataset_info.json, by which `tfds.builder_from_directory` reads the files.

    Args:
      directory: of the files "documents-SPLIT.array_record-00000-of-00004".
      shards: for each split the number of documents and the bytes of each of its files; what has none is left out.
    """
    splits = []
    for split, files in shards.items():
        if sum(number for number, _ in files):
            template = tfds.core.ShardedFileTemplate(
                dataset_name=NAME, data_dir=directory, split=split, filetype_suffix="array_record"
            )
            lengths, sizes = zip(*files, strict=True)
            splits.append(
                tfds.core.SplitInfo(
                    name=split, shard_lengths=list(lengths), num_bytes=sum(sizes), filename_template=template
                )
            )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(),
        split_infos=splits,
        description=_DESCRIPTION,
        check_data=False,  # It would load TensorFlow, and read a format that TensorFlow cannot.
    )


def features() -> tfds.features.FeaturesDict:
    """Return what an example consists of."""
    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("text", "name", "subset")})


class DocumentWriter:
    """Writes one file of examples, in the order in which they come."""

    def __init__(self, path: pathlib.Path):
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:3")

    def write(self, document: Document) -> None:
        """Append a document."""
        encoded, serializer = _codec()
        example = {"text": document.text, "name": document.name, "subset": document.subset}
        proto = serializer.get_tf_example(encoded.encode_example(example))
        # Otherwise the order of the fields is another one in every process, and so are the files.
        self._writer.write(proto.SerializeToString(deterministic=True))

    def close(self) -> None:
        """Write what is left; raise `RuntimeError` where that fails."""
        self._writer.close()


@functools.cache
def _codec() -> tuple[tfds.features.FeaturesDict, tfds.core.example_serializer.ExampleSerializer]:
    encoded = features()
    return encoded, tfds.core.example_serializer.ExampleSerializer(encoded.get_serialized_info())
