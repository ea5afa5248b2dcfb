"""Sources: every document once, in one order, as it stands; whatever cannot be read is named."""

import gzip
import json
import os
import sysconfig

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stagjax.config import DataConfig
from stagjax.data.layout import list_shards
from stagjax.data.sources import Document, is_drawn, open_source, split_of, unread_lines
from stagjax.errors import UserError


def read(source, **fields):
    source = open_source(DataConfig(source=source, **fields))
    return list(source.documents()), source


def jsonl(*texts):
    return "".join(json.dumps({"text": text, "meta": 1}) + "\n" for text in texts).encode()


@pytest.fixture(scope="module")
def stdlib():
    return read("stdlib")


def test_stdlib_is_twelve_megabytes_without_tests_and_packages(stdlib):
    documents, source = stdlib
    names = [document.name for document in documents]
    assert 8e6 < sum(len(document.text.encode()) for document in documents) < 20e6
    assert {"os.py", "json/decoder.py", "pydoc_data/topics/assert"} <= set(names)
    assert len(set(names)) == len(names)
    for part in ("site-packages", "dist-packages", "test", "tests", "idle_test"):
        assert not any(part in name.split("/")[:-1] for name in names), part
    assert source.skipped == []


def test_stdlib_documents_are_the_files_as_they_stand(stdlib):
    documents = {document.name: document.text for document in stdlib[0]}
    for name in ("os.py", "encodings/__init__.py"):
        with open(os.path.join(sysconfig.get_path("stdlib"), name), "rb") as file:
            assert documents[name].encode() == file.read()


def test_stdlib_has_the_topics_once(stdlib):
    # As a module and as topics, training would see the texts of validation.
    documents = {document.name: document.text for document in stdlib[0]}
    assert "pydoc_data/topics.py" not in documents
    topic = documents["pydoc_data/topics/assert"]
    assert sum(topic in text for text in documents.values()) == 1
    assert not any(topic.encode("unicode_escape").decode()[:200] in text for text in documents.values())


def test_stdlib_comes_in_one_order(stdlib):
    assert [document.name for document in read("stdlib")[0]] == [document.name for document in stdlib[0]]
    files = [name for name, _ in stdlib[1].files]
    assert files == sorted(files) and stdlib[1].unread == []


def test_text_reads_every_file_below_as_it_stands_but_for_a_byte_order_mark(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "deep.py").write_bytes("\ufeffx\r\n\rü\u2028".encode())
    (tmp_path / "b" / "z.md").write_text("")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "no.rst").write_text("no")
    documents, source = read("text", path=str(tmp_path))
    assert documents == [
        Document("a.txt", "a"),
        Document("b.txt", "b"),
        Document("b/c/deep.py", "x\r\n\rü\u2028"),
        Document("b/z.md", ""),
    ]
    assert source.skipped == [] and source.unread == ["no.rst"]


def test_what_lies_beside_is_named_in_one_short_line_and_hidden_files_are_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    for name in ("._a.jsonl", ".b.jsonl.gz", ".DS_Store", "c.jsonl.xz", "d\n.json", *(f"{n}" * 80 for n in range(5))):
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "e.jsonl").write_text("x")
    (tmp_path / "f").symlink_to(tmp_path / ".cache")
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(b'{"text": "g"}\n'))
    documents, source = read("jsonl", path=str(tmp_path))
    assert [document.name for document in documents] == ["a.jsonl#1", "g.jsonl.gz#1"] and source.skipped == []
    (line,) = unread_lines(source.unread, source.suffixes)
    assert sorted(source.unread)[5:] == ["c.jsonl.xz", "d\n.json", "f"] and len(line) < 450
    assert line.startswith("not read: " + "0" * 57 + "..., 1") and " and 3 more; what is read ends in .jsonl, " in line
    assert unread_lines(["d\n.json", "c"], (".md",)) == ["not read: c, d\\n.json; what is read ends in .md"]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "h.jsonl").write_text('{"text": "h"}\n')
    assert {"a.jsonl", "g.jsonl.gz"} < set(read("jsonl", path=str(tmp_path))[1].unread)


