"""What is saved to go on from, damaged in every way; the lock of a run; a second interrupt."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from l2rm import files
from l2rm.errors import InputError
from l2rm.training import state as state_module
from l2rm.training.interrupt import interruptible
from l2rm.training.run import locked


def leftover(stem, suffix):
    """The name of a file that a process was writing when it was killed."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    return f".{stem}.{files._host()}.{dead.pid}-abcd_123{suffix}"


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100])
def test_a_damaged_state_without_one_before_it_is_an_input_error(tmp_path, content):
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "state.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"state\.pt: cannot be read .*delete the RUN folder"):
        state_module.load_state(tmp_path)


def two_generations(folder):
    """A folder in which step 1 was saved, then step 2."""
    for step in (1, 2):
        state_module.save_state(folder, {"step": step, "weights": torch.full((40,), float(step))})
    return folder / "last" / "state.pt", (folder / "last" / "state.pt").read_bytes()


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.999])
def test_of_a_torn_state_the_one_before_is_taken_and_that_is_said(tmp_path, share, caplog):
    path, whole = two_generations(tmp_path)
    path.write_bytes(whole[: int(share * len(whole))])
    assert state_module.load_state(tmp_path)["step"] == 1
    assert re.search(r"state\.pt: .*; going on from the one before it, state\.before\.pt", caplog.text)
    path.with_name("state.before.pt").write_bytes(b"torn too")
    with pytest.raises(InputError, match=r"state\.pt: .*delete the RUN folder"):
        state_module.load_state(tmp_path)


def test_no_flipped_bit_of_a_state_goes_unnoticed(tmp_path, caplog):
    path, whole = two_generations(tmp_path)
    noticed = 0
    for place in np.random.default_rng(0).integers(8 * len(whole), size=300):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        caplog.clear()
        restored = state_module.load_state(tmp_path)
        assert torch.equal(restored["weights"], torch.full((40,), float(restored["step"])))
        assert (restored["step"] == 1) == ("going on from the one before it" in caplog.text)
        noticed += restored["step"] == 1
    assert noticed > 100  # the others hit padding, which nobody reads


def test_a_state_lost_between_two_renames_is_taken_from_the_one_before(tmp_path):
    path, _ = two_generations(tmp_path)
    path.unlink()
    assert state_module.load_state(tmp_path)["step"] == 1


def test_state_holds_the_random_generator(tmp_path):
    torch.manual_seed(3)
    state_module.save_state(tmp_path, {"a": 1, "b": torch.ones(2), "c": [None, {"d": "e"}]})
    expected = torch.rand(3)
    (tmp_path / "last" / leftover("state", ".pt")).write_bytes(b"half")  # what a kill while saving leaves
    restored = state_module.load_state(tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert restored["a"] == 1
    assert restored["c"] == [None, {"d": "e"}]
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["state.pt"]
    assert state_module.load_state(tmp_path / "elsewhere") is None


def test_lock_of_the_living_is_respected_and_that_of_the_dead_taken_over(tmp_path):
    (tmp_path / "lock").write_text("process 1 on this machine\n")  # a living number, but nobody holds the file
    with locked(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is training there"), locked(tmp_path):
            pytest.fail("two at once")
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert not (tmp_path / "lock").exists()


def test_a_second_interrupt_is_not_waited_with():
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
