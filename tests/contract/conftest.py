import pytest
import torch


def pytest_configure(config):
    # torch's own first use of forward mode; nothing a caller could avoid
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated")


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(20)


@pytest.fixture
def one_thread():
    """Many small solves: threads inside each would only get into one another's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
