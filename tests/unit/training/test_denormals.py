import pytest
import torch

from multitoken.training.denormals import are_flushed, flushed_denormals

MANY = 1_000_000  # enough numbers that they are divided among threads


def zeros() -> int:
    """How many of `MANY` denormals are zero after a multiplication, in all threads together."""
    return int((torch.full((MANY,), 1e-39) * 0.7 == 0).sum())


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    zeros()  # starts the other thread, which does not see what is set later
    yield
    torch.set_num_threads(before)


def test_denormals_are_zero_in_all_threads_and_come_back(two_threads) -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor has no such setting")
    assert zeros() == 0
    with flushed_denormals():
        assert are_flushed()
        assert zeros() == MANY
        with flushed_denormals():
            pass
        assert zeros() == MANY
    assert not are_flushed()
    assert zeros() == 0


def test_they_come_back_behind_an_error(two_threads) -> None:
    with pytest.raises(ValueError), flushed_denormals():
        raise ValueError
    assert zeros() == 0


def test_training_flushes_them(monkeypatch) -> None:
    """With denormals, a training step on a CPU takes up to three times as long."""
    from transformers import Trainer

    from multitoken.training.trainer import BlockTrainer

    monkeypatch.setattr(Trainer, "train", lambda *args, **named: are_flushed())
    assert BlockTrainer.train(BlockTrainer.__new__(BlockTrainer)) == (torch.set_flush_denormal(False) and True)
