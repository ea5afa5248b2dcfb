"""How fast prepared rows are read, in any order, by one core: python benchmarks/read_rows.py DIR [BATCH [SECONDS]]"""

import sys
import time

from stagjax.data.loader import RowLoader
from stagjax.data.prepared import open_prepared


def main(path: str, batch: int = 128, seconds: float = 3.0) -> None:
    """Print tokens a second of selecting rows, and of whole batches: selected, and expanded to what a model reads."""
    rows = open_prepared(path).rows("train")
    loader = RowLoader(rows, batch, seed=0)
    for name, work in (
        ("rows", lambda step: rows.select(loader.row_indices(step))),
        ("batches", loader.batch),
    ):
        work(0)
        steps, wall, processor = 0, time.perf_counter(), time.process_time()
        while not steps or time.perf_counter() - wall < seconds:
            steps += 1
            work(steps)
        tokens = steps * batch * rows.row_length / 1e6
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"{name}: {tokens / processor:.1f} Mtok a second of processor time, {tokens / wall:.1f} of wall time")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *map(float, sys.argv[3:]))
