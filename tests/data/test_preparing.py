"""Preparing: the rows of every shard, once, whatever the number of processes and however often it is interrupted."""

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from stagjax.data.layout import list_shards
from stagjax.data.packing import concatenate, pack, unpack
from stagjax.data.prepared import open_prepared
from stagjax.data.preparing import Settings, prepare
from stagjax.data.vocabulary import load_vocabulary, train_sentencepiece
from stagjax.errors import RunFailed, UserError
from tests.data.pile import compress, documents, lines, write_pile
from tests.waits import HANG, eventually

BYTES = Settings("bytes", 32, 0, with_documents=False)


class Watcher:
    """Notes the shards that are done."""

    def __init__(self):
        self.done = []

    def begin(self, num_shards, num_done, total_bytes, done_bytes):
        self.begun = (num_shards, num_done, total_bytes, done_bytes)

    def advance(self, done_bytes):
        self.read = done_bytes

    def finished(self, receipt):
        self.done.append(receipt.name)


def run(pile, output, settings=BYTES, percent=None, **options):
    watcher = Watcher()
    outcome = prepare(list_shards(str(pile), percent), settings, output, watcher, **options)
    return outcome, watcher


def files(output):
    """Return the bytes of all files but the lock."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def ids(vocabulary, texts):
    return [np.append(vocabulary.encode(text), 2) for text, _ in texts]


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    root = tmp_path_factory.mktemp("pile")
    return root, write_pile(root)


@pytest.fixture(scope="module")
def whole(pile, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    run(pile[0], output)
    return output


def test_train_rows_are_those_of_each_shard_in_the_order_of_their_names(pile, tmp_path):
    root, corpus = pile
    texts = [text for name in corpus for text, _ in corpus[name]]
    train_sentencepiece(texts, 320, tmp_path / "v.model")
    outcome, watcher = run(root, tmp_path / "out", Settings(str(tmp_path / "v.model"), 32, 0, False), processes=2)
    assert sorted(watcher.done) == sorted(corpus) and watcher.begun[:2] == (5, 0)
    assert watcher.read <= watcher.begun[2] == sum((root / name).stat().st_size for name in corpus)
    vocabulary = load_vocabulary(str(tmp_path / "out" / "vocabulary.model"))
    wanted = concatenate([pack(ids(vocabulary, corpus[f"train/{index:02d}.jsonl.zst"]), 32) for index in range(3)])
    rows = open_prepared(str(tmp_path / "out")).rows("train")
    found = rows.select(slice(None))
    for name in ("targets_RT", "segment_ids_RT", "first_inputs_R"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    assert (rows.num_documents, rows.num_tokens) == (120, wanted.num_tokens)
    assert outcome.num_tokens == sum(len(row) for name in corpus for row in ids(vocabulary, corpus[name]))


@pytest.mark.parametrize(("split", "name"), [("validation", "val.jsonl.zst"), ("test", "test.jsonl.zst")])
def test_rows_of_validation_and_test_hold_one_subset_each(pile, whole, split, name):
    prepared = open_prepared(str(whole))
    rows = prepared.rows(split).select(slice(None))
    vocabulary = load_vocabulary("bytes")
    assert prepared.subsets == ("Github", "Gutenberg (PG-19)", "Wikipedia (en)")
    for index, subset in enumerate(prepared.subsets):
        texts = [document for document in pile[1][name] if document[1] == subset]
        own = rows.select(rows.subsets_R == index)
        np.testing.assert_array_equal(own.targets_RT, pack(ids(vocabulary, texts), 32).targets_RT)
    assert sorted(tuple(document) for document, _ in unpack([rows])) == sorted(
        map(tuple, ids(vocabulary, pile[1][name]))
    )


def test_nothing_depends_on_the_number_of_processes(pile, whole, tmp_path):
    run(pile[0], tmp_path, processes=3)
    assert files(tmp_path) == files(whole)


def test_a_second_run_does_nothing_and_a_lost_file_is_made_anew(pile, whole, tmp_path):
    run(pile[0], tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    outcome, watcher = run(pile[0], tmp_path)
    assert outcome.num_new == 0 and watcher.done == [] and watcher.begun[1] == 5
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (tmp_path / "rows" / "train-00001.array_record").unlink()
    assert run(pile[0], tmp_path)[1].done == ["train/01.jsonl.zst"]
    (tmp_path / "shards" / "val.jsonl.zst.json").write_text("{")
    assert run(pile[0], tmp_path)[1].done == ["val.jsonl.zst"]
    assert files(tmp_path) == files(whole)


def test_a_flat_directory_is_split_like_the_same_files_read_directly(tmp_path):
    from stagjax.config import DataConfig
    from stagjax.data.corpus import documents as read

    (tmp_path / "in").mkdir()
    for name in ("a.jsonl.zst", "b.jsonl.zst"):
        (tmp_path / "in" / name).write_bytes(compress(lines(documents(name, 50))))
    (tmp_path / "in" / "c.jsonl").write_bytes(lines(documents("c", 3)))
    run(tmp_path / "in", tmp_path / "out", Settings("bytes", 32, 10, False), percent=10)
    for split in ("train", "validation"):
        direct = read(DataConfig("jsonl", str(tmp_path / "in"), "bytes", 32, 10), split)
        found = read(DataConfig("prepared", str(tmp_path / "out"), "prepared", 32), split)
        direct, found = (sorted((document.text, tuple(document.ids)) for document in part) for part in (direct, found))
        assert found == direct and len(found) > 5


def test_a_bucket_gives_what_a_directory_gives(bucket, whole, tmp_path):
    write_pile(tmp_path / "in")
    run("gs://pile/in", tmp_path / "out", processes=2)
    assert files(tmp_path / "out") == files(whole)


def test_other_sources_and_settings_are_refused(pile, whole, tmp_path):
    before = files(whole)
    for change, message in (
        (dict(settings=Settings("bytes", 64, 0, False)), "row_length: 32 -> 64"),
        (dict(settings=Settings("bytes", 32, 0, True)), "documents: False -> True"),
    ):
        with pytest.raises(UserError, match=f"was made from other sources or settings: {message}; give a new"):
            run(pile[0], whole, **change)
    write_pile(tmp_path / "more", shards=4)
    with pytest.raises(UserError, match=r"train/03.jsonl.zst: none -> train"):
        run(tmp_path / "more", whole)
    write_pile(tmp_path / "other", number=39)
    with pytest.raises(UserError, match=r"was made from another test.jsonl.zst, of [\d,]+ bytes"):
        run(tmp_path / "other", whole)
    assert files(whole) == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not empty and was not made by stagjax data prepare"):
        run(pile[0], tmp_path / "foreign")


def damaged(root, name, change):
    data = (root / name).read_bytes()
    (root / name).write_bytes(change(data))
    return data


def test_a_broken_shard_stops_the_run_until_it_is_repaired(whole, tmp_path):
    write_pile(tmp_path / "in")
    intact = damaged(tmp_path / "in", "train/01.jsonl.zst", lambda data: data[: len(data) // 2])
    with pytest.raises(RunFailed) as error:
        run(tmp_path / "in", tmp_path / "out")
    assert "of the input is broken, above --max-broken=0.001 (truncated zstd: 1, the first train/01.jsonl.zst)" in str(
        error.value
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["faults"]["truncated zstd"]["first"][0]["where"] == "train/01.jsonl.zst"
    # All of one of five shards of about one size: half of a zstd block holds nothing.
    assert report["broken_share"] == report["lost_bytes"] == pytest.approx(0.2, abs=0.04)
    with pytest.raises(UserError, match="is not complete"):
        open_prepared(str(tmp_path / "out"))
    (tmp_path / "in" / "train/01.jsonl.zst").write_bytes(intact)
    assert run(tmp_path / "in", tmp_path / "out")[1].done == ["train/01.jsonl.zst"]
    assert files(tmp_path / "out")["prepared.json"] == files(whole)["prepared.json"]


@pytest.mark.parametrize("coding", ["zstd", "gzip", "plain"])
@pytest.mark.parametrize("kept", [100, 3000])
def test_a_shard_of_four_that_is_cut_short_is_about_a_quarter(tmp_path, coding, kept):
    (tmp_path / "in").mkdir()
    suffix, code = {"zstd": (".zst", compress), "gzip": (".gz", gzip.compress), "plain": ("", bytes)}[coding]
    for seed in range(4):
        data = code(lines(documents(seed, 60)))
        (tmp_path / "in" / f"{seed}.jsonl{suffix}").write_bytes(data[:kept] if seed == 2 else data)
    with pytest.raises(RunFailed, match=r"of the input is broken, above .*\(truncated (zstd|gzip|file): 1"):
        run(tmp_path / "in", tmp_path / "out", Settings("bytes", 32, 10, False), percent=10)
    share = json.loads((tmp_path / "out" / "report.json").read_text())["lost_bytes"]
    assert share == pytest.approx(0.25, abs=0.05)


def test_a_split_that_is_lost_is_not_hidden_by_the_size_of_the_others(tmp_path):
    write_pile(tmp_path / "in", shards=1, number=60)
    (tmp_path / "in" / "val.jsonl.zst").write_bytes(compress(lines(documents(3, 1)))[:40])
    with pytest.raises(RunFailed, match=r"100.000% of validation is lost, above --max-broken=0.02 \(truncated zstd: 1"):
        run(tmp_path / "in", tmp_path / "out", max_broken=0.02)


def test_receipts_of_an_earlier_version_are_read(pile, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    for file in (tmp_path / "out" / "shards").iterdir():
        tree = json.loads(file.read_text())
        del tree["content_bytes"], tree["lost_share"]
        file.write_text(json.dumps(tree | {"expected_bytes": tree["size"], "lost_bytes": 0}))
    assert run(pile[0], tmp_path / "out")[0].num_new == 0
    prepared = json.loads((tmp_path / "out" / "prepared.json").read_text())
    file = tmp_path / "out" / "shards" / "val.jsonl.zst.json"
    tree = json.loads(file.read_text()) | {"expected_bytes": 100, "lost_bytes": 100}  # Cut to a hundred bytes.
    prepared["receipts"][-1] = tree
    file.write_text(json.dumps(tree))
    (tmp_path / "out" / "prepared.json").write_text(json.dumps(prepared))
    assert open_prepared(str(tmp_path / "out")).rows("validation").num_rows
    with pytest.raises(RunFailed, match="of the input is broken, above"):
        run(pile[0], tmp_path / "out")


def test_broken_lines_are_a_share_of_all_lines(tmp_path):
    write_pile(tmp_path / "in", number=40)
    for name in ("train/00.jsonl.zst", "val.jsonl.zst"):
        text = lines(documents(name, 38)) + b'{"text": ""}\n{oops\n'
        (tmp_path / "in" / name).write_bytes(compress(text))
    with pytest.raises(RunFailed, match=r"2\.000% of the input is broken.*empty document: 2, the first train/00"):
        run(tmp_path / "in", tmp_path / "out", max_broken=0.0199)
    outcome, watcher = run(tmp_path / "in", tmp_path / "out", max_broken=0.02)
    assert outcome.num_new == 0 and outcome.broken.faults.counts == {"empty document": 2, "invalid JSON": 2}
    assert [fault.where for fault in outcome.broken.faults.first["invalid JSON"]] == [
        "train/00.jsonl.zst:40",
        "val.jsonl.zst:40",
    ]
    assert sum(receipt.lines - receipt.broken for receipt in outcome.receipts) == 196


def test_files_of_something_else_are_given_up_early(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("not json\n" * 5000)
    with pytest.raises(RunFailed, match="a.jsonl: none of its first 1,000 lines is a document.*invalid JSON"):
        run(tmp_path / "in", tmp_path / "out", Settings("bytes", 32, 1, False), percent=1)
    assert list((tmp_path / "out" / "rows").iterdir()) == []


def test_expected_hashes_are_compared(pile, whole, tmp_path):
    hashes = {name: hashlib.sha256((pile[0] / name).read_bytes()).hexdigest() for name in pile[1]}
    report = json.loads((whole / "report.json").read_text())
    assert {name: source["sha256"] for name, source in report["sources"].items()} == hashes
    run(pile[0], tmp_path, expected_hashes=hashes)
    hashes["train/02.jsonl.zst"] = "0" * 64
    with pytest.raises(RunFailed, match=f"train/02.jsonl.zst has sha256 [0-9a-f]*, not {'0' * 64} as --sha256 says"):
        run(pile[0], tmp_path / "out", expected_hashes=hashes)
    with pytest.raises(UserError, match="was made from another train/02.jsonl.zst"):
        run(pile[0], tmp_path, expected_hashes=hashes)


def test_a_shard_that_cannot_be_read_is_named(pile, tmp_path):
    shards = [shard._replace(path=shard.path + ".gone") for shard in list_shards(str(pile[0]), None)]
    with pytest.raises(RunFailed, match=r"\.jsonl\.zst\.gone cannot be read \(No such file or directory\)"):
        prepare(shards, BYTES, tmp_path, Watcher())


def command(pile, output, *options):
    return [sys.executable, "-m", "stagjax", "data", "prepare", f"--path={pile}", f"--output={output}",
            "--vocabulary=bytes", "--row-length=32", "--rows-only", *options]  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A corpus that takes some seconds, and what becomes of it."""
    root = tmp_path_factory.mktemp("large")
    write_pile(root / "in", shards=3, number=2000)
    subprocess.run(command(root / "in", root / "out", "--processes=2"), check=True, capture_output=True)
    return root / "in", root / "out"


