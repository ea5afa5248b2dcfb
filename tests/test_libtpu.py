"""A machine that has libtpu and no TPU is not told so by every command."""

import importlib.util
import os
import subprocess
import sys

import pytest

from stagjax import libtpu
from tests.waits import HANG


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None or libtpu.has_tpus(), reason="needs libtpu and no TPU")
def test_a_command_starts_without_a_word_of_libtpus():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    code = "from stagjax.distributed import start_up; start_up(); import jax; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=HANG)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.strip()
