"""What this machine offers to the engine. Imports and asks drivers; uses no network."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mdinfer import __version__

NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "msgspec": "msgspec",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
}
OPTIONAL = {
    "huggingface_hub": ("huggingface_hub", "without it models are loaded from directories only"),
    "triton": ("triton", "without it there are no compiled kernels for GPUs"),
}
FULL_MODEL = "moondream/moondream3-preview"
FULL_MODEL_GIB = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    name: str
    memory_gib: float
    free_gib: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """problems keep the demo from running; advice would make more possible, or it faster."""

    versions: dict[str, str | None]
    devices: list[Device]
    kernels: str
    cached: bool
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def demo_can_run(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "demo_can_run": self.demo_can_run}

    def as_text(self) -> str:
        lines = ["versions"]
        lines += [f"  {name:<16} {found or 'missing'}" for name, found in self.versions.items()]
        lines += ["devices"]
        for device in self.devices:
            memory = f"{device.free_gib:.1f} of {device.memory_gib:.1f} GiB free"
            lines.append(f"  {device.name}: {memory}{', ' + device.detail if device.detail else ''}")
        lines += ["kernels", f"  {self.kernels}", "models", "  demo: built in"]
        lines += [f"  {FULL_MODEL}: {'in the local cache' if self.cached else 'not in the local cache'}"]
        lines += [f"problem: {text}" for text in self.problems] + [f"advice: {text}" for text in self.advice]
        lines += ["", "The demo can run: mdinfer serve demo" if self.demo_can_run else "The demo cannot run."]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    versions: dict[str, str | None] = {"mdinfer": __version__, "python": platform.python_version()}
    problems, advice = [], []
    if not (3, 10) <= sys.version_info[:2] < (3, 14):
        problems.append(f"Python is {platform.python_version()}, mdinfer needs 3.10 to 3.13")
    for module, package in NEEDED.items():
        versions[package], fault = _import(module, package)
        if fault:
            problems.append(f"{fault}: pip install {package}")
    for module, (package, effect) in OPTIONAL.items():
        versions[package], fault = _import(module, package)
        if fault:
            advice.append(f"{fault}, {effect}: pip install {package}")
    devices = [_cpu()]
    kernels = "none: torch is missing"
    if versions["torch"]:
        devices += _gpus()
        kernels = _kernels(gpu=len(devices) > 1)
        if fault := _engine_fault():
            problems.append(fault)
    advice += _memory_advice(devices)
    return Diagnosis(
        versions=versions,
        devices=devices,
        kernels=kernels,
        cached=_is_cached(FULL_MODEL),
        problems=problems,
        advice=advice,
    )


def _import(module: str, package: str) -> tuple[str | None, str]:
    """The version of a package that imports, or why it does not."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        return None, f"{package} is not installed" if missing else f"{package} does not import ({error})"
    except Exception as error:  # a broken native library may raise anything
        return None, f"{package} does not import ({type(error).__name__}: {error})"
    try:
        return metadata.version(package), ""
    except metadata.PackageNotFoundError:
        return "unknown", ""


def _engine_fault() -> str:
    try:
        importlib.import_module("mdinfer.engine")
    except Exception as error:
        return f"the engine does not import ({type(error).__name__}: {error}): reinstall mdinfer"
    return ""


def _kernels(*, gpu: bool) -> str:
    return "Triton on CUDA (proved without a GPU, not yet run on one), torch on the CPU" if gpu else "torch (CPU)"


def _cpu() -> Device:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    try:
        meminfo = Path("/proc/meminfo").read_text()
        free = next(int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemAvailable")) << 10
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, StopIteration):
        pass  # not Linux, or no limit is set
    detail = f"{os.cpu_count()} cores, {platform.machine()}"
    return Device(name="cpu", memory_gib=_gib(total), free_gib=_gib(min(free, total)), detail=detail)


def _gpus() -> list[Device]:
    import torch

    devices = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        detail = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        devices.append(Device(name=f"cuda:{i}", memory_gib=_gib(total), free_gib=_gib(free), detail=detail))
    return devices


def _memory_advice(devices: list[Device]) -> list[str]:
    advice = []
    if len(devices) == 1:
        advice.append("no CUDA GPU is visible: the full model runs on this CPU, slowly")
    if max(device.free_gib for device in devices) < FULL_MODEL_GIB:
        advice.append(f"no device has {FULL_MODEL_GIB} GiB free, which {FULL_MODEL} needs in bfloat16")
    return advice


def _is_cached(repository: str) -> bool:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (cache / f"models--{repository.replace('/', '--')}" / "snapshots").is_dir()


def _gib(count: int) -> float:
    return round(count / (1 << 30), 2)
