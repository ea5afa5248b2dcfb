"""A sweep over the models of experiments/stdlib.py: what is compared, on which tasks, decoded how.

    stagjax sweep --config=experiments/sweep.py:runs --output=runs/sweep --data-dir=data

ARG is the directory that has the workdirs (default: runs): baseline_6, shared_2x3 and separate_2x3, as `stagjax train
--config=experiments/stdlib.py:NAME --workdir=runs/NAME` leaves them. What is finished is never made again; more runs,
tasks or modes may be added here at any time.
"""

import pathlib
from typing import Any

NAMES = ("baseline_6", "shared_2x3", "separate_2x3")


def get_sweep(arg: str = "") -> dict[str, Any]:
    """Return the sweep as plain data; the fields are those of `stagjax.evaluation.plan.Plan`."""
    directory = pathlib.Path(arg or "runs")
    return {
        # Also {"path": ..., "checkpoints": ["all"]}, to see how quality grows over training; an export is a run, too.
        "runs": [{"path": str(directory / name), "name": name, "checkpoints": ["all"]} for name in NAMES],
        "tasks": ["paper"],
        "shots": [0],
        # Recurrent decoding is asked of shared weights only: other models have none.
        "decoding": ["parallel", "recurrent"],
        "limit": 200,
        # Of `stagjax bench decode --config=experiments/stdlib.py:separate_2x3 --output=ARG/latency`, if it was run: the
        # shapes of separate_2x3 and of baseline_6, by which latencies are joined.
        "bench": [str(directory / "latency")],
    }
