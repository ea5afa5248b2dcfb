"""How fast prepared rows are read, in random order, by one core: python benchmarks/read_rows.py DIR [BATCH]"""

import sys
import time

from stagjax.data.loader import RowLoader
from stagjax.data.prepared import open_prepared

SECONDS = 3.0


def main(path: str, batch: int) -> None:
    """Print tokens a second of selecting rows, and of whole batches: selected, and expanded to what a model reads."""
    rows = open_prepared(path).rows("train")
    loader = RowLoader(rows, batch, seed=0)
    for name, work in (
        ("rows", lambda step: rows.select(loader.row_indices(step))),
        ("batches", loader.batch),
    ):
        work(0)
        steps, wall, processor = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < SECONDS:
            steps += 1
            work(steps)
        tokens = steps * batch * rows.row_length / 1e6
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"{name}: {tokens / processor:.1f} Mtok a second of processor time, {tokens / wall:.1f} of wall time")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128)
