"""Memory and processor time of a process and of all that it starts. Reads /proc, so this works on Linux only.

`private_mib` is what processes have for themselves and in shared memory (RssAnon + RssShmem); `proportional_mib` (Pss)
counts pages of mapped files, too, each once, which the system may take back when it needs them. Processor seconds of a
process that lived and died between two looks (half a second) are missed.
"""

import os
import threading
import time
from collections import defaultdict
from pathlib import Path


class Watch:
    """Looks at a process (this one by default) and its descendants twice a second while the block runs."""

    def __init__(self, process: int | None = None) -> None:
        self.process = os.getpid() if process is None else process
        self.private = self.proportional = 0.0
        self.processes = 0
        self._cpu: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._began = self._own = 0.0

    def __enter__(self) -> "Watch":
        self._began, self._own = time.perf_counter(), time.process_time()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._began

    @property
    def cpu_seconds(self) -> float:
        others = sum(seconds for process, seconds in self._cpu.items() if process != os.getpid())
        own = time.process_time() - self._own if self.process == os.getpid() else 0.0
        return own + others

    def facts(self) -> dict[str, float]:
        return {
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "private_mib": round(self.private),
            "proportional_mib": round(self.proportional),
            "processes": self.processes,
        }

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            private = proportional = 0.0
            family = descendants(self.process)
            for process in family:
                try:
                    lines = Path(f"/proc/{process}/status").read_text().splitlines()
                    lines += Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
                    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                told = dict(line.split(":", 1) for line in lines)
                kib = {name: int(told[name].split()[0]) for name in ("Pss", "RssAnon", "RssShmem") if name in told}
                private += (kib.get("RssAnon", 0) + kib.get("RssShmem", 0)) / 1024
                proportional += kib.get("Pss", 0) / 1024
                self._cpu[process] = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
            self.private, self.proportional = max(self.private, private), max(self.proportional, proportional)
            self.processes = max(self.processes, len(family))


def descendants(process: int) -> list[int]:
    """A process and all below it."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(entry.name))
    found = [process]
    for one in found:
        found.extend(children[one])
    return found
