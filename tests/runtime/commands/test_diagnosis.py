"""The doctor tells what a machine can do, and is not confused by odd ones."""

import json
import types
from dataclasses import replace

import pytest
from click.testing import CliRunner

import cli
from runtime import RFError
from runtime.backends.cuda import driver as cuda_driver
from runtime.backends.cuda.driver import Gpu, probe_gpu, require_gpu
from runtime.commands.diagnosis import Machine, examine, format_report

ORIN = Gpu(name="Orin", compute_capability="8.7", memory_mib=62840, cuda_version="12.6")
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37\n"
JETSON = {"tensorrt": "10.3.0", "pycuda": "2024.1", "onnxruntime": "1.30.0", "cuda-bindings": "12.6.2"}


def machine(tmp_path, packages=(), gpu="no driver is installed", files=(), power=None):
    for name, text in dict(files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    installed = dict(packages)
    return Machine(
        root=tmp_path, probe=lambda: gpu, version=lambda module, name: installed.get(name), run=lambda command: power
    )


def tasks(facts):
    return {task["name"]: task for task in facts["tasks"]}


def test_a_jetson_is_recognised_with_its_software_and_power_mode(tmp_path):
    files = {
        "etc/nv_tegra_release": RELEASE,
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "proc/meminfo": "MemTotal:       64349184 kB\nMemAvailable:   61440000 kB\n",
        "proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n" * 12,
    }
    facts = examine(machine(tmp_path, JETSON, ORIN, files, "NV Power Mode: MAXN\n0\n"))
    assert facts["jetson"] == {
        "model": "NVIDIA Jetson AGX Orin Developer Kit",
        "l4t": "36.4.3",
        "jetpack": "6.1 or 6.2",
        "power": "MAXN",
    }
    assert facts["system"]["memory"] == "62841 MiB for this process, 60000 MiB free, 0 MiB of swap"
    found = tasks(facts)
    assert found["build, tensorrt"]["possible"]
    assert found["run, tensorrt"]["possible"]
    assert not found["export checkpoints"]["possible"]
    text = format_report(facts)
    assert "jetson power   MAXN" in text
    assert "Cortex-A78AE, " in text
    assert "Orin, compute capability 8.7, 62840 MiB, driver for CUDA 12.6" in text


@pytest.mark.parametrize(
    ("revision", "jetpack"),
    [
        ("R36 (release), REVISION: 3.0", "6.0"),
        ("R38 (release), REVISION: 2.1", "7.0"),
        ("R99 (release), REVISION: 1.0", None),
        ("R36 (release), REVISION: 40.0", None),
        ("nonsense", None),
    ],
)
def test_releases_are_mapped_to_jetpack_or_left_open(tmp_path, revision, jetpack):
    facts = examine(machine(tmp_path, files={"etc/nv_tegra_release": f"# {revision}, BOARD: x\n"}))
    assert facts["jetson"]["jetpack"] == jetpack


def test_what_is_missing_is_told_with_the_command(tmp_path):
    facts = examine(machine(tmp_path, {"tensorrt": "10.13.3"}, ORIN))
    run = tasks(facts)["run, tensorrt"]
    assert (run["possible"], run["missing"]) == (False, ["pycuda"])
    assert run["command"] == "pip install 'rf-export[tensorrt]'"
    assert "pip install 'rf-export[ort]'" in format_report(facts)


def test_a_missing_gpu_is_no_package(tmp_path):
    found = tasks(examine(machine(tmp_path, {**JETSON, "tensorrt-rtx": "1.7.1"})))
    assert found["run, tensorrt"]["missing"] == ["no driver is installed"]
    assert found["run, tensorrt"]["command"] == ""
    for name in ("build, tensorrt", "run, ort-cuda", "run, tensorrt-rtx"):
        assert "no driver is installed" in found[name]["missing"]
    assert found["build, tensorrt-rtx"]["possible"], "ahead of time"
    assert not found["run, tensorrt-rtx"]["possible"]


RTX_COMMANDS = {"build, tensorrt-rtx": "tensorrt-rtx", "run, tensorrt-rtx": "tensorrt-rtx,cuda"}


@pytest.mark.parametrize(
    ("wheels", "found"),
    [
        (("x86_64", "glibc", "2.36"), True),
        (("aarch64", "glibc", "2.35"), True),
        (("aarch64", "glibc", "2.31"), False),  # JetPack 5
        (("x86_64", "glibc", "2.17"), False),
        (("armv7l", "glibc", "2.36"), False),
        (("aarch64", "", ""), False),  # musl
        (("riscv64", "glibc", "2.39"), False),
    ],
)
def test_tensorrt_rtx_is_suggested_where_there_are_wheels(tmp_path, wheels, found):
    facts = examine(replace(machine(tmp_path), wheels=wheels))
    for name, extra in RTX_COMMANDS.items():
        task = tasks(facts)[name]
        assert task["command"] == (f"pip install 'rf-export[{extra}]'" if found else "")
        assert any("no wheels for" in reason for reason in task["missing"]) == (not found)
    assert tasks(facts)["run, tensorrt"]["command"], "of others it says nothing"


@pytest.mark.parametrize(("value", "state"), [(None, "off"), ("1", "off"), ("true", "off"), ("0", "on"), ("no", "on")])
def test_it_tells_whether_the_library_reports_home(tmp_path, monkeypatch, value, state):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if value is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    facts = examine(machine(tmp_path))
    assert facts["system"]["telemetry"] == f"ONNX Runtime's is {state} (ORT_DISABLE_TELEMETRY=0 allows it)"


def test_it_counts_the_threads_that_a_group_leaves(tmp_path, monkeypatch):
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
    }
    system = examine(machine(tmp_path, files=files))["system"]
    assert system["cpu"].endswith(" threads, 1 for this process")
    assert "--no-spinning" in system["spinning"]
    monkeypatch.setattr("runtime.commands.diagnosis.is_confined", lambda root: False)
    assert "spinning" not in examine(machine(tmp_path, files=files))["system"]


