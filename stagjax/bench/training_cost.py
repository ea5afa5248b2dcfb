"""What a whole training run costs: from one planned step to days and chip-hours. All of it is estimated."""

import dataclasses
from collections.abc import Iterable, Mapping

from stagjax.bench.ledger import Ledger
from stagjax.config import Config
from stagjax.hardware import Chip
from stagjax.model.accounting import training_flops
from stagjax.model.kernels import splash_cycles

# Of the 9 matrix products in splash's three kernels (forward, gradients of q, of k and v) 2 are the forward pass's,
# which rematerialisation computes once more.
FORWARD_SHARE = 2 / 9


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """A run by one ledger's estimate of its step.

    Attributes:
      compute: of the ledger.
      calibration: of the ledger.
      step_ms: of the ledger.
      tokens_per_second: over all chips.
      mfu: model FLOPs (three forward passes, nothing twice) over the peak of all chips.
      days: of `training.steps` steps, without validation, checkpoints, or a host that is lost.
      chip_hours: over all chips of the topology, idle ones included.
    """

    compute: str
    calibration: str
    step_ms: float
    tokens_per_second: float
    mfu: float
    days: float
    chip_hours: float


def training_costs(
    config: Config, chip: Chip, devices: int, idle_devices: int, ledgers: Iterable[Ledger]
) -> list[TrainingCost]:
    """Return what `training.steps` steps cost by each ledger of one of them.

    Args:
      config: the experiment.
      chip: of the devices.
      devices: that the step uses.
      idle_devices: of the same topology.
      ledgers: estimates of a step.
    """
    tokens = config.training.global_batch * config.data.row_length
    costs = []
    for ledger in ledgers:
        seconds = 1e-3 * ledger.step_ms
        days = config.training.steps * seconds / 86_400
        costs.append(
            TrainingCost(
                compute=ledger.compute,
                calibration=ledger.calibration,
                step_ms=ledger.step_ms,
                tokens_per_second=tokens / seconds,
                mfu=1e-3 * flops_floor_ms(config, chip, devices) / seconds,
                days=days,
                chip_hours=24 * days * (devices + idle_devices) / chip.devices,
            )
        )
    return costs


def flops_floor_ms(config: Config, chip: Chip, devices: int) -> float:
    """Return the milliseconds of a step at the peak of all devices: an MFU of 1."""
    tokens = config.training.global_batch * config.data.row_length
    return 1e3 * training_flops(config.model, config.data.row_length) * tokens / (devices * chip.device_flops)


def attention_kernels_ms(config: Config, mesh: Mapping[str, int], chip: Chip) -> float:
    """Estimate the milliseconds that a device computes attention in splash's kernels, which no compiler's figure holds.

    By the cycles that were counted for v5e (`stagjax.model.kernels`); other chips are taken to need as many.

    Args:
      config: the experiment.
      mesh: sizes of the training axes.
      chip: whose clock it is.
    """
    model, length = config.model, config.data.row_length
    if chip.clock is None:
        return 0.0
    layers = model.layers_per_stack
    cycles = model.num_stacks * layers * splash_cycles(length, None)
    if model.cross_window != 1:
        cycles += (model.num_stacks - 1) * layers * splash_cycles(length, model.cross_window)
    if config.training.remat == "layer":
        cycles *= 1 + FORWARD_SHARE
    rows = config.training.global_batch / (mesh["data"] * mesh["fsdp"] * mesh["stack"])
    heads = -(-model.num_heads // mesh["tensor"])
    return 1e3 * rows * heads * cycles / chip.clock
