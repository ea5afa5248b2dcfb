"""What a model can be compared with, by name; plain data, so that `--help` can list it at once."""

# Name of a comparator -> what it is. The order is that of reports.
COMPARATORS = {
    "baseline": "a plain decoder of as many layers, on all devices as one slice",
    "baseline_slice": "a plain decoder of as many layers, on the devices of one slice",
    "wide": "a plain decoder as deep as one stack, as wide as equal parameters allow, on all devices",
    "wide_slice": "a plain decoder as deep as one stack, as wide as equal parameters allow, on one slice",
    "one_slice": "the model itself, its stacks one after the other on the devices of one slice",
    "baseline_rows": "the plain decoder on all devices with p times the rows",
    "shallow_rows": "a plain decoder as deep as one stack on every slice: p times the rows in equal memory",
    "recurrent": "the model with one pass a token, on all devices as one slice",
    "windows": "the model with cross-attention to the last 512, 128 and 1 outputs",
    "parallel_cross": "the model with cross-attention beside self-attention",
}
