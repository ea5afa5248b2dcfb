"""Layouts: which file belongs to which split, here and in a bucket; what cannot be listed is one clear line."""

import hashlib
import time

import pytest

from stagjax.data.layout import Shard, list_shards, open_shard, read_expected_hashes
from stagjax.errors import RunFailed, UserError
from tests.data.pile import write_pile


def splits(root, percent=None):
    return {shard.name: shard.split for shard in list_shards(str(root), percent)}


def test_the_piles_layout(tmp_path):
    write_pile(tmp_path, shards=2, number=1)
    for name in ("SHA256SUMS.txt", "train/notes.md", "other.jsonl"):
        (tmp_path / name).write_text("x")
    wanted = {"test.jsonl.zst": "test", "train/00.jsonl.zst": "train", "train/01.jsonl.zst": "train",
              "val.jsonl.zst": "validation"}  # fmt: skip
    assert splits(tmp_path) == wanted and list(splits(tmp_path)) == sorted(wanted)
    shard = list_shards(str(tmp_path), None)[1]
    assert shard == Shard(
        "train/00.jsonl.zst", f"{tmp_path}/train/00.jsonl.zst", (tmp_path / shard.name).stat().st_size, "train"
    )
    with pytest.raises(UserError, match="--validation-percent=3 holds out training documents, but --path=.* has a val"):
        list_shards(str(tmp_path), 3)
    (tmp_path / "val.jsonl.zst").unlink()
    assert splits(tmp_path, 1) == {name: None if split == "train" else split for name, split in wanted.items()
                                   if split != "validation"}  # fmt: skip


def test_a_flat_directory_is_split_by_the_names_of_documents(tmp_path):
    for name in ("b.jsonl", "a.jsonl.zst", "val.jsonl", "no.json"):
        (tmp_path / name).write_text("x")
    assert splits(tmp_path, 5) == {"a.jsonl.zst": None, "b.jsonl": None, "val.jsonl": None}
    with pytest.raises(UserError, match="has no validation file .*say --validation-percent=1"):
        list_shards(str(tmp_path), None)


def test_what_is_not_read_is_named_here_and_in_a_bucket(bucket, tmp_path):
    write_pile(tmp_path, shards=1, number=1)
    for name in ("SUMS", "._val.jsonl", "train/._00.jsonl.zst", "train/notes.md", "other.jsonl", "more/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    wanted = (
        "not read: SUMS, more/, other.jsonl, train/notes.md; what is read ends in .jsonl, .jsonl.zst, .jsonl.zstd, "
    )
    for path in (str(tmp_path), "gs://pile/"):
        notes = []
        list_shards(path, None, note=notes.append)
        assert [note.startswith(wanted) for note in notes] == [True]
    (tmp_path / "more" / "a.json.gz").write_text("x")
    (tmp_path / "more" / "x.jsonl").unlink()
    with pytest.raises(UserError, match=r"nor in train/ \(not read: a\.json\.gz; what is read ends in "):
        list_shards(f"{tmp_path}/more", 1)


def test_what_cannot_be_listed_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jsonl").touch()
    for path, message in (
        ("none", "--path=.*none does not exist"),
        ("file", "--path=.*file is not a directory"),
        (".", "has no file that ends in .jsonl or .jsonl.zst"),
        ("empty", "a.jsonl is empty; copy it again"),
    ):
        with pytest.raises(UserError, match=message):
            list_shards(str(tmp_path / path), 1)
    with pytest.raises(UserError, match="--path=nosuch://x: .*use a directory or gs://"):
        list_shards("nosuch://x", 1)


def test_expected_hashes_are_found_by_the_shards_names(tmp_path):
    one, two = (hashlib.sha256(name).hexdigest() for name in (b"1", b"2"))
    file = tmp_path / "sums"
    file.write_text(f"{one}  ./train/00.jsonl.zst\n{two.upper()} *pile/val.jsonl.zst\n\n")
    names = ["train/00.jsonl.zst", "val.jsonl.zst"]
    assert read_expected_hashes(str(file), names) == dict(zip(names, (one, two), strict=True))
    for wrong, message in (
        (["train/01.jsonl.zst"], "has 0 hashes for train/01.jsonl.zst"),
        (["al.jsonl.zst"], "has 0 hashes for al.jsonl.zst"),
    ):
        with pytest.raises(UserError, match=message):
            read_expected_hashes(str(file), wrong)
    file.write_text("no hash\n")
    with pytest.raises(UserError, match="line 1: not 64 hexadecimal digits"):
        read_expected_hashes(str(file), names)
    with pytest.raises(UserError, match="cannot be read"):
        read_expected_hashes(str(tmp_path / "none"), names)


def test_a_bucket_is_listed_and_read_like_a_directory(bucket, tmp_path):
    write_pile(tmp_path / "sub", shards=2)
    found = list_shards("gs://pile/sub/", None)
    here = list_shards(str(tmp_path / "sub"), None)
    assert [(shard.name, shard.size, shard.split) for shard in found] == [
        (shard.name, shard.size, shard.split) for shard in here
    ]
    for remote, local in zip(found, here, strict=True):
        with open_shard(remote.path) as file:
            data = b"".join(iter(lambda file=file: file.read(1000), b""))
        assert remote.path == f"gs://pile/sub/{remote.name}"
        with open(local.path, "rb") as file:
            assert data == file.read()


def test_a_bucket_that_is_not_there_or_does_not_answer_is_one_line(bucket, tmp_path, monkeypatch):
    write_pile(tmp_path, shards=1)
    with pytest.raises(UserError, match=r"--path=gs://pile/none (does not exist|has no file)"):
        list_shards("gs://pile/none", None)
    (shard, *_) = list_shards("gs://pile", None)
    bucket.silent = True
    begun = time.monotonic()
    with (
        pytest.raises(RunFailed, match=r"gs://pile/test.jsonl.zst gives no answer within 0.5 s"),
        open_shard(shard.path, 0.5) as file,
    ):
        file.read(10)
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"--path=gs://pile/other gives no answer within 0.5 s"):
        list_shards("gs://pile/other", None, 0.5)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    gcsfs.GCSFileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"--path=gs://pile (gives no answer|cannot be listed)"):
        list_shards("gs://pile", None, 2)
    assert time.monotonic() - begun < 8
