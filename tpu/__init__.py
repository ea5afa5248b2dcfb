"""Runs of stagjax on TPU pods, from nothing to tear-down; see tpu/README.md.

It runs from a clone, as `python -m tpu`, on any machine with Python and PyYAML: what it imports of stagjax needs no
JAX.
"""
