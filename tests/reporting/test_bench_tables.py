"""The tables of a benchmark: nothing is cut on a narrow terminal, nothing measured stands beside an estimate."""

import io

import pytest
import rich.console

from stagjax.reporting.bench_findings import findings
from stagjax.reporting.bench_plots import draw_roofline
from stagjax.reporting.bench_rows import decimals, label, mesh_text, number
from stagjax.reporting.bench_tables import ESTIMATED, MEASURED, bench_grids, bench_tables
from tests.reporting.bench_results import ON_SLICES, decode_result, row, train_result

LONG = "medium_separate_2x18_lag2_" + 8 * "and_more_"


def rendered(result, width):
    console = rich.console.Console(width=width, file=io.StringIO(), color_system=None)
    for table in bench_tables(result, width):
        console.print(table, "")
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "result",
    [decode_result(), decode_result("s"), decode_result(LONG), train_result()],
    ids=["2x6", "s", "long", "train"],
)
def test_no_figure_is_cut_or_broken(result, width):
    text = rendered(result, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for grid in bench_grids(result):
        for column in grid.columns:
            if not column.left and width >= column.least:
                assert all(cell in text for cell in column.cells), column.head


def test_a_row_of_a_usual_name_is_one_line_at_80_columns():
    lines = rendered(decode_result("medium_separate_2x6"), 80).splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("model"))
    assert [line.split("  ")[0] for line in lines[begin + 2 : begin + 9]] == [
        "medium_separate_2x6",
        "baseline_12",
        "baseline_12",
        "baseline_12, 2 rows",
        "recurrent",
        "window 128",
        "window 1",
    ]


def test_a_wide_terminal_shows_more():
    result = decode_result()
    assert "quartiles" not in rendered(result, 80)
    assert "7.64 to 7.96" in rendered(result, 120)


def test_measured_and_estimated_never_share_a_table():
    seen = set()
    for grid in bench_grids(decode_result()):
        kinds = {column.group.split(":")[0].split(",")[0] for column in grid.columns} - {""}
        assert not {MEASURED, ESTIMATED} <= kinds, grid.title
        seen |= kinds
    assert {MEASURED, ESTIMATED} <= seen


def test_what_was_not_measured_gets_no_column_and_no_table():
    result = decode_result(whole=False)
    for one in result["rows"]:
        del one["ratios"]["baseline"]
    text = rendered(result, 120)
    assert "over its" in text and "baseline\n" not in text.replace(" ", "")
    assert not any(word in text for word in ("estimate", "prefill", "self-attention"))


def test_the_legend_names_only_comparators_that_are_there():
    result = decode_result()
    result["rows"] = [one for one in result["rows"] if one["role"] != "recurrent"]
    legend = bench_grids(result)[-1]
    assert "one pass a token" not in legend.columns[1].cells
    assert dict(zip(*(column.cells for column in legend.columns), strict=True)) == {
        "baseline_12 on 1x2": "a plain decoder on all devices",
        "baseline_12 on 1x1": "a plain decoder on one slice",
        "baseline_12, 2 rows on 1x2": "more rows",
        "window 128 on 2x1 / window 1 on 2x1": "shorter windows",
    }


def test_names_in_brackets_are_no_markup():
    assert "[bold]x[/bold]" in rendered(decode_result("[bold]x[/bold]"), 120)


def test_how_rows_are_called():
    assert mesh_text({"data": 1, "stack": 2, "tensor": 8}) == "2x8"
    assert mesh_text({"data": 2, "stack": 1, "tensor": 8}) == "2 of 1x8"
    assert label(row("a", "model", ON_SLICES, 1.0, 1, 8)) == "a on 2x1"
    assert label(row("a", "x", ON_SLICES, 1.0, 1, 8, batch=2, mode="recurrent")) == "a, recurrent, 2 rows on 2x1"


@pytest.mark.parametrize(("values", "shown"), [([0.02, 5], 3), ([1.5], 2), ([26.4, 12.1], 1), ([300], 0), ([], 2)])
def test_three_digits_of_the_least(values, shown):
    assert decimals(values) == shown


def test_nothing_has_no_sign():
    assert number(-0.0004, 3) == "0.000"
    assert number(-0.0006, 3) == "-0.001"
    assert number(-0.0, 1) == "0.0"


@pytest.mark.parametrize(
    ("source", "why"),
    [("measured", "the peaks measured in this run are too low"), ("published", "not all bytes counted are read")],
)
def test_more_than_a_roofline_is_told(source, why, tmp_path):
    result = decode_result(contexts=(256,), batches=(1,))
    told = f"Over 100% of its roofline, so that this floor is none ({why}): baseline_12 on 1x2."
    assert "Over 100%" not in " ".join(rendered(result, 120).split())
    row = next(row for row in result["rows"] if label(row) == "baseline_12 on 1x2")
    row["roofline"] |= {"share": 1.006, "peaks": row["roofline"]["peaks"] | {"source": source}}
    assert told in " ".join(rendered(result, 120).split())
    assert told in findings(result)
    assert told in draw_roofline(result["rows"], tmp_path / "roofline.png").caption
