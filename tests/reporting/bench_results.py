"""Results as `stagjax bench` writes them, with made-up figures that no two places share."""

import itertools

ROLES = {
    "baseline": "a plain decoder on all devices",
    "baseline_slice": "a plain decoder on one slice",
    "baseline_rows": "more rows",
    "windows": "shorter windows",
    "recurrent": "one pass a token",
}
MACHINE = {
    "date": "2030-01-02T03:04:05+00:00",
    "platform": "cpu",
    "device": "Abacus <9>",
    "devices": 2,
    "processes": 2,
    "cores_per_process": 3,
    "jax": "0.10.2",
    "xla_flags": "",
}
ON_SLICES = {"data": 1, "stack": 2, "tensor": 1}
ON_ONE = {"data": 1, "stack": 1, "tensor": 1}
ON_ALL = {"data": 1, "stack": 1, "tensor": 2}


def timing(ms, half=0.02):
    return {
        "median_ms": ms,
        "quartiles_ms": [ms - half * abs(ms), ms + half * abs(ms)],
        "extremes_ms": [0.9 * ms, 1.1 * ms],
        "samples": 7,
    }


def ledger(compute, calibration, compute_ms, collectives_ms):
    return {
        "compute": compute,
        "calibration": calibration,
        "compute_ms": compute_ms,
        "collectives_ms": collectives_ms,
        "step_ms": compute_ms + collectives_ms,
        "lines": [],
    }


def measured_case(name, role, mesh, ms, batch=1, mode="parallel"):
    """What rows, splits and prefills have in common."""
    plain = name.startswith(("baseline", "wide"))
    return {
        "name": name,
        "role": role,
        "decoding": mode,
        "mesh": mesh,
        "devices": mesh["data"] * mesh["stack"] * mesh["tensor"],
        "batch": batch,
        "form": {"heads": "padded", "rows": 1},
        "model": {
            "num_stacks": 1 if plain else 2,
            "layers_per_stack": 12 if plain else 6,
            "compute_dtype": "float32",
        },
        "measured": timing(ms),
        "tokens_per_second": 1e3 * batch / ms,
        "roofline": {
            "read_bytes": 3e7,
            "flops": 5e6,
            "floor_ms": 0.4321 * ms,
            "bound": "memory",
            "share": 0.4321,
            "peaks": {"flops": 1.1e11, "bandwidth": 2.3e10, "working_set": 1 << 25, "source": "measured"},
        },
    }


def row(name, role, mesh, ms, asked, context, batch=None, mode="parallel", ledgers=()):
    return measured_case(name, role, mesh, ms, batch or asked, mode) | {
        "context": context,
        "parameters": 57_296_384,
        "bytes_per_device": {"parameters": 128e6, "self caches": 6e6, "cross caches": 7e6},
        "ledgers": list(ledgers),
        "batch_asked": asked,
    }


def point(name, batch, context, scale, ledgers):
    """The rows of one point."""
    rows = [
        row(name, "model", ON_SLICES, 7.8 * scale, batch, context, ledgers=ledgers),
        row("baseline_12", "baseline", ON_ALL, 6.1 * scale, batch, context, ledgers=ledgers),
        row("baseline_12", "baseline_slice", ON_ONE, 9.9 * scale, batch, context),
        row("baseline_12", "baseline_rows", ON_ALL, 8.3 * scale, batch, context, batch=2 * batch),
        row(name, "recurrent", ON_ALL, 5.7 * scale, batch, context, mode="recurrent"),
        *(
            row(f"{name}, window {window}", "windows", ON_SLICES, (6.4 + window / 200) * scale, batch, context)
            for window in (128, 1)
        ),
    ]
    for one in rows:
        one["ratios"] = {
            base["role"]: one["measured"]["median_ms"] / base["measured"]["median_ms"] for base in rows[1:3]
        }
    return rows


def split(name, role, mesh, whole, parts, messages):
    remainder = whole - sum(parts.values())
    return measured_case(name, role, mesh, whole) | {
        "context": 256,
        "whole": timing(whole),
        "parts": [{"part": part, **timing(ms)} for part, ms in parts.items()],
        "sum_ms": whole - remainder,
        "remainder_ms": remainder,
        "share_explained": 1 - remainder / whole,
        "collectives": None if messages is None else timing(messages),
    }


def decode_result(name="separate_2x6", batches=(1, 4), contexts=(256, 1280), whole=True):
    """Return a result of `stagjax bench decode`; not `whole` is one without splits, prefills and estimates."""
    estimates = [ledger(*pair, 1.25, 0.5) for pair in itertools.product(("compiler", "hbm"), ("hops", "published"))]
    rows = []
    for context, batch in itertools.product(contexts, batches):
        scale = (1 + batch / 10) * (1 + context / 1000) / (1.1 * 1.256)
        rows += point(name, batch, context, scale, estimates if whole else [])
    parts = {"self-attention": 2.21, "cross-attention": 1.73, "MLP": 3.35, "handoff": 0.37, "sampling": -0.29}
    plain = {part: ms for part, ms in parts.items() if part not in ("cross-attention", "handoff")}
    splits = [
        split(name, "model", ON_SLICES, 7.91, parts, 0.83),
        split("baseline_12", "baseline_slice", ON_ONE, 9.73, plain, None),
    ]
    prefill = [
        measured_case(case, role, mesh, ms) | {"length": 256, "form": form}
        for case, role, mesh, ms, form in (
            (name, "model", ON_SLICES, 61.2, "plain"),
            (name, "model", ON_SLICES, 44.7, "pipelined over chunks"),
            ("baseline_12", "baseline_slice", ON_ONE, 58.9, "one slice"),
        )
    ]
    return {
        "benchmark": "decode",
        "config": f"experiments/stdlib.py:{name}",
        "machine": MACHINE,
        "settings": {"repeats": 7, "warmup": 2, "tokens_per_call": 16},
        "notes": ["a note & its reason"],
        "roles": ROLES,
        "complete": True,
        "rows": rows,
        "splits": splits if whole else [],
        "prefill": prefill if whole else [],
    }


def train_result():
    """Return a result of `stagjax bench train`."""
    rows = [
        {
            "name": name,
            "mesh": {"data": 2, "stack": 1, "tensor": 1},
            "devices": 2,
            "parameters": 1_738_752,
            "measured": timing(ms),
            "tokens_per_second": 8.192e5 / ms,
            "mfu": mfu,
            "flops_per_token": 2.4e7,
            "memory": {"compiled_bytes_per_device": 1.5e9, "peak_bytes_per_device": peak},
            "bubble": bubble,
            "global_batch": 8,
            "row_length": 256,
            "ratio": 100 / ms,
            "flops_ratio": 1.25,
            "peaks": {"flops": 1.1e11, "source": "measured"},
        }
        for name, ms, mfu, peak, bubble in (
            ("baseline_6", 100.0, 0.31, None, None),
            ("separate_2x3", 125.0, None, 1.7e9, 0.2),
            ("shared_2x3", 80.0, 0.39, None, 0.2),
        )
    ]
    head = {"config": "experiments/stdlib.py", "machine": MACHINE, "notes": [], "complete": True}
    return {"benchmark": "train", **head, "rows": rows}