def test_missing_graphs_and_clashing_packages_are_noted(tmp_path):
    packages = {**JETSON, "onnxruntime-gpu": "1.30.0"}
    del packages["cuda-bindings"]
    text = format_report(examine(machine(tmp_path, packages, ORIN)))
    assert "slower without CUDA graphs: pip install cuda-bindings" in text
    assert "both installed: uninstall one of them" in text


def test_probes_that_fail_do_not_stop_the_others(tmp_path):
    def fail(*_):
        raise RuntimeError("odd")

    facts = examine(Machine(root=tmp_path / "nowhere", probe=fail, version=fail, run=fail))
    assert facts["gpu"] is None
    assert facts["gpu_missing"] == "the probe failed"
    assert not any(task["possible"] for task in facts["tasks"])
    assert format_report(facts)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:\n")
    assert format_report(examine(Machine(root=tmp_path, run=fail)))


def test_the_command_runs_here_as_text_and_as_json():
    result = CliRunner().invoke(cli.main, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "yes  build and run, ort" in result.stdout
    facts = json.loads(CliRunner().invoke(cli.main, ["doctor", "--json"], catch_exceptions=False).stdout)
    assert {"system", "gpu", "gpu_missing", "jetson", "packages", "tasks"} == set(facts)


class Driver:
    """libcuda.so.1 as ctypes shows it."""

    def __init__(self, code=0, count=1):
        self.code, self.count = code, count

    def cuInit(self, flags):
        return self.code

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.count
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def cuDeviceTotalMem_v2(self, pointer, device):
        pointer._obj.value = 24564 << 20
        return 0

    def cuDeviceGetAttribute(self, pointer, attribute, device):
        pointer._obj.value = {75: 8, 76: 9}[attribute]
        return 0

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = 13020
        return 0


def test_the_driver_tells_what_the_gpu_is():
    found = probe_gpu(lambda name: Driver())
    assert found == Gpu("NVIDIA GeForce RTX 4090", "8.9", 24564, "13.2")
    assert found.device.endswith(" sm_89")


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driver(100), "finds no GPU"),
        (Driver(count=0), "finds no GPU"),
        (Driver(804), "cannot run this CUDA"),
        (Driver(999), "cuInit failed with error 999"),
    ],
)
def test_a_driver_without_a_gpu_says_why(driver, reason):
    assert reason in probe_gpu(lambda name: driver)


def test_without_a_driver_nothing_crashes_and_the_backend_says_so(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    assert "no NVIDIA driver" in probe_gpu(missing)
    monkeypatch.setattr(cuda_driver, "probe_gpu", lambda: probe_gpu(missing))
    with pytest.raises(RFError, match=r"No GPU can be used: libcuda\.so\.1 is not there.*--backend ort"):
        require_gpu()


def test_the_driver_is_asked_before_tensorrt_is_touched(monkeypatch):
    """TensorRT's Runtime() ends the process without a driver, so that no error could tell."""
    from runtime.backends import create_backend

    touched = []
    monkeypatch.setattr(cuda_driver, "probe_gpu", lambda: "no driver")
    monkeypatch.setattr("runtime.backends.cuda.tensorrt.import_library", lambda name: touched.append(name))
    for name in ("tensorrt", "tensorrt-rtx", "ort-cuda"):
        with pytest.raises(RFError, match="No GPU can be used: no driver") as caught:
            create_backend(name)
        assert "TensorRT" not in str(caught.value)
    assert touched == []


def test_stubs_of_a_library_are_not_taken_for_it(monkeypatch):
    """pip's `tensorrt` without NVIDIA's index, and folders that are left over, import and hold nothing."""
    import sys

    from runtime.backends.cuda.tensorrt_library import import_library

    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    with pytest.raises(ModuleNotFoundError, match="No module named 'tensorrt'"):
        import_library("tensorrt")


@pytest.mark.parametrize(
    ("version", "is_told"), [("1.23.2", True), ("1.24.4", True), ("1.25.0", False), ("2.0", False)]
)
def test_it_tells_where_weight_only_int8_is_not_multiplied_as_int8(tmp_path, version, is_told):
    note = tasks(examine(machine(tmp_path, {"onnxruntime": version})))["build and run, ort"]["note"]
    told = f"ONNX Runtime {version[:4]} multiplies weight-only INT8 as floats"
    assert (told in note and "calibrate prefers static groups here" in note) is is_told
