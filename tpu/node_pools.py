"""Node pools of GKE: one for each slice, in a cluster that is there; the commands that make and delete them."""

from stagjax.errors import UserError
from tpu.options import GkeOptions


def create_commands(options: GkeOptions) -> list[list[str]]:
    """Return what makes the node pools, and first the policy by which newer chips' slices are laid out.

    Raises:
      UserError: capacity that GKE does not have for this slice.
    """
    o, hosts = options, options.slice.gke_hosts
    commands, layout = [], []
    if hosts > 1 and o.slice.family.by_policy:
        layout = [f"--placement-policy={policy(o)}"]
        commands.append(
            [
                *("gcloud", "beta", "compute", "resource-policies", "create", "workload-policy", policy(o)),
                *_region(o),
                "--type=HIGH_THROUGHPUT",
                f"--accelerator-topology={o.slice.layout}",
            ]
        )
    elif hosts > 1:
        # GKE makes the compact placement of several hosts by itself from the topology.
        layout = [f"--tpu-topology={o.slice.layout}"]
    for pool in names(o):
        commands.append(
            [
                *("gcloud", "container", "node-pools", "create", pool, f"--cluster={o.cluster}", *place(o)),
                f"--node-locations={o.zone}",
                f"--machine-type={o.slice.gke_machine}",
                *layout,
                *_capacity(o),
            ]
        )
    return commands


def delete_commands(options: GkeOptions) -> list[list[str]]:
    """Return what deletes them; the policy, too, where there is one or --topology does not say."""
    pools = [
        ["gcloud", "container", "node-pools", "delete", pool, f"--cluster={options.cluster}", *place(options)]
        for pool in names(options)
    ]
    if options.slice and options.slice.family.by_policy and options.slice.gke_hosts > 1:
        pools.append(["gcloud", "compute", "resource-policies", "delete", policy(options), *_region(options)])
    return [[*command, "--quiet"] for command in pools]


def names(options: GkeOptions) -> list[str]:
    """Return what the node pools are called."""
    return [f"{options.name}-{index}" for index in range(options.slices)]


def policy(options: GkeOptions) -> str:
    """Return what the policy of their layout is called."""
    return f"{options.name}-layout"


def place(options: GkeOptions) -> list[str]:
    """Return the flags by which gcloud finds the cluster."""
    return [f"--project={options.project}", f"--location={options.location or options.zone}"]


def _region(options: GkeOptions) -> list[str]:
    return [f"--project={options.project}", f"--region={options.zone.rpartition('-')[0]}"]


def _capacity(options: GkeOptions) -> list[str]:
    o, hosts = options, options.slice.gke_hosts
    nodes = [f"--num-nodes={hosts}"]
    if o.capacity == "flex-start":
        if o.slice.family.accelerator == "v4":
            raise UserError("--capacity=flex-start: there is none for v4; use another --capacity or --topology")
        # The pool is empty until pods ask for nodes, which come all at once and go after the time that was asked for.
        return [
            *("--flex-start", "--reservation-affinity=none", "--no-enable-autorepair", "--enable-autoscaling"),
            *("--location-policy=ANY", "--num-nodes=0", "--min-nodes=0", f"--max-nodes={hosts}"),
            f"--max-run-duration={o.max_run_duration}",
        ]
    if o.capacity == "reserved":
        return [*nodes, "--reservation-affinity=specific", f"--reservation={o.reservation}"]
    return [*nodes, "--spot"] if o.capacity == "spot" else nodes
