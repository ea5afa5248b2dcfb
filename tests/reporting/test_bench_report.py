"""The page of a benchmark: it stands by itself, says what was measured, and escapes what it is given."""

import copy
import json
import re

import pytest

pytest.importorskip("matplotlib")

from stagjax.errors import UserError
from stagjax.reporting.bench_findings import findings
from stagjax.reporting.bench_report import write_report
from stagjax.reporting.bench_tables import bench_grids
from tests.reporting.bench_results import decode_result, timing, train_result
from tests.reporting.test_html import Document

PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = {"comparison", "latency", "components", "roofline", "prefill"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory and the page of a whole result."""
    output = tmp_path_factory.mktemp("report")
    write_report(decode_result(), output / "new")
    return output / "new", Document((output / "new" / "report.html").read_text())


def test_pictures_are_written_and_in_the_page(written):
    output, document = written
    assert {path.stem for path in output.glob("*.png")} == PICTURES
    assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 5000 for path in output.glob("*.png"))
    assert not list(output.glob("*.partial"))
    sources = [attributes["src"] for tag, attributes in document.tags if tag == "img"]
    assert len(sources) == len(PICTURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_page_fetches_and_runs_nothing(written):
    output, document = written
    text = (output / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(|javascript:", text)
    assert not {tag for tag, _ in document.tags} & {"script", "iframe", "object", "embed", "form", "a"}
    for _, attributes in document.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "data:").startswith("data:")


def test_the_page_has_every_figure(written):
    text = written[1].text
    for grid in bench_grids(decode_result()):
        for column in grid.columns:
            for cell in column.cells:
                assert cell in text
    for figure in ("7.80", "7.64 to 7.96", "0.79", "1.28", "3.37", "43%", "1.75", "44.7", "-0.29", "57,296,384"):
        assert figure in text, figure
    for fact in ("Abacus <9>", "cores per process", "0.10.2", "a note & its reason", "float32", "heads padded"):
        assert fact in text
    assert "one pass a token" in text


def test_the_page_carries_its_data(written):
    data = next(text for text in written[1].texts if text.startswith("{"))
    assert json.loads(data) == decode_result()


def test_measured_and_estimated_never_share_a_head(written):
    kinds = {"measured": 0, "estimated": 0}
    for rows in written[1].tables:
        heads = " ".join(text for row in rows[:2] for _, text in row)
        found = [kind for kind in kinds if kind in heads]
        assert len(found) < 2, heads
        for kind in found:
            kinds[kind] += 1
    assert all(kinds.values())


def test_rows_of_tables_are_as_long_as_their_heads(written):
    for rows in written[1].tables:
        assert len({sum(span for span, _ in row) for row in rows}) == 1


@pytest.mark.parametrize("batches", [(1,), (1, 4)])
def test_a_result_without_splits_prefills_and_estimates(tmp_path, batches):
    write_report(decode_result(batches=batches, contexts=(256,), whole=False), tmp_path)
    document = Document((tmp_path / "report.html").read_text())
    drawn = {"comparison", "roofline"} | ({"latency"} if len(batches) > 1 else set())
    assert {path.stem for path in tmp_path.glob("*.png")} == drawn
    assert not any(word in document.text.split("results.json")[0] for word in ("estimate", "Prefill", "NaN"))


def test_a_lone_model_and_an_unfinished_run(tmp_path):
    result = decode_result(batches=(1,), contexts=(256,), whole=False) | {"complete": False}
    result["rows"] = [result["rows"][0] | {"ratios": {}}]
    write_report(result, tmp_path)
    assert "Unfinished" in Document((tmp_path / "report.html").read_text()).text


def test_a_hostile_name_is_text(tmp_path):
    name = "<img src=x onerror=alert(1)>$\\frac$"
    write_report(decode_result(name), tmp_path)
    document = Document((tmp_path / "report.html").read_text())
    assert not [attributes for _, attributes in document.tags if "onerror" in attributes]
    assert name in document.text


def test_training_has_a_page_of_its_own(tmp_path):
    write_report(train_result(), tmp_path)
    document = Document((tmp_path / "report.html").read_text())
    assert [path.name for path in tmp_path.glob("*.png")] == ["throughput.png"]
    for figure in ("8192", "6554", "10240", "1.25", "0.80", "31%", "1.7 GB", "1.5 GB", "20%"):
        assert figure in document.text
    assert "slots" not in document.text


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another directory"):
        write_report(decode_result(), tmp_path / "file")


def test_findings_begin_with_the_comparison():
    found = findings(decode_result())
    assert found[0] == (
        "separate_2x6 on 2 slices of 1 device each: 7.80 ms a token, 0.79 of the time of baseline_12, a plain decoder "
        "of 12 layers, on one slice of 1 device (9.90 ms): faster by 21%."
    )
    assert found[1] == (
        "It takes 1.28 times that of baseline_12, a plain decoder of 12 layers, on the same devices (6.10 ms): slower "
        "by 28%."
    )
    assert "Over 4 batches and contexts its time is 0.79" in "".join(found)
    assert "messages between devices, with waiting for them, take 0.830 ms of it (10%)" in "".join(found)
    assert "Prefill of separate_2x6 on 2x1, pipelined over chunks, takes 44.7 ms, 0.73 of the time of" in "".join(found)


def test_no_difference_is_claimed_within_the_spread():
    result = copy.deepcopy(decode_result())
    result["rows"][0]["measured"] = timing(9.8)
    assert findings(result)[0].endswith("no clear difference, the middle halves of the samples overlap.")
