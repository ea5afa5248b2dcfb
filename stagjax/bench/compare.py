"""Plans side by side: every variant against the plain decoder of as many layers, and what each choice buys.

The baseline gets the same program form, once on as many chips and once on the chips of one slice, because a StagFormer
on p slices may be compared with either: with what else could be done with the same chips, or with what it replaces.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from stagjax.bench.ledger import Calibration
from stagjax.bench.plan import Plan, Request, matched_baseline, plan
from stagjax.decoding.placement import PADDED, REPEATED


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan beside those of its baseline: on equal chips, and on the chips of one slice."""

    plan: Plan
    equal: Plan
    slice: Plan

    def to_dict(self) -> dict[str, Any]:
        """Return the step's estimates and their ratios to the baseline's, ready for JSON."""
        estimates = {}
        for ledger in self.plan.ledgers:
            key = ledger.compute, ledger.calibration
            own, equal, one_slice = ledger.step_ms, self.equal.step_ms(*key), self.slice.step_ms(*key)
            estimates[" + ".join(key)] = {
                "step_ms": own,
                "baseline_equal_chips_ms": equal,
                "baseline_one_slice_ms": one_slice,
                "ratio_equal_chips": own / equal,
                "ratio_one_slice": own / one_slice,
            }
        return {
            "name": self.plan.request.name,
            "batch": self.plan.request.batch,
            "decoding": self.plan.request.mode,
            "mesh": self.plan.mesh,
            "devices": self.plan.devices,
            "idle_devices": self.plan.idle_devices,
            "baseline": self.equal.request.name,
            "baseline_devices": [self.equal.devices, self.slice.devices],
            "estimates": estimates,
            "plan": self.plan.to_dict(),
        }


class Comparison:
    """Plans on one topology, each compiled once.

    Args:
      topology: its name.
      devices: all of its devices.
      calibrations: of the collectives.
      on_plan: called before each program is compiled, with what it is.
    """

    def __init__(
        self,
        topology: str,
        devices: Sequence[jax.Device],
        calibrations: Sequence[Calibration],
        on_plan: Callable[[str], None] = lambda text: None,
    ):
        self.topology, self.devices, self.calibrations, self.on_plan = topology, devices, calibrations, on_plan
        self._plans: dict[Request, Plan] = {}

    def row(self, request: Request) -> Row:
        """Plan a variant and its baselines."""
        own = self._plan(request)
        slices = own.mesh["stack"]
        # Recurrent decoding uses all chips as one slice; it replaces what would run on those of one of its passes.
        parts = slices if slices > 1 else request.config.model.num_stacks
        per_part = max(own.devices // parts, 1)
        # Three slices of four chips leave four of sixteen idle, which the baseline would use.
        equal = min(1 << (own.devices - 1).bit_length(), len(self.devices))
        return Row(
            own,
            self._plan(matched_baseline(request, equal)),
            self._plan(matched_baseline(request, 1 << (per_part.bit_length() - 1))),
        )

    def choices(self, request: Request) -> Iterator[tuple[str, Row]]:
        """Yield the plain form of a model, and what one choice after the other makes of it."""
        model = dataclasses.replace(request.config.model, cross_attention="sequential", cross_window=None, lag=1)

        def with_model(request: Request, **changes: Any) -> Request:
            changed = dataclasses.replace(request.config.model, **changes)
            return dataclasses.replace(request, config=dataclasses.replace(request.config, model=changed))

        plain = with_model(request, **{f.name: getattr(model, f.name) for f in dataclasses.fields(model)})
        plain = dataclasses.replace(plain, heads=REPEATED, rows=1)
        steps: list[tuple[str, Callable[[Request], Request]]] = [
            ("plain: heads repeated, one row a product", lambda r: r),
            ("+ heads padded", lambda r: dataclasses.replace(r, heads=PADDED)),
            ("+ rows padded to 8", lambda r: dataclasses.replace(r, rows=8)),
            ("+ parallel cross-attention", lambda r: with_model(r, cross_attention="parallel")),
            ("+ window 512", lambda r: with_model(r, cross_window=512)),
            ("+ window 128", lambda r: with_model(r, cross_window=128)),
            ("+ window 1", lambda r: with_model(r, cross_window=1)),
            ("+ lag 2", lambda r: with_model(r, lag=2)),
        ]
        current = plain
        for text, change in steps:
            current = change(current)
            yield text, self.row(dataclasses.replace(current, name=text))

    def _plan(self, request: Request) -> Plan:
        # The name does not change the program.
        key = dataclasses.replace(request, name="")
        if key not in self._plans:
            self.on_plan(f"{request.name}, batch {request.batch}")
            self._plans[key] = plan(request, self.topology, self.devices, self.calibrations)
        return dataclasses.replace(self._plans[key], request=request)
