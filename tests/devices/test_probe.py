"""The probe, against made-up /proc and /sys trees of machines that are not here."""

from pathlib import Path

import pytest

from revedge.devices import bandwidth, probe

MEMINFO = """\
MemTotal: 7976000 kB
MemFree: 100000 kB
MemAvailable: 5000000 kB
SwapTotal: 4000000 kB
SwapFree: 3000000 kB
HugePages_Total: 0
"""
GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return the root of a machine with memory, and nothing else."""
    _write(tmp_path, {"proc/meminfo": MEMINFO})
    return tmp_path


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_memory_is_in_bytes(machine: Path) -> None:
    """MemTotal and its like are kB of 1024 bytes; without a cgroup MemAvailable is usable."""
    found = probe.probe(root=machine)

    assert found.mem_total_bytes == 7976000 * 1024
    assert found.mem_available_bytes == found.usable_bytes == 5000000 * 1024
    assert (found.swap_total_bytes, found.swap_free_bytes) == (4000000 * 1024, 3000000 * 1024)
    assert found.cgroup_limit_bytes is None
    assert found.tegra is False


def test_a_jetson_is_known_by_its_device_tree(machine: Path) -> None:
    """Strings of the device tree end in NUL; the release file's first line names L4T."""
    _write(
        machine,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\nmore\n",
            "proc/cpuinfo": "processor : 0\nBogoMIPS : 62.50\n",
            "proc/device-tree/cpus/cpu@0/compatible": "arm,cortex-a78\0",
        },
    )
    found = probe.probe(root=machine)

    assert found.tegra is True
    assert found.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.l4t == "R36 (release), REVISION: 4.3"
    assert found.cpu == "arm,cortex-a78"


@pytest.mark.parametrize(
    ("cgroup", "files", "limit", "used"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max"}, None, None),
        ("0::/a/b\n", {"a/b/memory.max": str(GIB), "a/b/memory.current": "1000"}, GIB, 1000),
        ("0::/a/b\n", {"a/memory.max": str(GIB), "a/memory.current": "1000"}, GIB, 1000),
        ("0::/\n", {"memory.max": str(GIB), "memory.current": "1000"}, GIB, 1000),
        (
            "0::/a\n",
            {"a/memory.max": str(2 * GIB), "a/memory.high": str(GIB), "a/memory.current": "7"},
            GIB,
            7,
        ),
        (
            "9:cpu:/x\n4:memory:/j\n",
            {"memory/j/memory.limit_in_bytes": str(GIB), "memory/j/memory.usage_in_bytes": "5"},
            GIB,
            5,
        ),
        (
            "4:memory:/j\n",
            {"memory/j/memory.limit_in_bytes": "9223372036854771712"},
            None,
            None,
        ),
        ("4:memory:/gone\n", {}, None, None),
    ],
    ids=["v2-max", "v2", "v2-parent", "v2-container", "v2-high", "v1", "v1-none", "v1-gone"],
)
def test_the_tightest_cgroup_counts(
    machine: Path, cgroup: str, files: dict[str, str], limit: int | None, used: int | None
) -> None:
    """Limits of version 2 and 1 are found on every level, and "no limit" in both spellings."""
    _write(machine, {"proc/self/cgroup": cgroup})
    _write(machine, {f"sys/fs/cgroup/{name}": text + "\n" for name, text in files.items()})
    found = probe.probe(root=machine)

    assert (found.cgroup_limit_bytes, found.cgroup_used_bytes) == (limit, used)
    if limit is not None:
        assert found.usable_bytes == limit - (used or 0)


def test_torch_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    """A torch that fails to start gives the last line of its error, not a traceback."""
    monkeypatch.setattr(probe, "_ASK_TORCH", "raise OSError('libcudart.so.12 is missing')")
    found = probe.probe(gpu=True, root=machine)

    assert found.gpus is None
    assert found.gpu_note == "torch could not be asked: OSError: libcudart.so.12 is missing"


def test_gpus_are_read_from_the_child(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    """What the child prints becomes Gpu values."""
    answer = '[{"name": "Orin", "memory_bytes": 7, "sm_count": 8, "compute_capability": "8.7", "unified_memory": true}]'
    monkeypatch.setattr(probe, "_ASK_TORCH", f"print('noise'); print({answer!r})")
    found = probe.probe(gpu=True, root=machine)

    assert found.gpus is not None
    assert found.gpus[0].name == "Orin"
    assert found.gpus[0].unified_memory is True
    assert found.to_dict()["gpus"][0]["sm_count"] == 8


def test_power_modes_are_read(machine: Path) -> None:
    """A Jetson's configuration names the modes it can be set to; other machines have none."""
    assert probe.probe(root=machine).power_modes == ()
    modes = "# comment\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=7W >\n"
    _write(machine, {"etc/nvpmodel.conf": modes})
    assert probe.probe(root=machine).power_modes == ("15W", "7W")


def test_the_bandwidth_is_measured_when_asked_for(machine: Path) -> None:
    """Between what a slow board and the largest server can do."""
    assert probe.probe(root=machine).bandwidth_bytes_per_s is None
    found = probe.probe(root=machine, bandwidth=True).bandwidth_bytes_per_s
    assert found is not None
    assert 10**8 < found < 10**13


def test_a_copy_copies_all_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of it counts as read once and written once."""
    copied: list[int] = []
    monkeypatch.setattr(
        bandwidth.ctypes, "memmove", lambda target, source, size: copied.append(size)
    )
    bandwidth.copy_bytes_per_s(1 << 20)
    rounds = bandwidth._ROUNDS + 1
    workers = len(copied) // rounds
    assert len(copied) == rounds * workers
    assert sum(copied) == rounds * ((1 << 20) // workers) * workers
