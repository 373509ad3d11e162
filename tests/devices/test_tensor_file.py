"""Safetensors files written from and read into tensors' own memory; the safetensors package is the referee."""

import re
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch

from revedge.devices.tensor_file import check_file, read_tensors, write_tensors
from revedge.errors import CheckpointError


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 5, generator=generator),
        "last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "double": torch.randn(2, dtype=torch.float64, generator=generator),
        "bits": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
    }


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    """Every dtype, a scalar, an empty tensor and a strided one come back equal."""
    path = tmp_path / "a.safetensors"
    size_bytes, _ = write_tensors(path, _tensors(), {"made": "here"})
    assert path.stat().st_size == size_bytes
    found = safetensors.torch.load_file(path)
    assert found.keys() == _tensors().keys()
    for name, tensor in _tensors().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_header_of_many_tensors_takes_no_objects(tmp_path: Path) -> None:
    """Writing adds some hundred bytes a tensor to the peak: text and sorting. A dictionary of entries adds 1500."""
    tensors = {f"model.layers.{i}.convolution.weight": torch.ones(1) for i in range(4000)}
    write_tensors(tmp_path / "first.safetensors", tensors)  # what is imported or made once
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "a.safetensors", tensors)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 500 * len(tensors)
    assert len(safetensors.torch.load_file(tmp_path / "a.safetensors")) == len(tensors)


def test_files_of_the_safetensors_package_are_read(tmp_path: Path) -> None:
    """Tensors that exist take the values of the file, whatever their memory format."""
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in _tensors().items()}, path)
    into = {name: torch.zeros_like(tensor) for name, tensor in _tensors().items()}
    read_tensors(path, into)
    for name, tensor in _tensors().items():
        assert torch.equal(into[name], tensor), name
    assert into["last"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(3, 4)}, "'weight' is F32[3, 5], the network has F32[3, 4]"),
        ({"weight": torch.zeros(3, 5).double()}, "the network has F64"),
        ({"more": torch.zeros(1)}, "lacks 'more'"),
        ({"weight": None}, "has 'weight' too"),
    ],
)
def test_tensors_of_another_network_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    """Another shape, dtype or name is an error, and no value has been changed."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, _tensors())
    into = {name: torch.zeros_like(tensor) for name, tensor in _tensors().items()}
    merged = {name: tensor for name, tensor in (into | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_tensors(path, merged)
    assert not any(bool(tensor.any()) for tensor in merged.values())


@pytest.mark.parametrize("kept", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_refused_without_its_checksum(tmp_path: Path, kept: int) -> None:
    """Cut anywhere, reading fails with a clear error and not with a wrong value."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, _tensors())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        read_tensors(path, _tensors())


def test_the_checksum_finds_one_flipped_bit(tmp_path: Path) -> None:
    """Size and SHA-256 that were returned are those of the file, and one bit changes them."""
    path = tmp_path / "a.safetensors"
    size_bytes, digest = write_tensors(path, _tensors())
    check_file(path, size_bytes, digest)
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        check_file(path, size_bytes, digest)
