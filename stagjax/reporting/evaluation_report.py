"""Reports of a sweep: one table as Markdown, CSV, JSON and a page with pictures that opens offline."""

import csv
import fcntl
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from stagjax.files import write_json, write_result, writing
from stagjax.printable import one_line
from stagjax.reporting.evaluation_plots import draw_pictures
from stagjax.reporting.evaluation_tables import estimate_of, footnotes, paper_grid, row_name, subset_grids, with_error
from stagjax.reporting.grid import Column, Grid
from stagjax.reporting.html import bullets, definitions, element, folded, page, picture, table

TITLE = "Quality and latency"
TERMS = (
    (
        "±",
        "One standard error, in closed form, over the documents of a task. All models answer the same documents: the "
        "difference of two is known better than their errors say.",
    ),
    (
        "average",
        "Over those tasks with a best possible score that every row has, each as a share of it. Its error takes tasks "
        "for independent.",
    ),
    (
        "Pile perplexity",
        "exp of the nats a token, a document's end included. It depends on the vocabulary; bits per byte do not.",
    ),
    (
        "teacher forcing",
        "All tokens of an answer scored in one pass; for parallel decoding that is what step-by-step decoding gives.",
    ),
    (
        "decode path",
        "Prefill, then token by token, as in use. Recurrent decoding is another computation than teacher forcing, and "
        "is never scored by it.",
    ),
    (
        "prefill, decode ms",
        "Measured by stagjax bench decode with a model of the same shape; joined by the shape, not by the name.",
    ),
    ("-", "Missing: not evaluated, not measured, or not a number. Never zero."),
)
FACTS = ("name", "step", "decoding", "shots", "parameters", "content", "scored_by")


def write_reports(results: dict[str, Any], output: pathlib.Path) -> None:
    """Write results.json, table.md, table.csv, pictures and report.html.

    Processes that share a sweep write one after the other.

    Raises:
      UserError: they cannot be written, or matplotlib is missing.
      RunFailed: the disk is full.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        with open(output / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_json(output / "results.json", results)
            write_result(output / "table.md", markdown(results))
            write_result(output / "table.csv", comma_separated(results))
            write_result(output / "report.html", _page(results, draw_pictures(results, output)))


def markdown(results: dict[str, Any]) -> str:
    """Return the table with standard errors, and its footnotes."""
    cell = lambda text: one_line(" ".join(text.replace("|", r"\|").split()))
    columns = paper_grid(results).filled
    lines = [[cell(column.head) for column in columns]]
    lines.append([":--" if column.left else "--:" for column in columns])
    lines += [[cell(text) for text in row] for row in zip(*(column.cells for column in columns), strict=True)]
    table_lines = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*table_lines, "", *(f"- {cell(note)}" for note in footnotes(results))]) + "\n"


def comma_separated(results: dict[str, Any]) -> str:
    """Return the figures in full precision, standard errors beside them; what is missing is empty."""
    rows = []
    for row in results["rows"]:
        facts = {name: row[name] for name in FACTS}
        for name in ("pile_perplexity", "average"):
            facts |= _with_stderr(name, row[name])
        for kind in ("prefill", "decode"):
            found = (row.get("latency") or {}).get(kind)
            facts[f"{kind}_ms"] = found["ms"] if found else None
        for task in results["tasks"]:
            for metric in task["metrics"]:
                facts |= _with_stderr(f"{task['label']}/{metric}", estimate_of(row, task, metric))
        rows.append(facts)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _with_stderr(name: str, estimate: dict[str, Any] | None) -> dict[str, Any]:
    found = estimate or {"value": None, "stderr": None}
    return {name: found["value"], f"{name}_stderr": found["stderr"]}


def _page(results: dict[str, Any], pictures: list[Any]) -> str:
    return page(TITLE, _body(results, pictures))


def _body(results: dict[str, Any], pictures: list[Any]) -> Iterator[str]:
    """Yield the parts of the page."""
    machine = results["machine"]
    yield element("h1", TITLE)
    yield element("p", f"{len(results['rows'])} models; {machine['device']}, {machine['date']}", "soft")
    yield table(paper_grid(results))
    yield bullets(footnotes(results))
    for drawn in pictures:
        yield element("h2", drawn.title)
        yield picture(drawn.path, drawn.title, drawn.caption)
    yield element("h2", "How tasks were scored")
    yield table(_scored_grid(results))
    subsets = subset_grids(results)
    if subsets:
        yield element("h2", "Perplexity by subset")
        yield from map(table, subsets)
    yield element("h2", "How to read this")
    yield definitions(TERMS)
    yield element("h2", "Models")
    yield table(_models_grid(results))
    yield element("h2", "Data")
    yield folded("results.json, from which all of this is made", json.dumps(results, indent=1))


def _scored_grid(results: dict[str, Any]) -> Grid:
    """Return every metric of every task, and by which path it was scored."""
    lines = [
        (row, task, cell, metric)
        for row in results["rows"]
        for task in results["tasks"]
        if (cell := row["cells"].get(task["label"])) and cell["status"] == "done"
        for metric in task["metrics"]
        if metric in cell["metrics"]
    ]
    return Grid(
        "all metrics",
        [
            Column("model", [row_name(row) for row, *_ in lines], left=True, whole=True),
            Column("task", [task["label"] for _, task, _, _ in lines], left=True, whole=True),
            Column("shots", [str(cell["shots"]) for _, _, cell, _ in lines]),
            Column("metric", [metric for *_, metric in lines], left=True, whole=True),
            Column("value", [with_error(estimate_of(row, task, metric)) for row, task, _, metric in lines]),
            Column("documents", [f"{cell['documents']:,}" for _, _, cell, _ in lines]),
            Column("scored by", [cell["scored_by"] for _, _, cell, _ in lines], left=True),
        ],
    )


def _models_grid(results: dict[str, Any]) -> Grid:
    rows = results["rows"]
    loss = lambda row: "-" if row["validation_loss"] is None else f"{row['validation_loss']:.4f}"
    return Grid(
        "what was evaluated: a model is its content, not its name",
        [
            Column("model", [row_name(row) for row in rows], left=True, whole=True),
            Column("content", [row["content"][:16] for row in rows], left=True),
            Column("vocabulary", [row["vocabulary"][:12] for row in rows], left=True),
            Column("stacks", [str(row["model"]["num_stacks"]) for row in rows]),
            Column("layers a stack", [str(row["model"]["layers_per_stack"]) for row in rows]),
            Column("width", [str(row["model"]["model_dim"]) for row in rows]),
            Column("validation loss", [loss(row) for row in rows]),
            Column("from", [row["path"] for row in rows], left=True),
        ],
    )
