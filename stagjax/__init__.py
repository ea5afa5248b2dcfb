"""stagjax: train, evaluate and benchmark StagFormer, whose layer stacks decode in parallel, in JAX."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Lazy: `import stagjax` and `stagjax --help` must not wait for JAX.
    if name == "load":
        from stagjax.library import load

        return load
    raise AttributeError(f"module 'stagjax' has no attribute {name!r}")