def test_one_file_in_two_compressions_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    with pytest.raises(UserError, match="has both a.jsonl and a.jsonl.gz, which would be read as different texts"):
        read("jsonl", path=str(tmp_path))
    with pytest.raises(UserError, match="--path=.* has both a.jsonl and a.jsonl.gz"):
        list_shards(str(tmp_path), 1)


def test_text_reports_what_it_cannot_read(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "dangling.txt").symlink_to("nowhere")
    documents, source = read("text", path=str(tmp_path))
    wanted = ["dangling.txt: No such file or directory", "latin.txt: not UTF-8 at byte 3"]
    assert [document.name for document in documents] == ["good.txt"]
    assert source.skipped == wanted
    assert len(list(source.documents())) == 1 and source.skipped == wanted  # a second walk does not add to the first


def test_file_names_that_are_not_utf8_stay_printable(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt"), "w") as file:
        file.write("x")
    (document,), _ = read("text", path=str(tmp_path))
    assert document == Document("caf\\xe9.txt", "x")
    assert split_of(document.name, 5) in ("train", "validation")


def test_jsonl_reads_lines_plain_and_compressed(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "plain.jsonl").write_bytes(jsonl("one", "two\nlines", "") + b"\n" + jsonl("last")[:-1])
    frames = [zstandard.compress(part) for part in (jsonl("a", "b"), jsonl("ü" * 3_000_000), jsonl("c")[:-1])]
    (tmp_path / "train" / "00.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "other.json").write_bytes(jsonl("no"))
    documents, source = read("jsonl", path=str(tmp_path))
    assert [document.name for document in documents] == [
        *(f"plain.jsonl#{line}" for line in (1, 2, 5)),
        *(f"train/00.jsonl.zst#{line}" for line in (1, 2, 3, 4)),
    ]
    assert [document.text for document in documents] == [
        "one",
        "two\nlines",
        "last",
        "a",
        "b",
        "ü" * 3_000_000,
        "c",
    ]
    assert source.skipped == ['plain.jsonl:3: "text" is empty']
    assert {document.subset for document in documents} == {""}


def test_jsonl_keeps_the_subset_of_the_pile(tmp_path):
    metas = ({"pile_set_name": "Github"}, {"pile_set_name": 5}, {}, "Github")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "a", "meta": meta}) + "\n" for meta in metas))
    assert [document.subset for document in read("jsonl", path=str(tmp_path))[0]] == ["Github", "", "", ""]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", r"not JSON \(.*\)"),
        (b'{"text": "caf\xe9"}', "not UTF-8 at byte 13"),
        (b'{"text": 5}', 'not an object with a string "text"'),
        (b'{"txt": "a"}', 'not an object with a string "text"'),
        (b'["text"]', 'not an object with a string "text"'),
        (b'{"text": "\\ud800"}', '"text" has half of a surrogate pair, which is not Unicode text'),
        (b"[" * 100_000, r"not JSON \(.*recursion.*\)"),
    ],
)
def test_jsonl_reports_bad_lines_and_goes_on(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(jsonl("good") + line + b"\n" + jsonl("better"))
    documents, source = read("jsonl", path=str(tmp_path))
    assert [document.text for document in documents] == ["good", "better"]
    (skipped,) = source.skipped
    name, _, text = skipped.partition(": ")
    assert name == "a.jsonl:2"
    pytest.raises(UserError, _raise, text).match(f"^{reason}$")


def _raise(text):
    raise UserError(text)


@pytest.mark.parametrize("end", [12, 30_000])
def test_jsonl_reports_compressed_files_that_end_early(tmp_path, end):
    # zstandard's own reader takes both for whole files, and the first for an empty one.
    noise = [os.urandom(20_000).hex() for _ in range(20)]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(jsonl(*noise))[:end])
    (tmp_path / "b.jsonl").write_bytes(jsonl("b"))
    documents, source = read("jsonl", path=str(tmp_path))
    assert documents[-1] == Document("b.jsonl#1", "b") and len(documents) < 21
    (skipped,) = source.skipped
    assert skipped == f"a.jsonl.zst: the zstd frame is cut off after line {len(documents) - 1}; the rest is lost"


