"""The seqio registry: the only package that imports seqio and tensorflow-datasets."""
