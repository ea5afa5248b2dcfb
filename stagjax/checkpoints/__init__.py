"""Models on disk: checkpoints of a run, exports, and one way to read either wherever it is kept."""
