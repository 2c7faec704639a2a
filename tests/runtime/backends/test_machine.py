"""Threads and memory are what this process may use, not what the machine has."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.host.machine import (
    _ARM_PARTS,
    ProcessMemory,
    UsableMemory,
    cpu_features,
    cpu_name,
    is_confined,
    process_memory,
    usable_cores,
    usable_cpus,
    usable_memory,
)

MIB = 1 << 20
UNLIMITED_V1 = 9223372036854771712
MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\nHugePages_Total:       0\nSwapFree: 2000000 kB\n"
V2_MOUNT = "31 23 0:28 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"
V1_MOUNTS = "".join(
    f"{30 + i} 23 0:{28 + i} {{top}} /sys/fs/cgroup/{name} rw shared:9 - cgroup cgroup rw,{name}\n"
    for i, name in enumerate(("memory", "cpu,cpuacct"))
)
CPU, MEMORY = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def allow(monkeypatch, cpus):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(cpus), raising=False)


def v2(group="/app", top="/", **files):
    """A machine with control groups of version 2; `files` are of the process's own group, by their path below it."""
    at = "" if group.strip("/") == top.strip("/") else group.strip("/")
    own = {f"sys/fs/cgroup/{at}/{name}": text for name, text in files.items()}
    return {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": f"0::{group}",
        "proc/self/mountinfo": V2_MOUNT.format(top=top),
        **own,
    }


def v1(group="/docker/7", top="/", files=()):
    return {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": f"5:memory:{group}\n4:cpu,cpuacct:{group}\n1:name=systemd:{group}\n0::/",
        "proc/self/mountinfo": V1_MOUNTS.format(top=top),
        **dict(files),
    }


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("9000000 100000", 8), ("", 8)],
)
def test_a_quota_of_version_2_limits_the_threads(tmp_path, monkeypatch, quota, cpus):
    allow(monkeypatch, range(8))
    assert usable_cpus(tree(tmp_path, v2(**{"cpu.max": quota}))) == cpus


@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [("-1", "100000", 8), ("300000", "100000", 3), ("25000", "50000", 1), ("70000", "0", 8)],
)
def test_a_quota_of_version_1_limits_the_threads(tmp_path, monkeypatch, quota, period, cpus):
    allow(monkeypatch, range(8))
    files = {f"{CPU}/docker/7/cpu.cfs_quota_us": quota, f"{CPU}/docker/7/cpu.cfs_period_us": period}
    assert usable_cpus(tree(tmp_path, v1(files=files))) == cpus


def test_an_outer_group_limits_too_and_another_one_does_not(tmp_path, monkeypatch):
    allow(monkeypatch, range(16))
    group = v2("/system.slice/web.service", **{"cpu.max": "max 100000"})
    base = "sys/fs/cgroup"
    tree(tmp_path, {**group, f"{base}/system.slice/cpu.max": "400000 100000", f"{base}/other/cpu.max": "1000 100000"})
    assert usable_cpus(tmp_path) == 4


@pytest.mark.parametrize("top", ["/docker/7", "/host/name/of/it"])
def test_a_container_finds_its_limits_at_the_mount(tmp_path, monkeypatch, top):
    """Docker without a name space of control groups: the process sees the host's name, and its own group mounted."""
    allow(monkeypatch, range(8))
    files = {f"{CPU}/cpu.cfs_quota_us": "200000", f"{CPU}/cpu.cfs_period_us": "100000"}
    files |= {f"{MEMORY}/memory.limit_in_bytes": 512 * MIB, f"{MEMORY}/memory.usage_in_bytes": 100 * MIB}
    tree(tmp_path, v1("/docker/7", top, files))
    assert usable_cpus(tmp_path) == 2
    assert usable_memory(tmp_path).total == 512 * MIB
    (tmp_path / "proc/self/cgroup").write_text("0::/../../outside\n5:memory:/../x\n4:cpu,cpuacct:/../x\n")
    assert usable_cpus(tmp_path) == 2


@given(
    allowed=st.integers(1, 64),
    quotas=st.lists(st.none() | st.integers(1_000, 6_400_000), min_size=3, max_size=3),
    version=st.sampled_from([1, 2]),
)
def test_threads_are_the_least_of_all_limits(tmp_path_factory, allowed, quotas, version):
    root = tmp_path_factory.mktemp("machine")
    files = v1("/a/b") if version == 1 else v2("/a/b")
    for folder, quota in zip(("", "a", "a/b"), quotas, strict=True):
        if version == 2:
            files[f"sys/fs/cgroup/{folder}/cpu.max"] = f"{quota or 'max'} 100000"
        else:
            files[f"{CPU}/{folder}/cpu.cfs_quota_us"] = quota or -1
            files[f"{CPU}/{folder}/cpu.cfs_period_us"] = 100000
    tree(root, files)
    with pytest.MonkeyPatch.context() as patch:
        allow(patch, range(allowed))
        found = usable_cpus(root)
    assert found == max(1, min([allowed, *(math.ceil(quota / 100000) for quota in quotas if quota)]))
    shutil.rmtree(root)


