"""Documents of prepared data: tensorflow-datasets reads them, and their ids are those of the rows."""

import subprocess
import sys

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from stagjax.config import DataConfig  # noqa: E402
from stagjax.data.layout import list_shards  # noqa: E402
from stagjax.data.preparing import Settings, prepare  # noqa: E402
from stagjax.data.vocabulary import ByteVocabulary  # noqa: E402
from stagjax.tasks import documents, pretraining  # noqa: E402
from tests.data.pile import write_pile  # noqa: E402
from tests.data.test_preparing import Watcher, files  # noqa: E402


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The directory, and the documents of each shard."""
    root = tmp_path_factory.mktemp("prepared")
    corpus = write_pile(root / "in", shards=2)
    shards = list_shards(str(root / "in"), None)
    prepare(shards, Settings("bytes", 32, 0), root / "out", Watcher(), processes=2, documents=documents)
    return root / "out", corpus


def test_tensorflow_datasets_reads_every_document_as_it_stands(prepared):
    builder = tfds.builder_from_directory(prepared[0] / "documents")
    names = {"train": ("train/00.jsonl.zst", "train/01.jsonl.zst"), "validation": ("val.jsonl.zst",),
             "test": ("test.jsonl.zst",)}  # fmt: skip
    assert builder.info.splits.keys() == names.keys()
    for split, shards in names.items():
        found = [{key: value.decode() for key, value in example.items()} for example in builder.as_data_source(split)]
        assert found == [
            {"text": text, "name": f"{shard}#{line}", "subset": subset}
            for shard in shards
            for line, (text, subset) in enumerate(prepared[1][shard], 1)
        ]


def test_other_processes_write_the_same_bytes(prepared, tmp_path):
    shards = list_shards(str(prepared[0].parent / "in"), None)
    prepare(shards, Settings("bytes", 32, 0), tmp_path, Watcher(), processes=1, documents=documents)
    found, wanted = files(tmp_path), files(prepared[0])
    assert found.keys() == wanted.keys() and any(name.startswith("documents/") for name in found)
    assert [name for name in found if found[name] != wanted[name]] == []


def test_the_task_yields_the_ids_of_rows_and_documents(prepared):
    config = DataConfig("prepared", str(prepared[0]), "prepared", 32)
    task = pretraining.register("stagjax_test_prepared", config)
    builder = tfds.builder_from_directory(prepared[0] / "documents")
    for split in ("train", "validation"):
        dataset = task.get_dataset(split=split, sequence_length=None, shuffle=False).as_numpy_iterator()
        found = [example["targets"].tolist() for example in dataset]
        texts = [example["text"].decode() for example in builder.as_data_source(split)]
        wanted = [np.append(ByteVocabulary().encode(text), 2).tolist() for text in texts]
        # Validation rows hold one subset each, so that documents end there in another order.
        assert found == wanted if split == "train" else sorted(found) == sorted(wanted)


def test_writing_and_reading_documents_loads_no_tensorflow(prepared):
    code = (
        "import sys, pathlib, tempfile, tensorflow_datasets as tfds\n"
        "from stagjax.tasks import documents\n"
        "from stagjax.data.shards import Document\n"
        "root = pathlib.Path(tempfile.mkdtemp())\n"
        "path = root / 'documents-train.array_record-00000-of-00001'\n"
        "writer = documents.open_writer(path)\n"
        "writer.write(Document('a', 'text'))\n"
        "writer.close()\n"
        "documents.describe(root, {'train': [(1, path.stat().st_size)], 'test': [(0, 0)]})\n"
        "print(len(tfds.builder_from_directory(root).as_data_source('train')), 'tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "False"]
