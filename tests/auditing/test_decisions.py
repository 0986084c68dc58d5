"""The store of a review: versions, undo, several processes, a killed process."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from l2rm.auditing.decisions import Choice, DecisionStore, Pair, Standing
from l2rm.data.decided import read_decisions
from l2rm.errors import InputError

KEEP, DROP, NONE = Choice(verdict="keep"), Choice(verdict="drop"), Choice(verdict="")
MOVE = Choice(verdict="rematch", new_image="b.jpg")


def pair(number: int = 0) -> Pair:
    return Pair(pair_id=f"pair {number}", image="a.jpg", caption='it\'s "a"; cat -- <b>')


@pytest.fixture
def store(tmp_path: Path) -> DecisionStore:
    return DecisionStore(tmp_path / "decisions.sqlite")


def now(store: DecisionStore) -> dict[str, Choice]:
    return {standing.pair.pair_id: standing.choice for standing in store.since(0)}


def test_a_decision_is_read_back_by_everybody(store: DecisionStore) -> None:
    answer = store.decide(pair(), MOVE, seen=0, tab="one", request="r1")
    assert answer.standing == Standing(pair=pair(), choice=MOVE, version=1)
    assert DecisionStore(store.path).since(0) == [answer.standing]
    (decision,) = read_decisions(store.path)
    assert (decision.pair_id, decision.verdict, decision.new_image) == ("pair 0", "rematch", "b.jpg")
    assert read_decisions(store.path.parent) == (decision,)  # the folder stands for the store in it


def test_a_decision_that_was_not_seen_is_not_overwritten(store: DecisionStore) -> None:
    first = store.decide(pair(), KEEP, seen=0, tab="one", request="r1")
    second = store.decide(pair(), DROP, seen=0, tab="two", request="r2")
    assert second.conflict
    assert second.standing == first.standing
    assert now(store) == {"pair 0": KEEP}
    third = store.decide(pair(), DROP, seen=second.standing.version, tab="two", request="r3")
    assert not third.conflict
    assert now(store) == {"pair 0": DROP}


def test_two_that_agree_are_no_conflict(store: DecisionStore) -> None:
    store.decide(pair(), KEEP, seen=0, tab="one", request="r1")
    assert not store.decide(pair(), KEEP, seen=0, tab="two", request="r2").conflict
    assert store.undoable("two") == 0  # there is nothing that it changed


def test_a_request_that_is_sent_again_counts_once(store: DecisionStore) -> None:
    store.decide(pair(), KEEP, seen=0, tab="one", request="r1")
    store.decide(pair(), DROP, seen=1, tab="two", request="r2")
    again = store.decide(pair(), KEEP, seen=0, tab="one", request="r1")
    assert (again.conflict, again.standing.choice) == (False, DROP)
    assert store.undo(tab="two", request="u1").standing.choice == KEEP
    assert store.undo(tab="two", request="u1").standing.choice == KEEP
    assert store.undoable("one") == 1


def test_undo_goes_back_step_by_step_and_tab_by_tab(store: DecisionStore) -> None:
    store.decide(pair(), KEEP, seen=0, tab="one", request="r1")
    store.decide(pair(1), MOVE, seen=0, tab="two", request="r2")
    store.decide(pair(), DROP, seen=1, tab="one", request="r3")
    assert store.undo(tab="one", request="u1").standing.choice == KEEP
    assert store.undo(tab="one", request="u2").standing.choice == NONE
    assert store.undo(tab="one", request="u3") is None
    assert now(store) == {"pair 0": NONE, "pair 1": MOVE}
    assert [decision.pair_id for decision in read_decisions(store.path)] == ["pair 1"]


def test_undo_leaves_what_somebody_else_decided_since(store: DecisionStore) -> None:
    store.decide(pair(1), DROP, seen=0, tab="one", request="r0")
    store.decide(pair(), KEEP, seen=0, tab="one", request="r1")
    store.decide(pair(), DROP, seen=2, tab="two", request="r2")
    answer = store.undo(tab="one", request="u1")
    assert (answer.conflict, answer.standing.choice) == (True, DROP)
    assert store.undo(tab="one", request="u2").standing.pair == pair(1)
    assert store.undo(tab="two", request="u3").standing.choice == KEEP  # what was in force before


@pytest.mark.parametrize("content", [b"no database, but text of some length" * 9, b"SQLite format 3\0" + b"x" * 600])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "decisions.sqlite").write_bytes(content)
    with pytest.raises(InputError, match=r"decisions\.sqlite: cannot hold decisions"):
        DecisionStore(tmp_path / "decisions.sqlite")
    assert (tmp_path / "decisions.sqlite").read_bytes() == content


def test_another_database_and_another_format_are_refused(tmp_path: Path) -> None:
    for name, statement in (("other", "CREATE TABLE something (x)"), ("newer", "PRAGMA user_version = 2")):
        with sqlite3.connect(tmp_path / name) as connection:
            connection.execute(statement)
        with pytest.raises(InputError, match="this version writes 1"):
            DecisionStore(tmp_path / name)


WRITER = """
import sys
from pathlib import Path
from l2rm.auditing.decisions import Choice, DecisionStore, Pair

