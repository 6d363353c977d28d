"""What torch and NVIDIA's driver say of a card, and why torch cannot compute on it. Looking never raises, and starts no kernel."""

from __future__ import annotations

import ctypes
import re
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}
"""The oldest driver (its first number) that runs programs built for any CUDA of this first number: NVIDIA's "CUDA Compatibility",
minor version compatibility."""
OLDER_BUILD = "cu126"
"""The build of torch for older drivers and cards: CUDA 12.6, with kernels for compute capability 5.0 to 9.0 (torch 2.15's own
`torch.cuda.PYTORCH_RELEASES_CODE_CC`)."""
_OLDER_BUILD_FROM, _OLDER_BUILD_TO = (5, 0), (9, 0)
_PROC = Path("/proc/driver/nvidia/version")
_NVML_NAME_BYTES = 96  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE is 80


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver. `version` is such as "580.95.05", None where no driver answers; `cuda` the newest CUDA that it runs."""

    version: str | None = None
    cuda: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class CardFacts:
    """One CUDA device as torch sees it.

    Attributes:
        device: `cuda:0` …
        torch: version with its build, such as "2.15.0+cu132".
        torch_cuda: the CUDA that torch was built for, such as "13.2"; None for a build without CUDA.
        driver: of NVIDIA.
        message: what CUDA said when it would not start; None when it started.
        count: devices that torch sees.
        name, capability: of the device, None where torch does not see it.
        kernels: what torch has kernels for: "sm_90", "compute_120" …
        memory_free, memory_total: bytes on the device, those of all processes counted; None where they are not known.
    """

    device: str
    torch: str
    torch_cuda: str | None
    driver: Driver
    message: str | None
    count: int
    name: str | None = None
    capability: tuple[int, int] | None = None
    kernels: tuple[str, ...] = ()
    memory_free: int | None = None
    memory_total: int | None = None

    @property
    def fault(self) -> str | None:
        """Why torch cannot compute on it and what to do, in sentences; None when nothing is known against it."""
        if self.torch_cuda is None:
            return (
                f"torch {self.torch} is built without CUDA: install a build with it (the extra [musetalk] brings one)."
            )
        if self.count == 0:
            return _no_device(self)
        if self.name is None:
            if self.message:
                return f"{self.device} does not answer ({self.message})."
            return f"There is no {self.device}: torch sees {self.count} of them, from cuda:0 on."
        if self.capability is not None and self.kernels and not runs_on(self.capability, self.kernels):
            return _no_kernels(self)
        return None


def look(device: str) -> CardFacts:
    """The facts of `cuda` or `cuda:N`. Imports torch, which takes a second or more; raises ImportError where it is not there."""
    torch: Any = import_module("torch")
    cuda, wanted = torch.cuda, int(device.partition(":")[2] or 0)
    driver, message, count = find_driver(), None, 0
    facts: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same words come with `init`
        try:
            if cuda.is_available():
                count = int(cuda.device_count())
            else:
                cuda.init()
            if wanted < count:
                properties = cuda.get_device_properties(wanted)
                facts = {"name": str(properties.name), "capability": (int(properties.major), int(properties.minor))}
                facts |= {"kernels": tuple(cuda.get_arch_list()), "memory_total": int(properties.total_memory)}
                facts["memory_free"] = int(cuda.mem_get_info(wanted)[0])
        except Exception as error:  # noqa: BLE001 - torch raises several kinds, also for a card that fell off the bus, and each is an answer
            message = _first_line(error)
    version = torch.version.cuda
    return CardFacts(device, str(torch.__version__), version, driver, message, count, **facts)


def runs_on(capability: tuple[int, int], kernels: tuple[str, ...]) -> bool:
    """Whether one of the kernels suits a device: machine code of its first number and no newer, or portable code no newer."""
    for name in kernels:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if not found:
            continue
        built, exact = (int(found[2]), int(found[3])), found[4] == "a"
        if found[1] == "compute":
            suits = built <= capability
        else:
            suits = built[0] == capability[0] and (built == capability if exact else built <= capability)
        if suits:
            return True
    return False


def find_driver() -> Driver:
    """The driver's version by NVML or the kernel's own word, and the CUDA that it runs, by libcuda. Never raises."""
    return Driver(_by_nvml() or _by_kernel(), _driver_cuda())


def _by_nvml() -> str | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None
        text = ctypes.create_string_buffer(_NVML_NAME_BYTES)
        failed = nvml.nvmlSystemGetDriverVersion(text, _NVML_NAME_BYTES)
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode(errors="replace") or None


def _by_kernel() -> str | None:
    try:
        found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", _PROC.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def _driver_cuda() -> tuple[int, int] | None:
    number = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else (number.value // 1000, number.value % 1000 // 10)


def _no_device(facts: CardFacts) -> str:
    driver, said = facts.driver, f' CUDA says: "{facts.message}"' if facts.message else ""
    major = int((facts.torch_cuda or "0").partition(".")[0])
    needed = DRIVER_OF_CUDA.get(major)
    built = f"torch {facts.torch} is built for CUDA {facts.torch_cuda}"
    wanted = f"a driver {needed} or newer" if needed else "a newer driver"
    if driver.cuda and driver.cuda[0] < major:
        has = f"the driver {driver.version or 'here'} runs CUDA {driver.cuda[0]}.{driver.cuda[1]} at most"
        older = f", or {_older_build(facts)}" if driver.cuda[0] >= 12 else ""
        return f"torch sees no CUDA device: {has}, and {built}. Install {wanted}{older}.{said}"
    if driver.version is None and driver.cuda is None:
        cure = f"Install {wanted} ({built}), or give the container the card (`--gpus all`)."
        return f"torch sees no CUDA device, and no driver of NVIDIA answers. {cure}{said}"
    cure = "Is the card given to this process (CUDA_VISIBLE_DEVICES, `--gpus all`)? `nvidia-smi` must list it."
    return f"torch sees no CUDA device (driver {driver.version or 'unknown'}; {built}). {cure}{said}"


def _no_kernels(facts: CardFacts) -> str:
    assert facts.capability is not None
    major, minor = facts.capability
    has = ", ".join(facts.kernels)
    text = (
        f"The {facts.name} has compute capability {major}.{minor}, and torch {facts.torch} has kernels for {has} only."
    )
    if _OLDER_BUILD_FROM <= facts.capability <= _OLDER_BUILD_TO:
        return f"{text} Install {_older_build(facts)}."
    return f"{text} Install a torch that has them."


def _older_build(facts: CardFacts) -> str:
    return f"torch {facts.torch.partition('+')[0]}+{OLDER_BUILD} (docs/how-to/operations.md, A card)"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