def test_processors_of_one_core_count_once_for_a_session(tmp_path, monkeypatch):
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    tree(tmp_path, {topology.format(cpu): f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    for allowed, cores in ((range(8), 4), ((0, 4), 1), ((0, 1, 5), 2), ((9, 10), 2)):
        allow(monkeypatch, allowed)
        assert usable_cores(tmp_path) == cores
        assert usable_cpus(tmp_path) == len(allowed)


def test_a_whole_machine_is_not_confined(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    allow(monkeypatch, range(8))
    assert not is_confined(tmp_path)
    assert is_confined(tree(tmp_path, v2(**{"cpu.max": "700000 100000"})))
    allow(monkeypatch, range(3))
    assert is_confined(tmp_path / "nothing")


def test_a_system_without_affinity_has_all_its_processors(tmp_path, monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert usable_cpus(tmp_path) == 5
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, UsableMemory(16000000 << 10, 12000000 << 10, 2000000 << 10)),
        (
            {"memory.max": "max", "memory.current": 5 * MIB, "memory.swap.max": "max", "memory.swap.current": 0},
            UsableMemory(16000000 << 10, 12000000 << 10, 2000000 << 10),
        ),
        (
            {
                "memory.max": 1000 * MIB,
                "memory.current": 300 * MIB,
                "memory.stat": f"anon 5\ninactive_file {100 * MIB}",
            },
            UsableMemory(1000 * MIB, 800 * MIB, 2000000 << 10),
        ),
        (
            {"memory.max": 100 * MIB, "memory.current": 120 * MIB, "memory.swap.max": 0, "memory.swap.current": 0},
            UsableMemory(100 * MIB, 0, 0),
        ),
    ],
)
def test_memory_of_version_2(tmp_path, files, expected):
    assert usable_memory(tree(tmp_path, v2(**files))) == expected


@pytest.mark.parametrize(
    ("limit", "used", "both", "expected"),
    [
        (UNLIMITED_V1, 5 * MIB, UNLIMITED_V1, UsableMemory(16000000 << 10, 12000000 << 10, 2000000 << 10)),
        (1000 * MIB, 300 * MIB, 1500 * MIB, UsableMemory(1000 * MIB, 900 * MIB, 500 * MIB)),
        (1000 * MIB, 300 * MIB, 1000 * MIB, UsableMemory(1000 * MIB, 900 * MIB, 0)),
    ],
)
def test_memory_of_version_1(tmp_path, limit, used, both, expected):
    own = f"{MEMORY}/docker/7"
    files = {
        f"{own}/memory.limit_in_bytes": limit,
        f"{own}/memory.usage_in_bytes": used,
        f"{own}/memory.memsw.limit_in_bytes": both,
        f"{own}/memory.memsw.usage_in_bytes": used,
        f"{own}/memory.stat": f"inactive_file 7\ntotal_inactive_file {200 * MIB}",
    }
    assert usable_memory(tree(tmp_path, v1(files=files))) == expected


@given(limits=st.lists(st.none() | st.integers(1, 1 << 40), min_size=3, max_size=3), used=st.integers(0, 1 << 38))
def test_memory_is_the_least_of_all_limits(tmp_path_factory, limits, used):
    root = tmp_path_factory.mktemp("memory")
    files = v2("/a/b")
    for folder, limit in zip(("", "a", "a/b"), limits, strict=True):
        files[f"sys/fs/cgroup/{folder}/memory.max"] = limit or "max"
        files[f"sys/fs/cgroup/{folder}/memory.current"] = used
    found = usable_memory(tree(root, files))
    known = [limit for limit in limits if limit]
    assert found.total == min([16000000 << 10, *known])
    assert found.available == min([12000000 << 10, *(max(0, limit - used) for limit in known)])
    shutil.rmtree(root)


@pytest.mark.parametrize("text", [None, "", "MemTotal:       64349184 kB\n", "MemTotal:\nMemAvailable: much\n"])
def test_memory_that_the_system_does_not_tell_is_unknown(tmp_path, text):
    assert usable_memory(tree(tmp_path, {} if text is None else {"proc/meminfo": text})) is None


@pytest.mark.parametrize("name", ["proc/self/cgroup", "proc/self/mountinfo", "sys/fs/cgroup/app/cpu.max"])
@given(text=st.text(st.sampled_from("0:/ -,x\n9macgroup2"), max_size=60))
def test_odd_files_never_stop_it(tmp_path_factory, name, text):
    root = tmp_path_factory.mktemp("odd")
    tree(root, {**v2(**{"cpu.max": "100000 100000"}), name: text})
    assert usable_cpus(root) >= 1
    assert usable_memory(root) is not None
    shutil.rmtree(root)


ORIN = "processor\t: {}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("".join(ORIN.format(cpu) for cpu in range(12)), "Cortex-A78AE"),
        (
            "CPU implementer\t: 0x41\nCPU part\t: 0xd05\n\nCPU implementer\t: 0x41\nCPU part\t: 0xd46\n",
            "Cortex-A55 + Cortex-A510",
        ),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd08\nModel\t: Raspberry Pi 4\n", "Cortex-A72"),
        ("processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t: fpu avx2 avx512f vmx\n", "AMD EPYC 9R14"),
        ("CPU implementer\t: 0x4e\nCPU part\t: 0x004\n", "Carmel"),
    ],
)
def test_a_processor_is_named_as_people_call_it(tmp_path, text, name):
    assert cpu_name(tree(tmp_path, {"proc/cpuinfo": text})) == name


