import pytest
import torch


def pytest_configure(config):
    # torch's own first use of forward mode; nothing a caller could avoid
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated")


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(20)
