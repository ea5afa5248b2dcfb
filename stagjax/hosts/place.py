"""Which of a run's processes this one is, as flags or the environment say it."""

import os
from typing import NamedTuple

from stagjax.errors import UserError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = "STAGJAX_COORDINATOR", "STAGJAX_NUM_PROCESSES", "STAGJAX_PROCESS_ID"
MOST_PROCESSES = 1 << 16


class Place(NamedTuple):
    """This process among those of a run.

    Attributes:
      process_id: from 0 on; 0 is the one that the others look for.
      num_processes: of the run.
      coordinator: "HOST:PORT" of process 0.
    """

    process_id: int
    num_processes: int
    coordinator: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0; the brackets of an IPv6 address are taken off."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_loopback(self) -> bool:
        """Whether all processes are on one machine and nobody else should reach them."""
        return self.address[0] in ("localhost", "::1") or self.address[0].startswith("127.")


def told(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Place | None:
    """Return the place that flags or, where one is not given, the environment variable of its name say.

    Returns:
      None where nothing is said: the process is alone, or one of a cluster that JAX knows how to ask.

    Raises:
      UserError: one of the three is missing, or has no meaning.
    """
    said = {
        "--coordinator": coordinator or os.environ.get(COORDINATOR),
        "--num-processes": os.environ.get(NUM_PROCESSES) if num_processes is None else num_processes,
        "--process-id": os.environ.get(PROCESS_ID) if process_id is None else process_id,
    }
    missing = [name for name, value in said.items() if value in (None, "")]
    if len(missing) == len(said):
        return None
    if missing:
        raise UserError(
            f"{', '.join(name for name in said if name not in missing)} without {', '.join(missing)}: a process of "
            f"several is told all three, by flags or by {COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID}"
        )
    count, index = (_number(name, said[name]) for name in ("--num-processes", "--process-id"))
    if not 1 <= count <= MOST_PROCESSES:
        raise UserError(
            f"--num-processes={count} is outside 1..{MOST_PROCESSES}; say how many processes the run has in all"
        )
    if index >= count:
        raise UserError(f"--process-id={index} is not among --num-processes={count}, which count from 0")
    place = Place(index, count, str(said["--coordinator"]))
    _check_address(place.coordinator)
    return place


def as_environment(place: Place) -> dict[str, str]:
    """Return the variables from which `told` reads `place`."""
    values = (place.coordinator, str(place.num_processes), str(place.process_id))
    return dict(zip((COORDINATOR, NUM_PROCESSES, PROCESS_ID), values, strict=True))


def _number(name: str, value: int | str) -> int:
    if not str(value).isdecimal() or len(str(value)) > 9:
        raise UserError(f"{name}={value} is no number of up to nine digits; use 0, 1, 2, ...")
    return int(value)


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or not 1 <= int(port) <= 65535:
        raise UserError(
            f"--coordinator={coordinator} is not HOST:PORT; give the address of process 0 as all hosts reach it and a "
            "port that is free there, e.g. 10.0.0.2:8476"
        )
