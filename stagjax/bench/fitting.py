"""From measured steps back to the ledger's constants: what a collective costs on the devices that were there.

A ledger says a step takes its computing plus, for every collective, a constant and so much a hop. Measured steps of
several models on several meshes give as many equations; the constants are their least-squares solution, none negative.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from stagjax.bench.ledger import HOPS

FIELDS = ("hop_us", "small_us", "large_us")


class Fit(NamedTuple):
    """Constants of a `ledger.Calibration` that explain measurements.

    Attributes:
      compute: what the ledgers took for computing, "compiler" or "hbm": whichever fits better.
      constants: field of `Calibration` to value, in microseconds.
      error_ms: root mean square of what they leave unexplained.
      steps: measured steps.
    """

    compute: str
    constants: dict[str, float]
    error_ms: float
    steps: int

    @property
    def option(self) -> str:
        """Return it as `stagjax plan` reads it."""
        values = ",".join(f"{name}={value:.3g}" for name, value in self.constants.items())
        return f"--calibration=fitted:{values}"


def fit(rows: Iterable[Mapping[str, Any]]) -> Fit | None:
    """Fit constants to the rows of a latency benchmark; None without estimates beside at least as many measurements.

    Rows need the ledger "hops" (its constants are known, so that what remains of a line is its bytes).
    """
    found = []
    rows = [row for row in rows if row["ledgers"]]
    for compute in ("compiler", "hbm"):
        equations = [
            _equation(row["measured"]["median_ms"], ledger)
            for row in rows
            for ledger in row["ledgers"]
            if (ledger["compute"], ledger["calibration"]) == (compute, HOPS.name)
        ]
        if len(equations) < len(FIELDS):
            continue
        wanted = np.array([rest for rest, _ in equations])
        constants, residual = scipy.optimize.nnls(np.array([counts for _, counts in equations]), wanted)
        error = float(residual) / len(equations) ** 0.5
        found.append(Fit(compute, dict(zip(FIELDS, constants.tolist(), strict=True)), error, len(equations)))
    return min(found, key=lambda fit: fit.error_ms, default=None)


def _equation(measured_ms: float, ledger: Mapping[str, Any]) -> tuple[float, list[float]]:
    """Return the milliseconds that constants must explain, and how many milliseconds a microsecond of each adds."""
    rest, counts = measured_ms - ledger["compute_ms"], [0.0, 0.0, 0.0]
    for line in ledger["lines"]:
        if line["kind"] == "collective-permute":
            rest -= line["ms"]
            continue
        ways = HOPS.reduce_ways if line["kind"] == "all-reduce" else HOPS.other_ways
        hops = ways * line["hops"]
        rest -= 1e-3 * line["count"] * (line["latency_us"] - HOPS.hop_us * hops - line["hidden_us"])
        counts[0] += 1e-3 * line["count"] * hops
        counts[1 + (line["chips"] >= HOPS.large_chips)] += 1e-3 * line["count"]
    return rest, counts
