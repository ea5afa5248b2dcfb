"""What the benchmarks of SuperGLUE (Wang et al. 2019) have in common: their files and where they come from."""

from collections.abc import Callable

from stagjax.tasks.benchmark import Benchmark, Form, Prepared, Split
from stagjax.tasks.multiple_choice import ACC
from stagjax.tasks.records import Document, Reader, Record, json_lines
from stagjax.tasks.statistics import Metric

BOOLEAN = ("False", "True")


def benchmark(
    name: str,
    folder: str,
    form: Form,
    document: Callable[[Record], Document],
    counts: tuple[int, int],
    metrics: tuple[Metric, ...] = (ACC,),
    read: Reader | None = None,
    prepared: tuple[str, Callable[[Record], Document]] | None = None,
) -> Benchmark:
    """Return a benchmark of SuperGLUE.

    Args:
      name: of the benchmark.
      folder: as the official archive calls it.
      form: what is asked.
      document: a line of the official file -> document.
      counts: documents of the official validation and training file.
      metrics: the first is the one that tables show.
      read: reader of the files, where a line is not a document.
      prepared: name of the configuration in tensorflow-datasets, and its record -> document; by default the benchmark's
        name, with records like the official ones.
    """
    read = read or json_lines(document)
    config, from_prepared = prepared or (name, document)
    return Benchmark(
        name=name,
        directory=f"superglue/{folder}",
        evaluated=Split("validation", ("val.jsonl", "val_*.jsonl"), read, counts[0]),
        pool=Split("train", ("train.jsonl", "train_*.jsonl"), read, counts[1]),
        form=form,
        metrics=metrics,
        prepared=Prepared(f"super_glue/{config}", "validation", "train", from_prepared),
        origin=f"https://dl.fbaipublicfiles.com/glue/superglue/data/v2/{folder}.zip",
    )
