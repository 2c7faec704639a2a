"""The device that PyTorch computes on, as far as a benchmark has to know it: waiting, capturing, kernel time, memory.

Knows nothing of models. The CPU does everything at once, so that the same benchmark runs there, with the figures that
it has no notion of left out (None).
"""

import gc
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP_RUNS = 3  # before a capture: libraries settle their state, and allocate (PyTorch's notes on CUDA graphs)


class Accelerator(Protocol):
    """What a benchmark asks of a device."""

    device: torch.device

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """A function that does what `body` does, as a CUDA graph where there are any; `body` may run before."""

    def kernel_seconds(self, run: Callable[[], object]) -> float | None:
        """Run, and tell how long the device was busy; None where it does not tell."""

    def used_bytes(self) -> int | None:
        """Memory of the device that is in use, by whomever."""

    def release(self) -> None:
        """Give back the memory of what nobody refers to any more."""

    def describe(self) -> dict[str, Any]:
        """For JSON."""


class Cpu:
    """See `Accelerator`."""

    device = torch.device("cpu")

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """`body` itself."""
        return body

    def kernel_seconds(self, run: Callable[[], object]) -> float | None:
        """Only run."""
        run()
        return None

    def used_bytes(self) -> int | None:
        """Not known."""
        return None

    def release(self) -> None:
        """Collect garbage."""
        gc.collect()

    def describe(self) -> dict[str, Any]:
        """No GPU."""
        return {"name": None}


class Cuda:
    """The first GPU; see `Accelerator`."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        torch.cuda.set_device(self.device)

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_RUNS):
                body()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return graph.replay

    def kernel_seconds(self, run: Callable[[], object]) -> float | None:
        """By CUPTI, which sees the work of every library of the process; None where it is not to be had."""
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        results = profiler.profiler.kineto_results if profiler.profiler is not None else None
        return busy_seconds(results.events()) if results is not None else None

    def used_bytes(self) -> int | None:
        """As the driver tells."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def release(self) -> None:
        """Also what PyTorch keeps in stock."""
        gc.collect()
        torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """Name, memory, and versions of what runs it."""
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_mib": properties.total_memory >> 20,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }


def busy_seconds(events: Iterable[Any]) -> float | None:
    """How long at least one kernel, copy or memset ran, from the events of a profile; None if there are none."""
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.is_user_annotation()
    )
    if not spans:
        return None
    busy, end = 0, spans[0][0]
    for start, stop in spans:
        busy += max(stop - max(start, end), 0)
        end = max(end, stop)
    return busy * 1e-9


def find_accelerator() -> Accelerator | str:
    """The GPU, or why there is none."""
    if not torch.backends.cuda.is_built():
        return f"this build of PyTorch {torch.__version__} has no CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU, or no driver for it"
    return Cuda()
