"""Tables of evaluations: one model by task, many models in one table; what is missing is a dash, and noted below."""

from collections.abc import Callable, Sequence
from typing import Any

from stagjax.data.shards import subset_label
from stagjax.reporting.grid import MISSING, PAGE, WIDE, Column, Grid
from stagjax.reporting.tables import scaled

Results = dict[str, Any]
Row = dict[str, Any]
DONE = "done"


def evaluation_grid(results: Results) -> Grid:
    """Return the table of `stagjax evaluate`: a line a metric of each task."""
    row = results["rows"][0]
    lines = [(task, name, cell) for task, cell in _cells(results, row) for name in _metrics(task, cell)]
    title = f"{row['name']}, step {row['step']}, {row['decoding']} decoding: {row['scored_by']}"
    first = [n == 0 or lines[n - 1][0] is not task for n, (task, _, _) in enumerate(lines)]
    once = lambda texts: [text if shown else "" for text, shown in zip(texts, first, strict=True)]
    columns = [
        Column("task", once([task["label"] for task, _, _ in lines]), left=True, whole=True),
        Column("shots", once([str(cell.get("shots", MISSING)) for _, _, cell in lines])),
        Column("metric", [name for _, name, _ in lines], left=True, whole=True),
        Column("value", [figure(_estimate(cell, name)) for _, name, cell in lines]),
        Column("error", [error(_estimate(cell, name)) for _, name, cell in lines]),
        Column("documents", once([_documents(cell) for _, _, cell in lines])),
        Column("truncated", once([_truncated(cell) for _, _, cell in lines]), least=WIDE),
        Column("examples/s", once([_speed(cell) for _, _, cell in lines]), least=WIDE),
        Column("scored by", once([cell.get("scored_by", MISSING) for _, _, cell in lines]), left=True, least=PAGE),
    ]
    return Grid(title, columns, "error: one standard error; examples: documents a second, with compilation")


def subset_grids(results: Results) -> list[Grid]:
    """Return a table by subset for every row and task that has subsets: The Pile."""
    grids = []
    for row in results["rows"]:
        for task, cell in _cells(results, row):
            names = [name for name in cell.get("metrics", {}) if "/" in name]
            subsets = sorted({name.rpartition("/")[0] for name in names})
            kinds = [kind for kind in task["metrics"] if f"{subsets[0]}/{kind}" in names] if subsets else []
            columns = [Column("subset", list(map(subset_label, subsets)), left=True, whole=True)]
            for kind in kinds:
                columns.append(
                    Column(
                        kind.replace("_", "\n", 1).replace("_", " "),
                        [figure(_estimate(cell, f"{name}/{kind}")) for name in subsets],
                    )
                )
                columns.append(
                    Column("error", [error(_estimate(cell, f"{name}/{kind}")) for name in subsets], least=WIDE)
                )
            if subsets:
                grids.append(Grid(f"{row_name(row)}: {task['label']} by subset", columns))
    return grids


def paper_grid(results: Results) -> Grid:
    """Return the table of `stagjax sweep`, with standard errors: a line a model, a column a task."""
    rows = results["rows"]
    columns = [
        *_named(rows),
        *_summary(rows, with_error),
        *(_task_column(rows, task, with_error) for task in results["tasks"]),
    ]
    return Grid("quality and latency", columns)


def paper_grids(results: Results, width: int) -> list[Grid]:
    """Return the same in parts that a terminal of `width` columns has room for, without errors."""
    rows = results["rows"]
    grids = [Grid("quality and latency", [*_named(rows), *_summary(rows, figure)])]
    named = [Column("model", [row_name(row) for row in rows], left=True, whole=True)]
    room = width - max(map(len, named[0].cells), default=0)
    part, used = [], 0
    for column in [_task_column(rows, task, figure) for task in results["tasks"]]:
        size = 2 + max(len(line) for line in (*column.head.split("\n"), *column.cells))
        if part and used + size > room:
            grids.append(Grid("", [*named, *part]))
            part, used = [], 0
        part.append(column)
        used += size
    return [*grids, Grid("", [*named, *part])] if part else grids


def _named(rows: Sequence[Row]) -> list[Column]:
    columns = [
        Column("model", [row["name"] for row in rows], left=True, whole=True),
        Column("step", [str(row["step"]) for row in rows]),
        Column("decoding", [row["decoding"] for row in rows], left=True, whole=True),
    ]
    if len({row["shots"] for row in rows}) > 1:
        columns.append(Column("shots", ["default" if row["shots"] is None else str(row["shots"]) for row in rows]))
    return columns


def _summary(rows: Sequence[Row], shown: Callable[[Any], str]) -> list[Column]:
    return [
        Column("parameters", [scaled(row["parameters"]) for row in rows]),
        Column("Pile\nperplexity", [shown(row["pile_perplexity"]) for row in rows]),
        Column("average", [shown(row["average"]) for row in rows]),
        Column("prefill\nms", [_latency(row, "prefill") for row in rows]),
        Column("decode\nms", [_latency(row, "decode") for row in rows]),
    ]


