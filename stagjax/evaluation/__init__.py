"""Scores of a model: benchmarks, perplexity, programs that it wrote."""
