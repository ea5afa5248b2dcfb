"""The flags by which a process joins the others."""

import argparse

import pytest

from stagjax.cli import hosts
from stagjax.errors import UserError


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "1e9"])
def test_the_wait_for_the_others_has_an_end(seconds):
    parser = argparse.ArgumentParser()
    hosts.add_host_arguments(parser)
    with pytest.raises(UserError, match="--join-timeout=.* is outside 0..604800 .a week.; say how many seconds"):
        hosts.start(parser.parse_args([f"--join-timeout={seconds}"]))
