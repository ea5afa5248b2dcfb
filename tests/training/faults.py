"""Faults put into a run, by the number of the batch that they strike at.

    python -m tests.training.faults '{"nonfinite": [9], "spike": [40]}' train --config=... --workdir=...

runs a command line with them; in a test's own process `inject` is given monkeypatch's setattr.
"""

import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from stagjax.data.loader import RowLoader
from stagjax.reporting import metrics as reporting
from stagjax.training import step as steps
from tests.waits import eventually

# Added to segment ids, by which the step knows what to do.
_NONFINITE, _SPIKE = 10**6, 2 * 10**6


def inject(
    setattr: Callable[[Any, str, Any], None],
    nonfinite: tuple[int, ...] = (),
    spike: tuple[int, ...] = (),
    unreadable: int | None = None,
    waits: tuple[int, str] | None = None,
    slow_seconds: float = 0.0,
    checkpoints_gone: tuple[int, str, int] | None = None,
    metrics_full: int | None = None,
) -> None:
    """Make runs fail from here on.

    Args:
      setattr: as the builtin.
      nonfinite: batches whose loss is NaN.
      spike: batches whose loss is twenty times what it is.
      unreadable: batch whose rows cannot be read.
      waits: batch that is not read before a file is there, and the file: steps after it are not taken until then.
      slow_seconds: that each read takes longer.
      checkpoints_gone: batch, workdir and step: there the workdir's directory of checkpoints becomes a file, once that
        of the step is complete; as an unmounted bucket's mount point may.
      metrics_full: batch from which on the disk has no room for a line of metrics.
    """
    sound, sum_nats = RowLoader.batch, steps.sum_nats
    broken = set()

    def batch(self: RowLoader, number: int) -> dict[str, np.ndarray]:
        time.sleep(slow_seconds)
        arrays = sound(self, number)
        if number in nonfinite or number in spike:
            arrays["segment_ids"] = arrays["segment_ids"] + np.int32(_NONFINITE if number in nonfinite else _SPIKE)
        if number == unreadable:
            raise OSError(5, "Input/output error", "rows-00003")
        if waits and number == waits[0]:
            eventually(pathlib.Path(waits[1]).exists)
        if checkpoints_gone and number == checkpoints_gone[0] and not broken:
            directory = pathlib.Path(checkpoints_gone[1]) / "checkpoints"
            eventually((directory / str(checkpoints_gone[2])).exists)
            shutil.move(directory, directory.with_name("elsewhere"))
            directory.write_text("")
            broken.add(number)
        if metrics_full is not None and number >= metrics_full:
            setattr(reporting, "_write_all", _no_room)
        return arrays

    def nats(config: Any, params: Any, batch: Any, **options: Any) -> Any:
        mark = jnp.max(batch["segment_ids"])
        factor = jnp.where(mark >= _SPIKE, 20.0, jnp.where(mark >= _NONFINITE, jnp.nan, 1.0))
        return sum_nats(config, params, batch, **options) * factor

    setattr(RowLoader, "batch", batch)
    setattr(steps, "sum_nats", nats)


def _no_room(*_: Any) -> None:
    raise OSError(28, "No space left on device")


if __name__ == "__main__":
    from stagjax.cli import main

    inject(setattr, **json.loads(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