@pytest.mark.parametrize("text", ["", "CPU implementer : 0x99\nCPU part : 0x123", "CPU implementer : x\nCPU part : y"])
def test_an_unknown_processor_has_some_name(tmp_path, text):
    found = cpu_name(tree(tmp_path, {"proc/cpuinfo": text}))
    assert found
    assert ("part" in found) == bool(text)


def test_features_are_those_that_kernels_ask_for(tmp_path):
    tree(tmp_path / "x86", {"proc/cpuinfo": "flags\t: fpu vmx avx2 sse4_1 ssse3 amx_tile f16c"})
    assert cpu_features(tmp_path / "x86").split()[1:] == ["amx_tile", "avx2", "f16c", "sse4_1", "ssse3"]
    tree(tmp_path / "arm", {"proc/cpuinfo": ORIN})
    assert cpu_features(tmp_path / "arm").split()[1:] == ["asimd", "asimddp", "fp"]


THREADS = """
import os, sys
from runtime import Pipeline
pipeline = Pipeline.load(sys.argv[1], num_threads=int(sys.argv[2]) or None, engine="none")
print(len(os.listdir("/proc/self/task")))
"""


def threads(bundle, num_threads, *before):
    """Threads of a process that has loaded a bundle."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [*before, sys.executable, "-c", THREADS, bundle, str(num_threads)]
    return int(subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout)


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset (apt install util-linux)")
def test_on_one_allowed_processor_a_session_starts_no_threads(tiny_bundle):
    assert threads(tiny_bundle, 0, "taskset", "-c", str(min(os.sched_getaffinity(0)))) == 1
    assert threads(tiny_bundle, 1) == 1
    assert threads(tiny_bundle, 2, "taskset", "-c", str(min(os.sched_getaffinity(0)))) > 1, "what was asked for"


def test_a_session_of_a_confined_process_takes_its_cores(monkeypatch):
    from runtime.backends.host import ort

    monkeypatch.setattr(ort, "usable_cores", lambda: 3)
    monkeypatch.setattr(ort, "is_confined", lambda: True)
    assert ort.session_options(None).intra_op_num_threads == 3
    assert ort.session_options(5).intra_op_num_threads == 5
    monkeypatch.setattr(ort, "is_confined", lambda: False)
    assert ort.session_options(None).intra_op_num_threads == 0, "its own choice, bound to cores"


def test_this_machine_is_read(tmp_path):
    assert 1 <= usable_cores() <= usable_cpus() <= (os.cpu_count() or 1)
    if Path("/proc/meminfo").exists():
        memory = usable_memory()
        assert 0 < memory.available <= memory.total


def test_what_this_process_takes_is_told_in_bytes(tmp_path):
    told = tree(tmp_path, {"proc/self/status": "Name:\tpython\nVmHWM:\t    9000 kB\nVmRSS:\t    5000 kB"})
    assert process_memory(told) == ProcessMemory(now=5000 << 10, peak=9000 << 10)
    assert process_memory(tmp_path / "none") is None


def test_the_peak_stays_when_the_memory_is_given_back():
    before = process_memory()
    held = bytearray(b"x") * (64 * MIB)
    during = process_memory()
    del held
    after = process_memory()
    assert during.now - before.now > 60 * MIB and after.now < during.now
    assert after.peak > during.now - MIB  # the kernel counts pages of each processor in batches
    assert after.peak_mib == after.peak // MIB


def test_processors_of_one_implementer_have_one_number():
    names = {}
    for (implementer, _), name in _ARM_PARTS.items():
        names.setdefault(name.split("-")[0], set()).add(implementer)
    assert names["Cortex"] == names["Neoverse"] == {0x41}