store, tab, count = DecisionStore(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for number in range(count):
    pair = Pair(pair_id=f"{tab if len(sys.argv) > 4 else 'shared'} {number}", image="a", caption="c")
    choice = Choice(verdict="keep" if tab == "one" else "drop")
    answer = store.decide(pair, choice, seen=0, tab=tab, request=f"{tab}-{number}")
    print(number, int(answer.conflict), answer.standing.choice.verdict, flush=True)
"""


def start(store: Path, tab: str, count: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store), tab, str(count), *more], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_lose_no_update(store: DecisionStore) -> None:
    writers = {tab: start(store.path, tab, 60) for tab in ("one", "two")}
    told = {tab: writer.communicate(timeout=60)[0].splitlines()[1:] for tab, writer in writers.items()}
    final = now(store)
    assert len(final) == 60
    for number in range(60):
        lines = [told[tab][number].split() for tab in ("one", "two")]
        assert sorted(conflict for _, conflict, _ in lines) == ["0", "1"]  # one of them wins, the other is told
        assert {verdict for _, _, verdict in lines} == {final[f"shared {number}"].verdict}


def test_a_killed_process_loses_nothing_that_it_told(store: DecisionStore) -> None:
    for turn in range(3):
        writer = start(store.path, f"tab{turn}", 100_000, "own")
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        told = [writer.stdout.readline() for _ in range(1 + 20 * turn)]
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.stdout.read().splitlines()
        lines = [line for line in told if line.count(" ") == 2]
        writer.wait()
        kept = now(DecisionStore(store.path))
        assert all(f"tab{turn} {line.split()[0]}" in kept for line in lines)
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (history,) = connection.execute("SELECT count(*) FROM history").fetchone()
    assert history == len(kept)  # neither is there without the other


class Model(RuleBasedStateMachine):
    """The store against a plain list of what every tab did."""

    @initialize()
    def begin(self) -> None:
        self.store = DecisionStore(Path(":memory:"))
        self.number = 0
        self.done: list[list] = []  # [tab, pair, choice, in force]; the last one in force of a pair counts
        self.open: list[list] = []

    def standing(self, which: int) -> Choice:
        return next((choice for _, other, choice, force in reversed(self.done) if other == which and force), NONE)

    @rule(
        tab=st.sampled_from(["one", "two"]),
        which=st.integers(0, 2),
        choice=st.sampled_from([KEEP, DROP, MOVE, NONE]),
    )
    def decide(self, tab: str, which: int, choice: Choice) -> None:
        self.number += 1
        seen = max((s.version for s in self.store.since(0) if s.pair == pair(which)), default=0)
        answer = self.store.decide(pair(which), choice, seen=seen, tab=tab, request=str(self.number))
        assert not answer.conflict
        if choice != self.standing(which):
            event = [tab, which, choice, True]
            self.done.append(event)
            self.open.append(event)

    @rule(tab=st.sampled_from(["one", "two"]))
    def undo(self, tab: str) -> None:
        self.number += 1
        answer = self.store.undo(tab=tab, request=str(self.number))
        event = next((event for event in reversed(self.open) if event[0] == tab), None)
        assert (answer is None) == (event is None)
        if event is None:
            return
        self.open = [one for one in self.open if one is not event]
        latest = next(one for one in reversed(self.done) if one[1] == event[1] and one[3])
        assert answer.conflict == (latest is not event)
        if latest is event:
            event[3] = False

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "store"):
            return
        kept = {standing.pair.pair_id: standing.choice for standing in self.store.since(0)}
        for which in range(3):
            assert kept.get(pair(which).pair_id, NONE) == self.standing(which)
        for tab in ("one", "two"):
            assert self.store.undoable(tab) == sum(event[0] == tab for event in self.open)


Model.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestModel = Model.TestCase


def test_history_tells_what_stood_before(store: DecisionStore) -> None:
    store.decide(pair(), KEEP, seen=0, tab="one", request="r1")
    store.undo(tab="one", request="u1")
    with sqlite3.connect(store.path) as connection:
        rows = connection.execute("SELECT before, after FROM history ORDER BY version").fetchall()
    told = [(json.loads(before)["verdict"], json.loads(after)["verdict"]) for before, after in rows]
    assert told == [("", "keep"), ("keep", "")]
