"""The flags by which a process joins the others of a run; one place for all commands that have them."""

import argparse
from collections.abc import Mapping
from typing import Any

from stagjax import local_processes
from stagjax.cli import count, count_or_none, number
from stagjax.errors import UserError
from stagjax.hosts.place import told
from stagjax.rules import SECONDS

# What the processes of a run may be told differently; functions are none of their options.
_OWN = {"coordinator", "process_id", "num_processes", "join_timeout", "local_processes", "devices_per_process"}
_OWN |= {"argv", "overrides", "run", "measure"}


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--coordinator`, `--num-processes`, `--process-id`, `--join-timeout`, and those of `launch`."""
    group = parser.add_argument_group(
        "several hosts",
        "On a TPU pod, in SLURM and under Open MPI the same line on every host is enough. Elsewhere each\n"
        "process is told its place, by these flags or by STAGJAX_COORDINATOR, STAGJAX_NUM_PROCESSES and\n"
        "STAGJAX_PROCESS_ID. STAGJAX_SECRET_FILE names a file of 64 hexadecimal digits, the same for all,\n"
        "by which they know each other; without it whoever reaches the port can join.",
    )
    add = group.add_argument
    add("--coordinator", metavar="HOST:PORT", help="address of process 0, a port that is free there")
    add("--num-processes", type=count, metavar="N", help="processes of the run in all")
    add("--process-id", type=count_or_none, metavar="I", help="of this one, 0 to N-1")
    add(
        "--join-timeout",
        type=number(SECONDS),
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for the others before anything is computed (default: 300)",
    )
    add(
        "--local-processes",
        type=count,
        metavar="N",
        help="run on N processes of this machine, over its loopback network",
    )
    add(
        "--devices-per-process",
        type=count,
        metavar="K",
        help="of --local-processes: devices of the CPU that each sees",
    )


def launches(args: argparse.Namespace) -> bool:
    """Return whether this process is to start others with the same line, by `launch`, instead of computing itself.

    Raises:
      UserError: fewer than one process or device, or a place besides.
    """
    if args.local_processes is None or local_processes.is_one():
        return False
    if args.coordinator is not None:
        raise UserError(
            f"--local-processes={args.local_processes} chooses a --coordinator itself; leave one of them out"
        )
    return True


def launch(args: argparse.Namespace, **options: Any) -> int:
    """Run the same line in processes of this machine; `options` as `local_processes.launch`; return the exit status."""
    return local_processes.launch(args.local_processes, args.argv, args.devices_per_process, **options)


def start(args: argparse.Namespace, facts: Mapping[str, str] | None = None) -> None:
    """Start up, with the other processes of the run if there are any, to whom all options must have been given alike.

    Args:
      args: of a command with `add_host_arguments`.
      facts: what must be the same in all processes besides, e.g. the config; None for what the line says of it.

    Raises:
      UserError: the processes do not come together, or differ.
    """
    from stagjax.distributed import start_up

    options = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(args).items() if name not in _OWN}
    start_up(
        told(args.coordinator, args.num_processes, args.process_id), options | dict(facts or {}), args.join_timeout
    )
