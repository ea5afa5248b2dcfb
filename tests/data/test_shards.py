"""Shards: whatever is wrong with a file, what can be read is, and the rest is counted."""

import gzip
import hashlib
import io
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stagjax.data.faults import Faults
from stagjax.data.shards import ShardReader
from tests.data.pile import compress, documents, lines

TEXTS = documents(0, 60)


def read(data, name="train/00.jsonl.zst"):
    """Return the reader, walked to its end, its documents and its faults."""
    faults = Faults()
    reader = ShardReader(name, io.BytesIO(data), faults.add)
    found = [(document.text, document.subset) for document in reader.documents()]
    assert reader.sha256 == hashlib.sha256(data).hexdigest() and reader.content.num_bytes == len(data)
    return reader, found, faults


@pytest.mark.parametrize("frames", [1, 2, 7, 200])
def test_whole_shards_are_read_whole(frames):
    data = compress(lines(TEXTS), frames=frames)
    reader, found, faults = read(data)
    assert found == TEXTS and faults.counts == {}
    content = reader.content
    assert (content.lost_share, content.size, reader.num_lines) == (0, len(lines(TEXTS)), 60)
    assert 1 <= content.num_frames <= frames and content.num_unchecked == 0


def test_frames_without_a_checksum_are_counted():
    reader, found, _ = read(compress(lines(TEXTS[:30])) + compress(lines(TEXTS[30:]), checksum=False))
    assert found == TEXTS and (reader.content.num_frames, reader.content.num_unchecked) == (2, 1)


@pytest.mark.parametrize("chunk", [1, 5, 17, 19])
def test_it_does_not_matter_how_the_bytes_come(chunk, monkeypatch):
    monkeypatch.setattr("stagjax.data.shards._READ", chunk)
    data = compress(lines(TEXTS[:6]), frames=3) + zstandard.compress(b"")
    reader, found, faults = read(data)
    assert found == TEXTS[:6] and faults.counts == {} and reader.content.lost_share == 0
    reader, found, faults = read(data[:-3])
    assert found == TEXTS[:6] and faults.counts == {"truncated zstd": 1}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"{", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"text": "caf\xe9"}', "invalid UTF-8"),
        (b'{"txt": "a"}', "missing text"),
        (b'["text"]', "missing text"),
        (b'{"text": 5}', "text not a string"),
        (b'{"text": null}', "text not a string"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"text": ""}', "empty document"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "invalid JSON"),
    ],
)
def test_a_line_without_a_text_is_counted_by_kind_and_place(line, kind):
    data = lines(TEXTS[:2]) + b"\n" + line + b"\n" + lines(TEXTS[2:4])
    for name, content in (("a.jsonl", data), ("a.jsonl.zst", compress(data))):
        reader, found, faults = read(content, name)
        assert found == TEXTS[:4]
        assert faults.counts == {kind: 1} and faults.first[kind][0].where == f"{name}:4"
        assert (reader.num_lines, reader.num_broken, reader.content.lost_share) == (5, 1, 0)


def test_a_subset_is_kept_where_it_is_a_name():
    metas = [{"pile_set_name": "Github"}, {"pile_set_name": 5}, {"pile_set_name": "\ud800"}, {}, "Github", None]
    metas += ['{"pile_set_name": "Github"}', "[" * 100_000, '["Github"]', ""]
    data = "".join(json.dumps({"text": "a", "meta": meta}) + "\n" for meta in metas).encode()
    assert [subset for _, subset in read(data, "a.jsonl")[1]] == ["Github", "", "?", "", "", "", "Github", "", "", ""]


