"""A persistent cache of compiled programs."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture
def cache(tmp_path):
    """The directory of JAX's persistent cache, as a user may set it, and taking every program."""
    wanted = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
