"""Decoding: prefill, then steps in which all stacks run at the same time."""
