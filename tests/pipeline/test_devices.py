"""Which device a command takes, and how many threads of the CPU."""

from collections.abc import Iterator

import pytest
import torch

from pipeline.config import RequestError
from pipeline.devices import choose_device, one_thread


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_one_thread_is_for_the_block_alone() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_one_thread_ends_with_an_error() -> None:
    with pytest.raises(ValueError, match="broken"), one_thread():
        raise ValueError("broken")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("name", "sentence"), [("gpu0", "is unknown"), ("meta", "is not supported")])
def test_a_device_that_makes_no_sense_is_answered_with_those_that_do(name: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=f"{sentence}: expected auto, cpu, cuda or cuda:0"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_that_is_not_there_is_said() -> None:
    with pytest.raises(RequestError, match="no CUDA device is visible"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
