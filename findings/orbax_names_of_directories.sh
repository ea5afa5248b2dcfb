#!/usr/bin/env bash
# Orbax 0.12.8 saves into a directory whose path has a glob class, as in runs/lr[1e-3], without an error or a warning,
# and nothing can be read again: the parts that each process wrote are looked for by a pattern in which the path stands
# unescaped, none is found, and the checkpoint is completed without them. The same holds for a backslash, which
# TensorStore's file driver takes for a separator of directories. A plain name is saved and read.
# Seen: the plain name reads back [0, 1, 2]; both others say saved and then NOT_FOUND. Exits with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PYTHON'
import importlib.metadata
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

print("orbax-checkpoint", ocp.__version__, "tensorstore", importlib.metadata.version("tensorstore"))
tree, unexpected = {"x": jnp.arange(3.0)}, 0
for name, reads in (("plain", True), ("lr[1e-3]", False), ("a\\b", False)):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{sys.argv[1]}/{name}/1", args=ocp.args.PyTreeSave(tree))
        restore = ocp.checkpoint_utils.construct_restore_args(tree)
        try:
            found = checkpointer.restore(f"{sys.argv[1]}/{name}/1", args=ocp.args.PyTreeRestore(restore_args=restore))
            seen = found["x"].tolist()
        except Exception as error:
            seen = next(word for word in (*str(error).split(":"), type(error).__name__) if word)
    print(f"  {name}: saved, read back as {seen}")
    unexpected += (seen == [0, 1, 2]) != reads
sys.exit(unexpected > 0)
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 numpy==2.4.6 orbax-checkpoint==0.12.8 \
  tensorstore==0.1.86
export JAX_PLATFORMS=cpu
"$folder/venv/bin/python" "$folder/try.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
