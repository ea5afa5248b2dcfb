"""The command line: `python -m tpu TARGET VERB [flags] [-- the line that every worker runs]`."""

import argparse
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from stagjax.cli import Parser, count, count_or_none, number
from stagjax.errors import RunFailed, UserError
from stagjax.printable import one_line
from stagjax.rules import SECONDS, Number
from stagjax.streams import checked, make_lasting
from tpu import line, options
from tpu.gke import Gke, check_names
from tpu.kubernetes import check_generated
from tpu.local import LocalTarget
from tpu.options import CAPACITIES, GkeOptions, VmOptions
from tpu.restarts import Budget
from tpu.shell import Shell
from tpu.supervise import supervise
from tpu.topologies import Slice, find_slice, table
from tpu.vm import VmTarget

EPILOG = """\
examples:
  python -m tpu topologies
  python -m tpu local run --processes=2 --devices-per-process=4 --logs=logs -- \\
      stagjax train --config=experiments/stdlib.py:separate_2x3,runlocal --workdir=runs/two
  python -m tpu vm run --name=pile-1 --project=PROJECT --zone=ZONE --topology=v5e:16x16 --capacity=spot --dry-run -- \\
      stagjax train --config=experiments/pile.py:separate_2x18 --workdir=gs://BUCKET/pile-1
  python -m tpu gke run --name=pile-1 --project=PROJECT --zone=ZONE --cluster=CLUSTER --image=IMAGE \\
      --topology=v5e:16x16 --slices=2 --capacity=spot --dry-run -- \\
      stagjax train --config=experiments/pile.py:separate_2x18 --config.mesh.data=2 --workdir=gs://BUCKET/pile-1

--dry-run prints every command and manifest and runs nothing; it needs no account. All workers start again when one ends
with 75 or by a signal, and never after 2 or 3. tpu/README.md tells the rest.
"""

SLICES = Number(int, 1, 10_000)  # each is commands of its own
SPOT_SECONDS = 15  # of the 30 s that a machine has, Kubernetes keeps the rest for its own pods

