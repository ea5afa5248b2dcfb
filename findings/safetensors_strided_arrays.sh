#!/usr/bin/env bash
# safetensors 0.8.0 writes a NumPy array that is not C-contiguous as it lies in memory, under the array's own shape, so
# that another array is read back. No error, no warning; 0.7.0 wrote it as it reads. Two arrays that are met every day:
# the transposed view of a matrix, and a JAX array whose layout on the device is not row-major. The second comes from
# no one's choice: libtpu's default layouts of results are such, and here XLA's CPU client is asked for one.
# Seen: 0.7.0 reads back both as they are; 0.8.0 neither. Exits with 1 when either of the two behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
import safetensors.numpy
from jax.experimental.layout import Format, Layout

matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
x = jnp.asarray(matrix)
moved = jax.jit(lambda x: x + 0, out_shardings=Format(Layout((1, 0)), x.sharding))(x)
assert np.array_equal(moved, matrix)
read = safetensors.numpy.load(safetensors.numpy.save({"x": matrix.T}))["x"]
read_jax = safetensors.flax.load(safetensors.flax.save({"x": moved}))["x"]
print(f"safetensors {safetensors.__version__}, jax {jax.__version__}, numpy {np.__version__}")
print("  transposed NumPy view written", matrix.T.tolist(), "read", read.tolist())
print("  column-major JAX array written", matrix.tolist(), "read", read_jax.tolist())
right = [np.array_equal(read, matrix.T), np.array_equal(read_jax, matrix)]
sys.exit(right != [sys.argv[1] == "right"] * 2)
PYTHON
python3 -m venv "$folder/venv"
export JAX_PLATFORMS=cpu
for pair in 0.7.0:right 0.8.0:wrong; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 jax==0.10.2 flax==0.12.8 \
    "safetensors==${pair%:*}"
  "$folder/venv/bin/python" "$folder/try.py" "${pair#*:}"
done