def test_jsonl_reports_files_that_are_not_zstd(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(jsonl("a"))
    _, source = read("jsonl", path=str(tmp_path))
    (skipped,) = source.skipped
    assert skipped.startswith("a.jsonl.zst: damaged zstd (") and skipped.endswith(") after line 0; the rest is lost")


def test_bad_sources_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for fields, message in [
        (dict(source="jsonl"), "data.path is not set, but data.source='jsonl' reads a directory; "
                               "add --config.data.path=DIR"),
        (dict(source="text", path=f"{tmp_path}/none"), f"data.path='{tmp_path}/none' does not exist; "
                                                       "data.source='text' reads a directory"),
        (dict(source="text", path=f"{tmp_path}/file"), f"data.path='{tmp_path}/file' is not a directory; "
                                                       "data.source='text' reads a directory"),
        (dict(source="jsonl", path=str(tmp_path)), f"empty corpus: data.path='{tmp_path}' has no file that ends in "
                                                   ".jsonl, .jsonl.zst, .jsonl.zstd, .jsonl.gz, which is what "
                                                   "data.source='jsonl' reads; correct one of the two"),
        (dict(source="stdlib", path="x"), "data.path='x' is set, but data.source='stdlib' reads the standard library "
                                          "of Python; leave it unset, or use data.source='text' or 'jsonl'"),
        (dict(source="jsnl", path="x"), "unknown data.source 'jsnl'; did you mean 'jsonl'? known: jsonl, stdlib, text"),
    ]:  # fmt: skip
        with pytest.raises(UserError) as error:
            open_source(DataConfig(**fields))
        assert str(error.value) == message


def test_split_is_pinned():
    # A resumed run depends on these.
    assert [name for name in map(str, range(40)) if split_of(name, 5) == "validation"] == ["9", "17", "28"]
    assert split_of("os.py", 5) == "train"


@pytest.mark.parametrize("percent", [1, 5, 50])
def test_split_has_the_share_asked_for(percent):
    held_out = sum(split_of(f"file{number}.py", percent) == "validation" for number in range(20_000))
    assert abs(held_out / 200 - percent) < 1.5


@given(name=st.text(), percent=st.integers(1, 49))
def test_a_larger_share_contains_a_smaller(name, percent):
    assert split_of(name, percent) == "train" or split_of(name, percent + 1) == "validation"


@pytest.mark.parametrize("files", [["train/0", "train/1", "val", "test", "notes/x"], ["train/0", "test"], ["a", "val"]])
def test_in_the_piles_layout_files_are_splits(tmp_path, files):
    for name in files:
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f'{{"text": "{name} {number}"}}\n' for number in range(40)))
    source = open_source(DataConfig("jsonl", str(tmp_path)))
    found = {}
    for document in source.documents():
        found.setdefault(document.name.partition(".")[0], []).append(source.split_of(document, 20))
    if "val" in files and "train/0" in files:
        wanted = {
            "train/0": {"train"},
            "train/1": {"train"},
            "val": {"validation"},
            "test": {"test"},
            "notes/x": {"other"},
        }
        assert {name: set(splits) for name, splits in found.items()} == wanted
    elif "train/0" in files:
        assert set(found["train/0"]) == {"train", "validation"} and set(found["test"]) == {"test"}
    else:
        assert set(found["a"]) == set(found["val"]) == {"train", "validation"}, "a flat directory is one pool"


def test_a_drawn_share_is_of_that_size_and_has_nothing_to_do_with_the_split():
    names = [f"file{number}" for number in range(20_000)]
    drawn = [name for name in names if is_drawn(name, 0.1)]
    assert abs(len(drawn) - 2000) < 150 and all(is_drawn(name, 1.0) for name in names[:99])
    held_out = [name for name in drawn if split_of(name, 20) == "validation"]
    assert abs(len(held_out) - 400) < 80
