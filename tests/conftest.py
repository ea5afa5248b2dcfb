"""Settings of all tests: set before JAX starts, inherited by the processes that tests start."""

import os

# Tests compile many tiny programs once: optimising them costs more than it gives (measured: half the compile time).
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