VM_VERBS = {
    "create": "have the machines, set up",
    "run": "have the machines, set up, run, watch, start again where that helps, gather logs",
    "status": "the machines' state and every worker's",
    "logs": "fetch every worker's log",
    "stop": "SIGTERM to every worker: it saves and ends",
    "delete": "give the machines back; buckets and disks stay",
}
GKE_VERBS = {
    "create": "make a node pool for each slice, in a cluster that is there",
    "run": "create the JobSet, watch it, gather logs",
    "status": "the JobSet and its pods",
    "logs": "write every pod's log to a file",
    "stop": "delete the JobSet: SIGTERM to every pod, which saves and ends",
    "delete": "delete the node pools; the cluster, buckets and disks stay",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="python -m tpu",
        description="Set up, launch, watch and tear down runs of stagjax on TPU pods, or rehearse it on this machine.",
        epilog=EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    targets = parser.add_subparsers(dest="target", metavar="TARGET", required=True)
    targets.add_parser("topologies", help="the slices there are, by all their names")
    local = targets.add_parser("local", help="processes of this machine, by the same rules", allow_abbrev=False)
    verbs = local.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_local(verbs.add_parser("run", help="run, and start again where that helps", allow_abbrev=False))
    vm = targets.add_parser("vm", help="TPU VMs by queued resources", allow_abbrev=False)
    _add_verbs(vm, VM_VERBS, _add_vm)
    gke = targets.add_parser("gke", help="a JobSet on Google Kubernetes Engine", allow_abbrev=False)
    _add_verbs(gke, GKE_VERBS, _add_gke)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status; every expected failure is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    words, command = argv, []
    if "--" in argv:
        at = argv.index("--")
        words, command = argv[:at], argv[at + 1 :]
    make_lasting()
    try:
        return checked(_run(build_parser().parse_args(words), command), "tpu")
    except SystemExit as stop:  # of --help
        return checked(stop.code or 0, "tpu")
    except UserError as error:
        return _fail(2, error)
    except RunFailed as error:
        return _fail(3, error)
    except KeyboardInterrupt:
        return _fail(130, "interrupted")


def _run(args: argparse.Namespace, command: list[str]) -> int:
    if args.target == "topologies":
        _print_table()
        return 0
    if args.verb == "run" and not command:
        raise UserError("there is no line to run; give it after --, e.g. -- stagjax train --config=... --workdir=...")
    if args.verb != "run" and command:
        raise UserError(f"{args.target} {args.verb} runs nothing; leave out what follows --")
    return {"local": _local, "vm": _vm, "gke": _gke}[args.target](args, command)


def _local(args: argparse.Namespace, command: list[str]) -> int:
    environment = options.parse_environment(args.env)
    target = LocalTarget(command, args.processes, args.logs, args.devices_per_process, environment, grace=args.grace)
    if args.dry_run:
        for told in target.environments("127.0.0.1:PORT"):
            Shell(dry_run=True).run(["env", *(f"{name}={value}" for name, value in told.items()), *target.command])
        return 0
    return supervise(target, _budget(args), args.restart_on)


def _vm(args: argparse.Namespace, command: list[str]) -> int:
    options.required(name=args.name, project=args.project, zone=args.zone)
    options.check_name("name", args.name)
    options.check_name("run", args.run)
    for mount in args.mount:
        options.parse_mount(mount)
    if args.verb in ("create", "run"):
        options.check_source(args.source)
    options.check_duration("max-run-duration", args.max_run_duration, days=7)
    found = _slice(args)
    if found and not found.family.runtime:
        raise UserError(f"--topology={found.name}: there are no TPU VMs of it; use `gke`")
    if args.slices > 1:
        check_generated(args.name, {"a TPU VM": (f"-{args.slices - 1}", 40)})
    if args.verb == "run" and not args.unchecked:
        line.check_shipped(command, args.source, found.devices * args.slices, args.slices)
    ssh = [*args.ssh_flag, *(["--tunnel-through-iap"] if args.tunnel_through_iap else [])]
    ssh += [f"--batch-size={args.batch_size}"] if args.batch_size else []
    names = {"create_flags": args.create_flag, "ssh_flags": ssh, "mounts": args.mount}
    target = VmTarget(
        VmOptions(
            slice=found,
            environment=options.parse_environment(args.env),
            **{name: tuple(values) for name, values in names.items()},
            **_same(args, VmOptions),
        ),
        command,
        shell := Shell(args.dry_run),
    )
    if args.verb == "run" and shell.dry_run:
        _print_plan(target)
    elif args.verb == "run":
        return supervise(target, _budget(args), args.restart_on)
    elif args.verb == "create":
        target.prepare()
    elif args.verb == "status":
        print("\n".join(target.status()))
    elif args.verb == "logs":
        print(f"logs: {target.gather(0)}")
    elif args.verb == "stop":
        target.stop(signal.SIGTERM)
    elif _confirmed(args, f"the machines of {args.name} are given back and what only they hold is lost"):
        target.delete()
    return 0


def _gke(args: argparse.Namespace, command: list[str]) -> int:
    options.required(name=args.name, project=args.project, zone=args.zone, cluster=args.cluster)
    options.check_name("name", args.name)
    if args.verb == "run":
        options.required(image=args.image)
    options.check_duration("max-run-duration", args.max_run_duration, days=7)
    for mount in args.mount:
        options.parse_mount(mount)
    options.check_kubernetes("namespace", args.namespace)
    if args.service_account:
        options.check_kubernetes("service-account", args.service_account, dots=True)
    if args.capacity == "reserved":
        options.required(reservation=args.reservation)
    elif args.reservation:
        raise UserError(f"--reservation={args.reservation} with --capacity={args.capacity}; use --capacity=reserved")
    found = _slice(args)
    gke = Gke(
        GkeOptions(
            slice=found,
            mounts=tuple(args.mount),
            environment=options.parse_environment(args.env),
            restart_on=tuple(args.restart_on),
            **_same(args, GkeOptions),
        ),
        Shell(args.dry_run),
    )
    if args.slices > 1 and found and found.gke_hosts == 1:
        raise UserError(f"--slices={args.slices}: GKE joins only slices of several hosts; use a larger --topology")
    check_names(gke.options, args.using)
    if args.verb == "run" and not args.unchecked:
        line.check(command, pathlib.Path(), found.devices * args.slices, args.slices)
    if args.verb == "create":
        gke.create_pools()
    elif args.verb == "delete":
        if _confirmed(args, f"the node pools of {args.name} are deleted"):
            gke.delete_pools()
    else:
        gke.connect()
        if args.verb == "run":
            return _gke_run(gke, args.using, command)
        {"status": gke.status, "logs": lambda: print(f"logs: {gke.gather()}"), "stop": gke.delete}[args.verb]()
    return 0


def _gke_run(gke: Gke, using: str, command: list[str]) -> int:
    if gke.is_there():
        print(f"{gke.options.name} is under way: watching it")
    else:
        if gke.options.capacity == "spot":
            print(f"note: Kubernetes kills a spot pod about {SPOT_SECONDS} s after SIGTERM, whatever --grace says")
        gke.submit(command, using)
    status = gke.watch()
    print(f"logs: {gke.gather()}")
    return status


def _print_plan(target: VmTarget) -> None:
    """Print what a run does, step by step, without a cloud."""
    steps = {
        "if there is no such queued resource, or it was preempted (then it is deleted first)": [
            target.delete,
            lambda: Shell(dry_run=True).run(target.create_command()),
            target.wait_until_active,
        ],
        "set up every worker": [target.set_up],
        "start the same line on every worker": [lambda: target.start(0)],
        f"every {target.poll_seconds:g} s, until all have ended": [target.states],
        "when one fails: stop the others, fetch logs, and start all again after 75, a signal or a preemption": [
            lambda: target.stop(signal.SIGTERM),
        ],
        "fetch logs": [lambda: target.gather(0)],
    }
    for heading, actions in steps.items():
        print(f"# {heading}")
        for action in actions:
            action()


def _print_table() -> None:
    rows = [("--topology", "accelerator type", "chips", "TPU VMs", "GKE nodes", "GKE machine"), *table()]
    for row in rows:
        print("{:<12}{:<18}{:>6}{:>9}{:>11}  {}".format(*row))


def _slice(args: argparse.Namespace) -> Slice | None:
    return find_slice(args.topology) if args.topology or args.verb in ("create", "run") else None


def _confirmed(args: argparse.Namespace, what: str) -> bool:
    """Return whether the user means it; raise `UserError` where nobody can be asked."""
    if args.yes or args.dry_run:
        return True
    if not sys.stdin.isatty():
        raise UserError(f"{what}; say so with --yes")
    try:
        return input(f"{what}; go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _budget(args: argparse.Namespace) -> Budget:
    return Budget(args.max_restarts, args.backoff, args.healthy_after)


def _same(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """Return the arguments that are fields of the same name and need nothing done to them."""
    done = {"slice", "environment", "create_flags", "ssh_flags", "mounts", "restart_on"}
    return {name: getattr(args, name) for name in kind.__dataclass_fields__ if name not in done}


def _add_verbs(parser: argparse.ArgumentParser, verbs: dict[str, str], add: Any) -> None:
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in verbs.items():
        add(subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False))


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=count, default=1, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--devices-per-process", type=count_or_none, default=0, metavar="K", help="forced CPU devices of each"
    )
    _add_run(parser, grace=60.0)
    _add_restarts(parser)


def _add_vm(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--run", default="train", help="name of the run on the workers (default: %(default)s)")
    parser.add_argument("--source", type=pathlib.Path, default=pathlib.Path("."), help="clone to install (default: .)")
    parser.add_argument("--runtime", default="", help="software of the TPU VM (default: the family's own)")
    parser.add_argument(
        "--create-flag", action="append", default=[], metavar="FLAG", help="for queued-resources create"
    )
    parser.add_argument("--ssh-flag", action="append", default=[], metavar="FLAG", help="for ssh and scp")
    parser.add_argument("--tunnel-through-iap", action="store_true", help="ssh through IAP (gcloud alpha)")
    parser.add_argument("--batch-size", type=count, metavar="N", help="workers at a time by ssh (gcloud alpha)")
    parser.add_argument(
        "--requirements",
        type=pathlib.Path,
        metavar="FILE",
        help="versions to install; written at the first set-up (default: LOGS/NAME.requirements.txt)",
    )
    parser.add_argument("--poll-seconds", type=number(SECONDS), default=30.0, metavar="S", help="between two looks")
    _add_run(parser, grace=120.0)
    _add_restarts(parser)


def _add_gke(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--cluster", help="a cluster that is there, with the JobSet controller")
    parser.add_argument("--location", default="", help="of the cluster, where that is a region (default: the zone)")
    parser.add_argument("--image", help="container image with stagjax, see tpu/Dockerfile")
    parser.add_argument("--reservation", default="", help="its name, with --capacity=reserved")
    parser.add_argument("--namespace", default="default", help="of Kubernetes (default: %(default)s)")
    parser.add_argument("--service-account", default="", help="of Kubernetes, with access to the bucket")
    parser.add_argument("--using", choices=("kubectl", "xpk"), default="kubectl", help="default: %(default)s")
    parser.add_argument(
        "--max-restarts", type=count_or_none, default=100, metavar="N", help="of the JobSet's life (default: 100)"
    )
    _add_run(parser, grace=120)
    _add_restart_on(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="of the machines and what belongs to them")
    parser.add_argument("--project", help="of Google Cloud")
    parser.add_argument("--zone", help="where the TPUs are")
    parser.add_argument("--topology", help="of each slice, e.g. v5e:16x16; see `python -m tpu topologies`")
    parser.add_argument("--slices", type=number(SLICES), default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--capacity", choices=CAPACITIES, default="on-demand", help="default: %(default)s")
    parser.add_argument("--max-run-duration", default="7d", metavar="T", help="of flex-start (default: %(default)s)")
    parser.add_argument("--mount", action="append", default=[], metavar="WHAT:/DIR", help="read-only data, repeatable")
    parser.add_argument("--unchecked", action="store_true", help="do not check the line against the clone that is here")
    parser.add_argument("--yes", action="store_true", help="do not ask before deleting")


def _add_run(parser: argparse.ArgumentParser, grace: float) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print every command and manifest, run nothing")
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("logs"), metavar="DIR", help="default: logs")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="of the command, repeatable")
    parser.add_argument(
        "--grace", type=number(Number(type(grace), 0, 10**6)), default=grace, metavar="S", help="to save after a signal"
    )


def _add_restarts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-restarts", type=count_or_none, default=10, metavar="N", help="in a row (default: %(default)s)"
    )
    parser.add_argument(
        "--backoff",
        type=number(Number(float, 0, 1e6)),
        default=10.0,
        metavar="S",
        help="before the first, doubled each time",
    )
    parser.add_argument(
        "--healthy-after",
        type=number(Number(float, 0, 1e6)),
        default=600.0,
        metavar="S",
        help="an attempt that begins a new row",
    )
    _add_restart_on(parser)


def _add_restart_on(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--restart-on",
        action="append",
        type=number(Number(int, 1, 255)),
        default=[],
        metavar="STATUS",
        help="besides 75 and signals",
    )


def _fail(status: int, error: BaseException | str) -> int:
    print(f"tpu: {one_line(error)}", file=sys.stderr)
    return status