def test_a_cut_off_frame_loses_the_share_of_its_content_that_is_missing():
    # Noise, for which half of the bytes is half of the text.
    texts = [(hashlib.sha512(str(index).encode()).hexdigest() * 40, "") for index in range(300)]
    data = compress(lines(texts))
    for share in (0.25, 0.5, 0.9):
        reader, found, faults = read(data[: int(share * len(data))])
        assert faults.counts == {"truncated zstd": 1}
        assert faults.first["truncated zstd"][0].where == "train/00.jsonl.zst"
        assert found == texts[: len(found)] and abs(len(found) / len(texts) - share) < 0.1
        assert reader.content.lost_share == pytest.approx(1 - share, abs=0.1)
        assert reader.content.size == len(lines(texts))


def test_a_cut_off_frame_that_does_not_state_its_size_counts_whole():
    compressor = zstandard.ZstdCompressor().compressobj()
    data = compressor.compress(lines(TEXTS)) + compressor.flush()
    assert read(data)[1] == TEXTS
    reader, _, faults = read(data[:-40])
    assert faults.counts == {"truncated zstd": 1}
    assert (reader.content.lost_share, reader.content.size) == (1, None)


@pytest.mark.parametrize("kept", [0, 1, 5, 100, 3000, -1])
@pytest.mark.parametrize("coding", ["sized", "unsized", "pzstd", "gzip", "plain"])
def test_a_cut_file_counts_whole_unless_it_says_how_long_it_was(coding, kept):
    text = lines(documents(1, 200))
    if coding == "sized":
        data, name = compress(text), "a.jsonl.zst"
    elif coding == "unsized":
        data, name = unsized(text), "a.jsonl.zstd"
    elif coding == "pzstd":
        data, name = (
            skippable(b"size") + unsized(text[:9000]) + skippable(b"size") + unsized(text[9000:]),
            "a.jsonl.zst",
        )
    else:
        data, name = (gzip.compress(text), "a.jsonl.gz") if coding == "gzip" else (text, "a.jsonl")
    assert read(data, name)[1] == documents(1, 200)
    reader, found, faults = read(data[:kept], name)
    missing = 1 if found == documents(1, 200) else 1 - reader.content.num_produced / len(text)
    if coding == "plain" and kept == -1:  # A newline less is nothing less.
        assert faults.counts == {} and reader.content.lost_share == 0
    else:
        assert [kind for kind in faults.counts if kind.startswith("truncated ")], faults.counts
        if coding == "sized" and kept not in (0, 1, 5):
            assert reader.content.size == len(text)
            assert reader.content.lost_share == (1 / len(text) if kept == -1 else pytest.approx(missing))
        else:
            assert (reader.content.lost_share, reader.content.size) == (1, None)


