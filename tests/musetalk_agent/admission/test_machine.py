"""Cores and memory as the system's files say them: both versions of the control groups, limits at any level, files that lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from musetalk_agent.admission.machine import Host, Memory

GIB = 1 << 30
MEMINFO = f"MemTotal: {8 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {6 * GIB // 1024} kB\nHugePages_Total: 0\n"
STATUS = "Name:\tpython\nVmRSS:\t 900 kB\nRssAnon:\t 500 kB\nRssFile:\t 390 kB\nRssShmem:\t 10 kB\n"


def system(root: Path, **files: str) -> Host:
    """A system of files named by their paths, `__` for a slash, beside those that every system has."""
    common = {"proc__meminfo": MEMINFO, "proc__self__status": STATUS}
    for name, text in {**common, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root, affinity=4)


def test_without_control_groups_cores_are_those_of_the_affinity_and_memory_is_the_machines(tmp_path: Path) -> None:
    machine = system(tmp_path)
    assert machine.cores() == 4
    assert machine.memory() == Memory(limit=8 * GIB, free=6 * GIB, own=510 * 1024)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("150000 100000", 1.5), ("900000 100000", 4), ("1000 100000", 0.1), ("", 4)]
)
def test_version_2_limits_the_cores(tmp_path: Path, quota: str, cores: float) -> None:
    machine = system(tmp_path, proc__self__cgroup="0::/\n", **{"sys__fs__cgroup__cpu.max": quota})
    assert machine.cores() == cores


def test_the_narrowest_group_counts_and_the_path_of_the_host_is_passed_over(tmp_path: Path) -> None:
    above = {"sys__fs__cgroup__pod__cpu.max": "200000 100000", "sys__fs__cgroup__cpu.max": "300000 100000"}
    inner = {"sys__fs__cgroup__pod__agent__cpu.max": "250000 100000"}
    groups = "0::/pod/agent\n"
    assert system(tmp_path / "a", proc__self__cgroup=groups, **above, **inner).cores() == 2
    assert system(tmp_path / "b", proc__self__cgroup="0::/docker/abc\n", **above).cores() == 3
    assert system(tmp_path / "c", proc__self__cgroup=groups, **above).cores() == 2, "the inner one says nothing"


def test_version_1_has_a_folder_for_each_controller_and_minus_one_is_no_limit(tmp_path: Path) -> None:
    groups = "9:name=systemd:/\n4:memory:/agent\n2:cpu,cpuacct:/agent\n0::/\n"
    cpu = "sys__fs__cgroup__cpu__agent__cpu.cfs_"
    files = {f"{cpu}quota_us": "250000\n", f"{cpu}period_us": "100000\n"}
    assert system(tmp_path / "a", proc__self__cgroup=groups, **files).cores() == 2.5
    files[f"{cpu}quota_us"] = "-1\n"
    assert system(tmp_path / "b", proc__self__cgroup=groups, **files).cores() == 4


def test_the_memory_of_a_group_is_its_limit_and_files_that_it_would_give_up_are_free(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__memory."
    files = {
        f"{group}max": str(2 * GIB),
        f"{group}current": str(GIB),
        f"{group}stat": f"anon 5\ninactive_file {GIB // 2}\n",
    }
    memory = system(tmp_path, proc__self__cgroup="0::/\n", **files).memory()
    assert memory == Memory(limit=2 * GIB, free=3 * GIB // 2, own=510 * 1024)


def test_version_1_says_no_limit_by_a_large_number(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__memory__memory."
    files = {f"{group}limit_in_bytes": "9223372036854771712", f"{group}usage_in_bytes": str(GIB)}
    memory = system(tmp_path / "a", proc__self__cgroup="4:memory:/\n", **files).memory()
    assert memory is not None and (memory.limit, memory.free) == (8 * GIB, 6 * GIB)
    files |= {f"{group}limit_in_bytes": str(GIB), f"{group}stat": "inactive_file 1\ntotal_inactive_file 4096\n"}
    memory = system(tmp_path / "b", proc__self__cgroup="4:memory:/\n", **files).memory()
    assert memory is not None and (memory.limit, memory.free) == (GIB, 4096)


def test_a_group_that_is_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    files = {"sys__fs__cgroup__memory.max": "1000", "sys__fs__cgroup__memory.current": "2000"}
    memory = system(tmp_path, proc__self__cgroup="0::/\n", **files).memory()
    assert memory is not None and memory.free == 0


@pytest.mark.parametrize("missing", ["proc__meminfo", "proc__self__status"])
def test_a_system_that_does_not_say_sets_no_limit_of_memory(tmp_path: Path, missing: str) -> None:
    assert system(tmp_path, **{missing: "nothing: of use kB\n"}).memory() is None


def test_this_machine_answers() -> None:
    machine = Host()
    memory = machine.memory()
    assert machine.cores() >= 0.1 and machine.cpu_s() > 0
    assert memory is None or (0 < memory.own <= memory.limit and 0 <= memory.free <= memory.limit)
