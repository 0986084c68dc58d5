"""Commands of l2rm that are killed."""

import os
import signal
import subprocess
import sys

from l2rm.cli import main


def started(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "l2rm", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def killed(process: "subprocess.Popen[str]") -> bool:
    """Kill it; whether it was still alive."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


def dies_at_rename(arguments: list[str], number: int, *, before: bool) -> bool:
    """Run a command in a child that is killed right before or after its `number`th rename; whether it came to that."""
    child = os.fork()
    if child == 0:
        replace, done = os.replace, 0

        def last(source: object, target: object) -> None:
            nonlocal done
            done += 1
            if done == number and before:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)  # type: ignore[arg-type]
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = last
        os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
