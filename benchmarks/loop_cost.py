"""What the training loop costs beside its compiled step: python benchmarks/loop_cost.py FILE:VARIANT [STEPS] [TURNS]

Turns of STEPS steps each, in one process: bare calls of the step on ready batches; the same, each reading the metrics
of the step before, as the loop does; and the loop.
"""

import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import jax

from stagjax.distributed import start_up
from stagjax.experiment import load_config
from stagjax.training import loop

ENDLESS = 10**6
FIELDS = ("steps", "checkpoint_every", "validate_every", "log_every")


class Timed(loop._Run):
    """A run whose steps are taken in turns by the loop and without it, and that is never saved."""

    num_steps, num_turns = 8, 20

    def go(self, restored: Any, first: Any = None) -> None:
        """Take the turns and print the table."""
        with self.goodput.phase("compile"):
            self._compile(restored, first)
        self.watch.begin()
        self.goodput.enter("step")
        # Of batches that the loop does not come to: its own are read meanwhile.
        ready = [self._read(ENDLESS // 2 + index) for index in range(self.num_steps)]
        kinds = {
            "bare calls": lambda: self.bare(ready, reads=False),
            "bare calls, metrics read one step late": lambda: self.bare(ready, reads=True),
            "the loop": self.looped,
        }
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(self.num_turns + 1):
            order = list(kinds)[turn % len(kinds) :] + list(kinds)[: turn % len(kinds)]
            for name in order:
                jax.block_until_ready(self.state)
                begun = time.perf_counter()
                kinds[name]()
                taken[name].append((time.perf_counter() - begun) / self.num_steps)
        bare = taken["bare calls"]
        for name, seconds in taken.items():
            # The first turn warms up.
            ratio = statistics.median(own / other for own, other in zip(seconds[1:], bare[1:], strict=True))
            print(f"{name:40} {1e3 * statistics.median(seconds[1:]):8.2f} ms a step  {ratio:.3f} of bare calls")

    def bare(self, batches: list[Any], reads: bool) -> None:
        """Call the step on each batch."""
        before = None
        for batch in batches:
            self.state, metrics = self.train_step(self.state, batch, self.byte_lengths_V)
            if reads and before is not None:
                jax.device_get(before)
            before = metrics
        jax.block_until_ready((self.state, metrics))

    def looped(self) -> None:
        """Take as many steps as the loop does."""
        for _ in range(self.num_steps):
            self._advance()
        self._settle()


def main(spec: str, steps: int = 8, turns: int = 20) -> None:
    """Measure an experiment on the devices that are there."""
    start_up()
    config = load_config(spec, [f"training.{field}={ENDLESS}" for field in FIELDS])
    Timed.num_steps, Timed.num_turns = steps, turns
    loop._Run = Timed
    with tempfile.TemporaryDirectory() as directory:
        loop.train(config, pathlib.Path(directory) / "run")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
