"""Exported files that several tests look at; each is written once."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import torch
from zoo import Export, FakeFrames, settle

from revedge import models
from revedge.export.formats import FORMATS
from revedge.export.writer import export_network


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def exported(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return RevSResNet11 at width 8, in every format, opset 18."""
    torch.manual_seed(5)
    net = settle(
        models.create(
            "revsresnet11", in_shape=(2, 16, 16), num_classes=5, timesteps=4, width=8, neuron="lif"
        )
    )
    frames, folder = FakeFrames(net), tmp_path_factory.mktemp("exported")
    return Export(
        net,
        frames,
        folder,
        export_network(net, frames, folder, FORMATS, data_name="fake"),
    )
