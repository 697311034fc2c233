"""How a run is carried out, whatever its task: declared here once, for Python and for the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from offprint.errors import OffprintError, unknown

PRECISIONS = (
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "transformer-engine", "32", "16", "bf16", "64",
)  # fmt: skip
LOGGERS = ("csv", "tensorboard", "both", "none")


def _told(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Run:
    """The settings that every training run shares.

    Attributes:
        resume: go on from the run in the folder where there is one; the result is that of an uninterrupted run.
        precision, devices, accelerator, strategy, num_nodes: Lightning's.
        accumulate: batches per step of the optimizer.
        workers: processes that load data.
        seed: of everything random.
        logger: ``csv``, ``tensorboard``, ``both`` or ``none``.
        patience: stop after so many validations without a better one (0: never; ``None``: what the recipe says).
        progress: show a progress bar.

    Raises:
        OffprintError: a setting that cannot be, or hardware that is not there; before any work.
    """

    resume: bool = _told(True, "Go on from the run in --out if there is one.")
    precision: str = _told("32-true", "32-true, bf16-mixed, 16-mixed, ...")
    devices: int | str = _told(1, "Number of devices, or 'auto'.")
    accelerator: str = _told("auto", "cpu, gpu, ... or auto.")
    strategy: str = _told("auto", "ddp, fsdp, ... as Lightning names them.")
    num_nodes: int = _told(1, "Machines.")
    accumulate: int = _told(1, "Batches per step.")
    workers: int = _told(0, "Loader processes.")
    seed: int = _told(0, "Of everything random.")
    logger: str = _told("csv", "csv, tensorboard, both or none.")
    patience: int | None = _told(None, "Stop after so many validations without a better one.")
    progress: bool = _told(True, "Show a progress bar.")

    def __post_init__(self):
        if str(self.precision) not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.logger not in LOGGERS:
            raise OffprintError(f"logger={self.logger!r}; choose csv, tensorboard, both or none")
        for name, low in (("accumulate", 1), ("num_nodes", 1), ("workers", 0), ("patience", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise OffprintError(f"{name}={value}; it must be {low} or more")
        if isinstance(self.devices, str) and self.devices.isdigit():
            object.__setattr__(self, "devices", int(self.devices))
        if isinstance(self.devices, int) and self.devices == 0:
            raise OffprintError("devices=0; give 1 or more, or 'auto'")
        check_accelerator(self.accelerator)

    def but(self, **changes: Any) -> Run:
        """The same with some settings changed; an unknown one is refused."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise unknown("setting of the run", name, known)
        return dataclasses.replace(self, **changes)


def check_accelerator(name: str) -> None:
    """Refuse an accelerator that Lightning does not know or this machine does not have."""
    if name in ("auto", "cpu"):
        return
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    if name not in known:
        raise unknown("accelerator", name, known)
    having = [n for n in known[2:] if _available(AcceleratorRegistry, n)]
    if name not in having and not (name == "gpu" and {"cuda", "mps"} & set(having)):
        raise OffprintError(
            f"accelerator={name!r} is not on this machine; there is {', '.join(having) or 'none'}; leave it out, or give auto"
        )


def _available(registry, name: str) -> bool:
    try:
        return bool(registry.get(name).is_available())
    except Exception:  # Lightning asks for the accelerator's own package first
        return False
