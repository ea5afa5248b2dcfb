"""Training from prepared data: figures for each subset, the vocabulary goes along, other data are refused."""

import json

import pytest

import stagjax
from stagjax.config import Config, DataConfig, TrainingConfig
from stagjax.data.layout import list_shards
from stagjax.data.preparing import Settings, prepare
from stagjax.data.vocabulary import train_sentencepiece
from stagjax.errors import UserError
from stagjax.reporting.metrics import read_metrics
from stagjax.training.loop import train
from tests.data.pile import write_pile
from tests.data.test_preparing import Watcher
from tests.variants import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps: its config, the directory of all that belongs to it, and how it ended."""
    root = tmp_path_factory.mktemp("run")
    corpus = write_pile(root / "in", shards=2, number=60)
    train_sentencepiece([text for name in corpus for text, _ in corpus[name]], 320, root / "v.model")
    prepare(list_shards(str(root / "in"), None), Settings(str(root / "v.model"), 32, 0, False), root / "out", Watcher())
    (root / "v.model").unlink()  # The copy in the directory serves.
    config = Config(
        tiny(vocab_size=320, num_stacks=1, layers_per_stack=1, max_length=32),
        DataConfig("prepared", str(root / "out"), "prepared", 32),
        TrainingConfig(steps=2, global_batch=8, warmup_steps=0, validate_every=2, checkpoint_every=2),
    )
    summary = train(config, root / "workdir")
    return config, root, summary


def test_validation_is_logged_for_each_subset(run):
    config, root, summary = run
    line = next(line for line in read_metrics(root / "workdir") if "validation/loss" in line)
    subsets = ("Github", "Gutenberg (PG-19)", "Wikipedia (en)")
    losses = [line[f"validation/{subset}/loss"] for subset in subsets]
    assert all(line[f"validation/{subset}/bits_per_byte"] > 0 for subset in subsets)
    assert min(losses) < line["validation/loss"] < max(losses) and len(set(losses)) == 3
    assert summary.validation == {name: line[f"validation/{name}"] for name in ("loss", "bits_per_byte")}


def test_the_vocabulary_is_in_the_workdir(run):
    config, root, _ = run
    assert (root / "workdir" / "vocabulary.model").read_bytes() == (root / "out" / "vocabulary.model").read_bytes()
    moved = root / "out.moved"
    (root / "out").rename(moved)
    try:
        assert stagjax.load(root / "workdir").vocabulary.size == 320
    finally:
        moved.rename(root / "out")


def test_a_run_refuses_data_it_was_not_started_on(run, tmp_path):
    config, root, _ = run
    tree = json.loads((root / "workdir" / "manifest.json").read_text())
    assert tree["source"] == "prepared" and tree["train_documents"] == 120
    write_pile(tmp_path / "in", shards=2, number=59)
    settings = Settings(str(root / "out" / "vocabulary.model"), 32, 0, False)
    prepare(list_shards(str(tmp_path / "in"), None), settings, tmp_path / "out", Watcher())
    (root / "out").rename(root / "kept")
    (tmp_path / "out").rename(root / "out")
    try:
        with pytest.raises(UserError, match=r"train_documents: 120 -> 118"):
            train(config, root / "workdir")
    finally:
        (root / "out").rename(tmp_path / "out")
        (root / "kept").rename(root / "out")