def alive(pids):
    return [pid for pid in pids if pathlib.Path(f"/proc/{pid}/stat").exists()
            and pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]  # fmt: skip


def children(pid):
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_killed_in_the_middle_it_goes_on_and_leaves_no_process(large, tmp_path, number, status):
    pile, whole = large
    process = subprocess.Popen(
        command(pile, tmp_path, "--processes=2"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    in_the_middle = lambda: list(tmp_path.glob("shards/*.json")) and list(tmp_path.glob("rows/*.partial"))
    assert eventually(in_the_middle)
    workers = children(process.pid)
    # As a terminal does it, or as somebody kills the one process they see.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == status and "Traceback" not in err, err
    if number == signal.SIGINT:
        assert "stagjax: interrupted; the same command goes on with the shards that are not done" in err
    assert len(workers) >= 2 and eventually(lambda: not alive(workers))
    assert not (tmp_path / "prepared.json").exists()
    again = subprocess.run(command(pile, tmp_path), check=True, capture_output=True, text=True)
    assert "of 5 shards are there already" in again.stderr and "prepared 5 of" not in again.stdout
    assert files(tmp_path) == files(whole)


def test_a_full_disk_is_one_line_and_loses_nothing(large, tmp_path):
    pile, whole = large
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *command(pile, tmp_path)]  # Blocks of 1024 bytes.
    result = subprocess.run(limited, capture_output=True, text=True)
    assert result.returncode == 3 and "Traceback" not in result.stderr, result.stderr
    assert f"stagjax: cannot write to {tmp_path} (" in result.stderr
    assert "free some space and start again" in result.stderr
    subprocess.run(command(pile, tmp_path), check=True, capture_output=True)
    assert files(tmp_path) == files(whole)


@contextlib.contextmanager
def at_most(num_bytes):
    """Let no file grow beyond so many bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_any_file_is_one_line_that_names_it(pile, whole, tmp_path):
    with at_most(0), pytest.raises(RunFailed, match=r"cannot write to .*\(File too large: .*/plan.json\); free some"):
        run(pile[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    train_sentencepiece(["a b c"] * 99 + [str(n) for n in range(999)], 320, tmp_path / "v.model")
    pieces = Settings(str(tmp_path / "v.model"), 32, 0, False)
    for _ in range(2):
        # The plan fits, the vocabulary does not.
        with at_most(1000), pytest.raises(RunFailed, match=r"File too large: .*/vocabulary.model.*\); free some space"):
            run(pile[0], tmp_path / "out", pieces)
        assert not (tmp_path / "out" / "vocabulary.model").exists()
    shutil.copytree(whole, tmp_path / "late")
    (tmp_path / "late" / "prepared.json").unlink()
    with at_most(1000), pytest.raises(RunFailed, match=r"File too large: .*/report.json\); free some space"):
        run(pile[0], tmp_path / "late")
    report = (tmp_path / "late" / "report.json").stat().st_size
    with at_most(report), pytest.raises(RunFailed, match=r"File too large: .*/prepared.json\); free some space"):
        run(pile[0], tmp_path / "late")
    assert not list((tmp_path / "late").glob("*.partial")) and not (tmp_path / "late" / "prepared.json").exists()
    assert run(pile[0], tmp_path / "late")[0].num_new == 0 and files(tmp_path / "late") == files(whole)


def test_two_at_a_time_are_refused(pile, whole):
    import fcntl

    with open(whole / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another process"):
            run(pile[0], whole)