def test_a_cut_frame_behind_others_counts_whole():
    # It states its own size, but not how many would have come behind it.
    frames = [compress(lines(TEXTS[20 * part : 20 * (part + 1)])) for part in range(len(TEXTS) // 20)]
    assert len(frames) > 2
    reader, found, _ = read(b"".join(frames[:2])[:-1])
    assert found[:20] == TEXTS[:20] and (reader.content.lost_share, reader.content.size) == (1, None)


def unsized(text):
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compressor.compress(text) + compressor.flush()


def skippable(content, number=0):
    return bytes([0x50 + number]) + b"*M\x18" + len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize("chunk", [1, 19, 1 << 17])
def test_skippable_frames_are_no_frames(chunk, monkeypatch):
    monkeypatch.setattr("stagjax.data.shards._READ", chunk)
    first, second = unsized(lines(TEXTS[:3])), compress(lines(TEXTS[3:6]))
    data = skippable(b"") + skippable(b"1234") + first + skippable(b"x" * 300, 15) + second + skippable(b"table")
    reader, found, faults = read(data)
    assert found == TEXTS[:6] and faults.counts == {}
    assert (reader.content.num_frames, reader.content.num_unchecked) == (2, 0)
    assert read(data[:-1])[2].counts == {"truncated zstd": 1}


@pytest.mark.parametrize("chunk", [1, 19, 1 << 17])
def test_gzip_members_follow_each_other_and_zeros_are_passed_over(chunk, monkeypatch):
    monkeypatch.setattr("stagjax.data.shards._READ", chunk)
    first, second = gzip.compress(lines(TEXTS[:3])), gzip.compress(lines(TEXTS[3:6]))
    reader, found, faults = read(first + bytes(50) + second + bytes(700), "a.jsonl.gz")
    assert found == TEXTS[:6] and faults.counts == {} and reader.content.lost_share == 0
    assert (reader.content.num_frames, reader.content.num_unchecked) == (2, 0)
    for change, kind in (
        ((-5, b"\xff"), "wrong checksum"),
        ((-1, b"\xff"), "wrong checksum"),
        ((0, b"x"), "damaged gzip"),
    ):
        wrong = bytearray(second)
        wrong[change[0]] ^= change[1][0]
        reader, found, faults = read(first + bytes(wrong), "a.jsonl.gz")
        assert faults.counts == {kind: 1} and found[:3] == TEXTS[:3]
        assert reader.content.lost_share == pytest.approx(len(second) / (len(first) + len(second)))


def test_a_frame_that_ends_in_the_middle_of_a_line_was_not_the_last():
    frames = compress(lines(TEXTS)[:-100]), compress(lines(TEXTS)[-100:])
    assert read(b"".join(frames))[1] == TEXTS
    reader, found, faults = read(frames[0])
    assert found == TEXTS[: len(found)] and faults.counts == {"truncated file": 1}
    assert faults.first["truncated file"][0].where == f"train/00.jsonl.zst:{len(found) + 1}"
    assert (reader.content.lost_share, reader.content.size, reader.num_broken) == (1, None, 1)


def test_a_byte_order_mark_is_no_text():
    mark = "\ufeff".encode()
    joined = mark + lines(TEXTS[:2]) + mark + lines(TEXTS[2:4])
    for name, data in (("a.jsonl", joined), ("a.jsonl.zst", compress(joined)), ("a.jsonl.gz", gzip.compress(joined))):
        assert read(data, name)[1] == TEXTS[:4]
    # Within a document it is one.
    assert read(json.dumps({"text": "\ufeffa"}).encode(), "a.jsonl")[1] == [("\ufeffa", "")]


def test_only_newlines_end_a_line():
    texts = [("a\u2028b\x85c\x0cd\re", ""), ("f", "")]
    data = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text, _ in texts).encode()
    assert read(data, "a.jsonl")[1] == texts


def test_a_wrong_checksum_throws_doubt_on_all_of_its_frame():
    first, second = compress(lines(TEXTS[:30])), compress(lines(TEXTS[30:]))
    second = second[:-1] + bytes([second[-1] ^ 1])
    reader, _, faults = read(first + second)
    assert faults.counts == {"wrong checksum": 1}
    assert reader.content.lost_share == pytest.approx(len(second) / (len(first) + len(second)))
    assert reader.content.size == pytest.approx(len(lines(TEXTS)), rel=0.2)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_what_is_no_zstd_is_lost_from_its_frame_on(place):
    first, second = compress(lines(TEXTS[:30])), bytearray(compress(lines(TEXTS[30:])))
    second[place] ^= 0x88
    reader, found, faults = read(first + bytes(second))
    assert sum(faults.counts.values()) == 1 and found[:30] == TEXTS[:30]
    assert reader.content.lost_share >= len(second) / (len(first) + len(second))


def test_an_empty_file_is_no_zstd_file():
    reader, found, faults = read(b"")
    assert found == [] and faults.counts == {"truncated zstd": 1}


@given(noise=st.binary(max_size=300))
def test_noise_raises_nothing_and_is_counted(noise):
    for name in ("a.jsonl", "a.jsonl.zst"):
        reader, found, faults = read(noise, name)
        assert found == [] or name == "a.jsonl"
        assert faults.counts or not noise.strip() or found


def test_bytes_read_are_told():
    told = []
    reader = ShardReader("a.jsonl", io.BytesIO(b"x" * 300_000), lambda fault: None, told.append)
    assert list(reader.documents()) == [] and sum(told) == 300_000 and len(told) > 1
