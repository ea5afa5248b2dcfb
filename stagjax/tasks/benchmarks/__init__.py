"""One file for each benchmark; each has `BENCHMARKS`, and `stagjax.tasks.catalog` finds it."""
