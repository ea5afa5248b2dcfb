"""What a training mesh must divide: sizes alone, so that it is known before there are devices, and without JAX."""

from collections.abc import Mapping

from stagjax.config import Config, MeshConfig, ModelConfig
from stagjax.config_rules import divisors
from stagjax.errors import UserError

TRAINING_AXES = ("data", "fsdp", "stack", "tensor")


def check_pod(config: Config, devices: int, slices: int) -> None:
    """Raise `UserError` where a run of `config` would refuse `devices` devices in `slices` TPU slices."""
    sizes = training_sizes(config.mesh, devices, slices)
    rows = config.training.global_batch // config.training.accumulation
    check_sizes(config.model, dict(zip(TRAINING_AXES, sizes, strict=True)), rows, config.training.microbatches)


def training_sizes(config: MeshConfig, num_devices: int, slices: int = 1) -> tuple[int, int, int, int]:
    """Return the sizes of the training axes; `mesh.fsdp=None` takes the devices that the other axes leave.

    Raises:
      UserError: the sizes do not multiply to `num_devices`, or a TPU slice would hold a part of the parameters.
    """
    others = config.data * config.stack * config.tensor
    fsdp = config.fsdp
    if fsdp is None:
        if num_devices % others:
            raise UserError(
                f"mesh.data={config.data} x mesh.stack={config.stack} x mesh.tensor={config.tensor} = {others} does "
                f"not divide the {num_devices} devices; use a product of {_listed(divisors(num_devices))}"
            )
        fsdp = num_devices // others
    if others * fsdp != num_devices:
        raise UserError(
            f"mesh.data={config.data} x mesh.fsdp={fsdp} x mesh.stack={config.stack} x mesh.tensor={config.tensor} = "
            f"{others * fsdp}, but there are {num_devices} devices; set mesh.fsdp=None to take what is left"
        )
    if config.data % slices:
        raise UserError(
            f"mesh.data={config.data} is not a multiple of the {slices} TPU slices, between which only gradients "
            f"should travel; use mesh.data={slices}"
        )
    return config.data, fsdp, config.stack, config.tensor


def check_sizes(model: ModelConfig, sizes: Mapping[str, int], rows: int, microbatches: int | None = None) -> None:
    """Raise `UserError` where a training mesh does not divide the model, a batch part or its microbatches.

    Args:
      model: its config.
      sizes: of the mesh's axes.
      rows: of a batch part.
      microbatches: of a pipeline.
    """
    fsdp, slices = sizes["fsdp"], sizes["stack"]
    for field, axis in (
        ("num_heads", "tensor"),
        ("num_kv_heads", "tensor"),
        ("ff_dim", "tensor"),
        ("vocab_size", "tensor"),
        ("model_dim", "fsdp"),
    ):
        size = getattr(model, field)
        _divides("model", field, size, axis, sizes[axis])
    groups = sizes["data"] * fsdp
    over = f"mesh.data={sizes['data']} x mesh.fsdp={fsdp}"
    if rows % (groups * slices):
        raise UserError(
            f"training.global_batch / training.accumulation = {rows} rows do not divide over {over}"
            f"{f' x mesh.stack={slices}' if slices > 1 else ''}; use a multiple of {groups * slices} rows"
        )
    if slices > 1 and microbatches and rows // groups % microbatches:
        raise UserError(
            f"training.microbatches={microbatches} does not divide the {rows // groups} rows of a device ({rows} over "
            f"{over}); use one of {_listed(divisors(rows // groups))}, or None"
        )


def _divides(section: str, field: str, size: int, axis: str, ways: int) -> None:
    if size % ways:
        usable = ", ".join(str(divisor) for divisor in divisors(size) if divisor <= 256)
        padded = f", or {section}.{field}={-(-size // ways) * ways}" if field == "vocab_size" else ""
        raise UserError(f"{section}.{field}={size} does not divide over mesh.{axis}={ways}; use {usable}{padded}")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
