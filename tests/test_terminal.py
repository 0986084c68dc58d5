"""Whatever happens becomes an exit status and one line."""

import errno
import logging
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from l2rm.cli import parse_command
from l2rm.errors import InputError
from l2rm.terminal import guarded
from l2rm.training.interrupt import Interrupted


@dataclass
class Fails:
    error: BaseException | None = None
    quiet: bool = False
    out: Path | None = Path("here/it.npy")
    said: list[str] = field(default_factory=list)
    lighter: str = "free some memory, or give fewer pairs at a time"

    def run(self) -> None:
        for text in self.said:
            logging.getLogger("l2rm").info(text)
        if self.error is not None:
            raise self.error


def ran(command: Fails, capfd: pytest.CaptureFixture[str], **options: Any) -> tuple[int, str]:
    status = guarded(lambda: command, **{"debug": False, **options})
    return status, capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("a.csv:row 3: wrong\nin two lines; do this"), 2, "error: a.csv:row 3: wrong in two lines; do this"),
        (Interrupted(signal.SIGINT), 130, "stopped by SIGINT; the run in here/it.npy is saved"),
        (Interrupted(signal.SIGTERM), 143, "--resume"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
        (ZeroDivisionError("oh\nno"), 1, "failed: ZeroDivisionError: oh no (--debug shows where)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1, "failed: FileNotFoundError"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: here/it.npy: the disk is full"),
        (OSError(errno.EDQUOT, "Quota exceeded", "/far/.x.npy"), 2, "error: /far/.x.npy: the disk is full"),
        (OSError("61440 requested and 32752 written"), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "error: /root/x: Permission denied; choose"),
        (PermissionError(errno.EACCES, "Permission denied", "here/.it.k3.npy"), 2, "error: here/it.npy: Permission"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "failed: out of memory; free some memory, or give fewer pairs"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), 1, "failed: out of memory; "),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"), 2, "error: f/x: Not a directory"),
    ],
)
def test_status_and_one_line(
    error: BaseException, status: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, told = ran(Fails(error), capfd)
    assert found == status
    assert told.startswith("l2rm: ")
    assert message in told
    assert told.count("\n") == 1
    assert "Traceback" not in told


def test_a_full_disk_is_recognised_behind_another_error(capfd: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("unexpected pos 576 vs 534")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    status, told = ran(Fails(error), capfd)
    assert status == 2
    assert "the disk is full" in told


def test_out_of_memory_training_says_what_to_lower(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = parse_command(["train", "data", "--out", "run", "--batch-size=256", "--rematching.queue-size=512"])
    with pytest.raises(RuntimeError) as real:  # what torch says on a processor
        torch.empty(2**50, dtype=torch.float64)
    assert (
        ran(Fails(real.value), capfd)[1]
        == "l2rm: failed: out of memory; free some memory, or give fewer pairs at a time\n"
    )
    assert command.lighter == (
        "train anew with a lower --batch-size (it is 256), a lower --rematching.queue-size (512) or a lower "
        "--model.embed-dim"
    )
    status, told = ran(Fails(real.value, lighter=command.lighter), capfd)
    assert (status, told) == (1, f"l2rm: failed: out of memory; {command.lighter}\n")


def test_debug_shows_the_traceback_and_keeps_the_status(capfd: pytest.CaptureFixture[str]) -> None:
    status, told = ran(Fails(InputError("wrong; do this")), capfd, debug=True)
    assert status == 2
    assert "Traceback" in told
    assert told.rstrip().endswith("l2rm: error: wrong; do this")


def test_logging_is_plain_and_ends_with_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("l2rm")
    before = (log.level, list(log.handlers), logging.raiseExceptions)
    assert ran(Fails(said=["epoch 1", "epoch 2"]), capfd) == (0, "epoch 1\nepoch 2\n")
    assert ran(Fails(said=["epoch 1"], quiet=True), capfd) == (0, "")
    assert (log.level, log.handlers, logging.raiseExceptions) == before


def test_sigterm_ends_a_command_and_its_cleaning_up_runs(capfd: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    class Waits(Fails):
        def run(self) -> None:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert ran(Waits(), capfd)[0] == 143
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_went_away_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    import subprocess

    script = "import sys; from l2rm.cli import main; sys.exit(main(['train', '--help']))"
    reading = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reading.stdout is not None
    assert reading.stderr is not None
    reading.stdout.close()
    assert reading.stderr.read() == b""
    assert reading.wait() == 128 + signal.SIGPIPE
    reading.stderr.close()