def footnotes(results: Results) -> list[str]:
    """Return what has to be known with the figures: what the average is of, what is partial, cut off or missing."""
    notes = list(results.get("notes", []))
    averaged = results["averaged"]
    if len(results["rows"]) > 1 and averaged:
        notes.append(f"average: over the {len(averaged)} tasks that every row has: {', '.join(averaged)}")
    if len({row["vocabulary"] for row in results["rows"]}) > 1:
        notes.append("perplexities a token of different vocabularies do not compare: take bits per byte")
    found: dict[tuple[str, str], list[str]] = {}
    for row in results["rows"]:
        for task, cell in _cells(results, row):
            for note in _cell_notes(task, cell):
                found.setdefault(note, []).append(row_name(row))
    # Notes of one kind on the same rows are one line.
    lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (kind, text), names in found.items():
        lines.setdefault((kind, tuple(names)), []).append(text)
    for (kind, names), texts in lines.items():
        of_some = "" if len(names) == len(results["rows"]) else f"{', '.join(dict.fromkeys(names))}: "
        notes.append(f"{of_some}{kind}{'; '.join(texts)}")
    return notes + _latency_notes(results["rows"])


def _latency_notes(rows: Sequence[Row]) -> list[str]:
    """Say what latencies were measured at and on; nothing else about them is known here."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for kind in ("prefill", "decode"):
            one = (row.get("latency") or {}).get(kind)
            if one:
                mesh = " x ".join(f"{name} {size}" for name, size in one["mesh"].items() if size > 1) or "one device"
                note = (
                    f"{kind} ms: batch {one['batch']}, {one['length']} slots, {mesh}, {one['device']} ({one['source']})"
                )
                found.setdefault(note, []).append(row_name(row))
    return [f"{', '.join(names)}: {note}" for note, names in found.items()]


def figure(estimate: dict[str, Any] | None) -> str:
    """Return a value with three or four digits; a dash where there is none."""
    if estimate is None or estimate["value"] is None:
        return MISSING
    value = estimate["value"]
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 100 else f"{value:.4g}"


def error(estimate: dict[str, Any] | None) -> str:
    """Return a standard error with the decimals of its value."""
    if estimate is None or estimate["value"] is None or estimate["stderr"] is None:
        return MISSING
    value, stderr = abs(estimate["value"]), estimate["stderr"]
    return f"{stderr:.3f}" if value < 10 else f"{stderr:.2f}" if value < 100 else f"{stderr:.2g}"


def with_error(estimate: dict[str, Any] | None) -> str:
    """Return a value with its standard error."""
    shown = error(estimate)
    return figure(estimate) if shown == MISSING else f"{figure(estimate)} ± {shown}"


def estimate_of(row: Row, task: dict[str, Any], metric: str | None = None) -> dict[str, Any] | None:
    """Return a row's estimate of a task's main metric, or of another one; None where there is none."""
    cell = row["cells"].get(task["label"])
    return _estimate(cell, metric or task["metric"]) if cell else None


def row_name(row: Row) -> str:
    """Return a row's model with its step, and its decoding mode and shots where they are not the usual ones."""
    shots = "" if row["shots"] is None else f" {row['shots']}-shot"
    return (
        f"{row['name']} step {row['step']}" + ("" if row["decoding"] == "parallel" else f" {row['decoding']}") + shots
    )


def _cells(results: Results, row: Row) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(task, row["cells"][task["label"]]) for task in results["tasks"] if task["label"] in row["cells"]]


def _metrics(task: dict[str, Any], cell: dict[str, Any]) -> Sequence[str]:
    return [name for name in cell["metrics"] if "/" not in name] if cell["status"] == DONE else [task["metric"]]


def _estimate(cell: dict[str, Any], metric: str) -> dict[str, Any] | None:
    return cell["metrics"].get(metric) if cell["status"] == DONE else None


def _task_column(rows: Sequence[Row], task: dict[str, Any], shown: Callable[[Any], str]) -> Column:
    estimates = [estimate_of(row, task) for row in rows]
    return Column(f"{task['label'].replace('_', ' ')}\n{task['metric'].replace('_', ' ')}", list(map(shown, estimates)))


def _documents(cell: dict[str, Any]) -> str:
    if cell["status"] != DONE:
        return cell["status"]
    expected = cell["sources"][0]["expected"]
    return f"{cell['documents']:,}" + (f" of {expected:,}" if expected and cell["documents"] < expected else "")


def _truncated(cell: dict[str, Any]) -> str:
    return f"{cell['truncated']:,} of {cell['requests']:,}" if cell["status"] == DONE and cell["truncated"] else MISSING


def _speed(cell: dict[str, Any]) -> str:
    if cell["status"] != DONE or not cell["timed_documents"] or not cell["seconds"]:
        return MISSING
    return f"{cell['timed_documents'] / cell['seconds']:.1f}"


def _latency(row: Row, kind: str) -> str:
    found = (row.get("latency") or {}).get(kind)
    if not found:
        return MISSING
    return f"{found['ms']:.2f}" if found["ms"] < 10 else f"{found['ms']:.1f}"


def _cell_notes(task: dict[str, Any], cell: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what has to be known of a cell: (kind, text)."""
    label = task["label"]
    if cell["status"] != DONE:
        kind = "left out: " if cell["status"] == "skipped" else "not evaluated: "
        return [(kind, f"{label} ({cell['reason']})")]
    notes = [
        ("partial data: ", f"{label} {source['split']} {source['summary'].removesuffix(' documents')}")
        for source in cell["sources"]
        if source["partial"]
    ]
    available = cell["sources"][0]["documents"]
    if cell["documents"] < available:
        notes.append(("only the first documents: ", f"{label} {cell['documents']:,} of {available:,}"))
    if cell.get("own_examples"):
        own = f"{label} {cell['own_examples']:,} of {cell['documents']:,}"
        notes.append(
            ("documents with themselves, and so their answer, among their examples (as in the harness): ", own)
        )
    if cell["truncated"]:
        notes.append(("contexts cut off at the left: ", f"{label} {cell['truncated']:,} of {cell['requests']:,}"))
    return notes
