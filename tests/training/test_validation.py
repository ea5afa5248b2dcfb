"""Validation by subset: each subset's figures are those of its own documents."""

import math

import jax
import numpy as np
import pytest

from stagjax.config import Config, DataConfig, MeshConfig, TrainingConfig
from stagjax.data.loader import validation_batches
from stagjax.data.packing import concatenate, pack
from stagjax.data.vocabulary import ByteVocabulary
from stagjax.mesh import training_mesh
from stagjax.training.state import create_state
from stagjax.training.step import make_validation_step
from stagjax.training.validation import SubsetSums
from tests.data.pile import documents
from tests.variants import tiny


def test_sums_are_added_by_subset():
    sums = SubsetSums(("", "a", "b"))
    batch = {"nats": [1.0, 2.0, 4.0, 0.0], "tokens": [1.0, 2.0, 8.0, 0.0], "bytes": [3.0, 5.0, 7.0, 0.0]}
    for _ in range(2):
        sums.add({name: np.array(values, np.float32) for name, values in batch.items()}, np.array([1, 1, 0, 0]))
    assert sums.total() == {"loss": 14 / 22, "bits_per_byte": pytest.approx(14 / math.log(2) / 30)}
    assert sums.by_subset() == {
        "": {"loss": 0.5, "bits_per_byte": pytest.approx(8 / math.log(2) / 14)},
        "a": {"loss": 1.0, "bits_per_byte": pytest.approx(6 / math.log(2) / 16)},
    }
    assert set(sums.metrics()) == {
        f"validation/{name}" for part in ("", "/", "a/") for name in (f"{part}loss", f"{part}bits_per_byte")
    }
    assert sums.lines(7)[0].startswith("step 7: validation loss 0.6364, ") and len(sums.lines(7)) == 3


def test_documents_without_a_subset_share_no_name_with_any_other():
    sums = SubsetSums(("", "(no subset)", "a\n\x1b[2J", "unnamed"))
    each = {name: np.arange(1.0, 5.0) for name in ("tokens", "bytes")} | {"nats": np.array([1.0, 4.0, 9.0, 16.0])}
    sums.add(each, np.arange(4))
    assert [figures["loss"] for figures in sums.by_subset().values()] == [1.0, 2.0, 3.0, 4.0]
    assert len(sums.metrics()) == 2 + 8 and sums.metrics()["validation//loss"] == 1.0
    names = [line[2:].partition("  ")[0].rstrip() for line in sums.lines(1)[1:]]
    assert names == ["(no subset)", "'(no subset)'", "a\\n\\x1b[2J", "unnamed"]


def test_without_subsets_there_is_one_line():
    sums = SubsetSums(("",))
    sums.add({"nats": np.ones(2), "tokens": np.ones(2), "bytes": np.ones(2)}, np.zeros(2, np.int32))
    assert set(sums.metrics()) == {"validation/loss", "validation/bits_per_byte"} and len(sums.lines(1)) == 1


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_subset_has_the_figures_of_its_documents_alone(chunks):
    config = Config(
        tiny(vocab_size=259, num_stacks=1, layers_per_stack=1),
        DataConfig(row_length=20),
        TrainingConfig(global_batch=8, loss_chunks=chunks),
    )
    length, vocabulary = config.data.row_length, ByteVocabulary()
    texts = [text for text, _ in documents(1, 12)]
    groups = [texts[:7], texts[7:]]
    parts = [
        pack([np.append(vocabulary.encode(text), 2) for text in group], length, index)
        for index, group in enumerate(groups)
    ]
    params = create_state(config, training_mesh(MeshConfig(), jax.devices()[:1]))["params"]
    step = jax.jit(make_validation_step(config))
    lengths_V = np.asarray(vocabulary.byte_lengths, np.float32)

    def figures(rows, batch_size):
        sums = SubsetSums(("a", "b"))
        for batch in validation_batches(rows, batch_size):
            subsets_B = batch.pop("subsets")
            sums.add(step(params, batch, lengths_V), subsets_B)
        return sums.by_subset(), sums.total()

    together, total = figures(concatenate(parts), 8)
    for index, name in enumerate("ab"):
        alone, same = figures(parts[index], 8)
        assert together[name] == pytest.approx(alone[name], rel=1e-5) and alone[name] == same
        num_bytes = sum(len(text.encode()) for text in groups[index])
        tokens = num_bytes + len(groups[index])
        # Nats over all targets, the ends of documents included, over the bytes of the text alone.
        assert together[name]["bits_per_byte"] == pytest.approx(
            together[name]["loss"] * tokens / math.log(2) / num_bytes, rel=1e-6
        )
    assert abs(together["a"]["loss"] - together["b"]["loss"]) > 1e-4 and total["loss"] > 1
