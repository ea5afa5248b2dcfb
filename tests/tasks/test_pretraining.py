"""The pretraining task: what seqio yields is what training packs."""

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from stagjax.config import DataConfig  # noqa: E402
from stagjax.data.corpus import documents  # noqa: E402
from stagjax.data.vocabulary import train_sentencepiece  # noqa: E402
from stagjax.tasks import pretraining  # noqa: E402
from stagjax.tasks.registry import get_task  # noqa: E402


def examples(task, split):
    return task.get_dataset(split=split, sequence_length=None, shuffle=False).as_numpy_iterator()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_whole_corpus_comes_with_the_ids_of_training(split):
    found = list(examples(get_task("stagjax_stdlib"), split))
    wanted = list(documents(DataConfig(), split))
    assert len(found) == len(wanted) >= 20
    for example, document in zip(found, wanted, strict=True):
        assert example.keys() == {"targets"} and example["targets"].dtype == np.int32
        np.testing.assert_array_equal(example["targets"], document.ids, err_msg=document.name)


def test_pieces_come_with_the_ids_of_training(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"a text  of\n\tits own, number {number}\u2581\n" * 9)
    train_sentencepiece([path.read_text() for path in tmp_path.glob("*.txt")], 300, tmp_path / "v.model")
    config = DataConfig("text", str(tmp_path), str(tmp_path / "v.model"))
    task = pretraining.register("stagjax_test_pieces", config)
    found = [example["targets"].tolist() for example in examples(task, "train")]
    assert found == [document.ids.tolist() for document in documents(config, "train")] and len(found) > 20


def test_trimming_is_refused():
    with pytest.raises(ValueError, match=r"sequence_length=\{'targets': 64\} would drop the ends of documents"):
        get_task("stagjax_stdlib").get_dataset(split="train", sequence_length={"targets": 64}, shuffle=False)


def test_a_seed_shuffles_and_shards_are_parts(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"number {number}\n")
    task = pretraining.register("stagjax_test_seeds", DataConfig("text", str(tmp_path)))
    get = lambda **options: [
        example["targets"].tolist()
        for example in task.get_dataset(split="train", sequence_length=None, **options).as_numpy_iterator()
    ]
    plain = get(shuffle=False, seed=3)
    assert get(shuffle=True, seed=3) == get(shuffle=True, seed=3) != plain
    assert sorted(get(shuffle=True, seed=3, num_epochs=2)) == sorted(plain * 2)
    assert get(shuffle=False, seed=3, shard_info=seqio.ShardInfo(1, 2)) == plain[1::2]
    with pytest.raises(ValueError, match="unknown split of stagjax_test_seeds 'test'"):
        task.get_dataset(split="test", sequence_length=None, seed=3)
