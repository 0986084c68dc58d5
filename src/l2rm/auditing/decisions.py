"""The store of a review: every decision in SQLite beside the audit, with its history.

Whoever decides says which version of the pair's decision they saw; another one in the store is a conflict and nothing
is written. A request has a name, so that one that is sent again after a broken connection counts once. What was
answered is on disk: a process that is killed loses nothing of it.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from l2rm.data.decided import FORMAT, Verdict
from l2rm.errors import InputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS decisions (
  pair_id TEXT PRIMARY KEY,
  image TEXT NOT NULL,
  caption TEXT NOT NULL,
  decision TEXT NOT NULL,
  new_image TEXT NOT NULL,
  new_caption TEXT NOT NULL,
  version INTEGER NOT NULL,
  force INTEGER NOT NULL,
  at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_version ON decisions (version);
CREATE TABLE IF NOT EXISTS history (
  version INTEGER PRIMARY KEY AUTOINCREMENT,
  request TEXT NOT NULL UNIQUE,
  tab TEXT NOT NULL,
  pair_id TEXT NOT NULL,
  before TEXT NOT NULL,
  after TEXT NOT NULL,
  force_before INTEGER NOT NULL,
  open INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_tab ON history (tab, open, version);
"""
_WAIT = 10.0
"""Seconds to wait for another process that writes."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What can be decided: a verdict ("" takes it back) and, of a rematch, the new image or caption."""

    verdict: Verdict | Literal[""]
    new_image: str = ""
    new_caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The pair that a decision is about, as it was shown."""

    pair_id: str
    image: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a pair stands in the store; version 0: nobody ever decided about it."""

    pair: Pair
    choice: Choice
    version: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How the pair stands now, and whether that is what was asked for (`conflict`: somebody else decided since)."""

    standing: Standing
    conflict: bool


class DecisionStore:
    """Decisions about pairs in one SQLite file, shared by threads and processes.

    Example:
        >>> import tempfile
        >>> store = DecisionStore(Path(tempfile.mkdtemp()) / "decisions.sqlite")
        >>> pair = Pair(pair_id="7", image="a.jpg", caption="a cat")
        >>> store.decide(pair, Choice(verdict="drop"), seen=0, tab="one", request="r1").conflict
        False
        >>> store.decide(pair, Choice(verdict="keep"), seen=0, tab="two", request="r2").standing.choice.verdict
        'drop'
        >>> store.undo(tab="one", request="r3").standing.choice.verdict
        ''
    """

    def __init__(self, path: Path) -> None:
        """Open the store, and make it where there is none.

        Raises:
            InputError: the file is no store, is of another format, or cannot be written.
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.Error as error:
            raise InputError(
                f"{path}: cannot hold decisions ({error}); check its permissions, or move it out of the way"
            ) from error

    def _prepare(self) -> None:
        (form,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if form != FORMAT and (form or tables):
            raise InputError(f"{self.path}: format {form}, this version writes {FORMAT}; move it out of the way")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if form == FORMAT:
            return
        with self._writing() as connection:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {FORMAT}")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def decide(self, pair: Pair, choice: Choice, *, seen: int, tab: str, request: str) -> Answer:
        """Decide about a pair, unless its version is no longer the one that was `seen`.

        Args:
            pair: as it was shown.
            choice: the decision; an empty verdict takes an earlier one back.
            seen: the version that was shown.
            tab: who decides; `undo` goes back along the decisions of one tab.
            request: a name of this request; sent again, it changes nothing.
        """
        with self._writing() as connection:
            now = _standing(connection, pair.pair_id) or Standing(pair=pair, choice=Choice(verdict=""), version=0)
            if _is_known(connection, request) or (now.choice == choice and now.pair == pair):
                return Answer(standing=now, conflict=False)
            if now.version != seen:
                return Answer(standing=now, conflict=True)
            before = json.dumps(asdict(now.choice))
            version = _record(connection, request, tab, pair, before, choice, _force(connection, pair), undoable=True)
            return Answer(standing=_put(connection, pair, choice, version, force=version), conflict=False)

    def undo(self, *, tab: str, request: str) -> Answer | None:
        """Take the tab's last decision back; None where there is none left.

        Where somebody decided about the pair since, that stands (`conflict`), and the next undo goes on before it.
        """
        with self._writing() as connection:
            if (known := _is_known(connection, request)) is not None:
                standing = _standing(connection, known)
                assert standing is not None
                return Answer(standing=standing, conflict=False)
            row = connection.execute(
                "SELECT version, pair_id, before, force_before FROM history WHERE tab = ? AND open = 1 "
                "ORDER BY version DESC LIMIT 1",
                (tab,),
            ).fetchone()
            if row is None:
                return None
            decided, pair_id, before, force_before = row
            connection.execute("UPDATE history SET open = 0 WHERE version = ?", (decided,))
            now = _standing(connection, pair_id)
            assert now is not None
            if _force(connection, now.pair) != decided:
                return Answer(standing=now, conflict=True)
            after = Choice(**json.loads(before))
            was = json.dumps(asdict(now.choice))
            version = _record(connection, request, tab, now.pair, was, after, decided, undoable=False)
            return Answer(standing=_put(connection, now.pair, after, version, force=force_before), conflict=False)

    def undoable(self, tab: str) -> int:
        """How many decisions of a tab `undo` can take back."""
        with self._reading() as connection:
            (count,) = connection.execute("SELECT count(*) FROM history WHERE tab = ? AND open = 1", (tab,)).fetchone()
        return int(count)

    def since(self, version: int) -> list[Standing]:
        """How every pair stands that was decided about after a version, in the order in which that happened."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT pair_id, image, caption, decision, new_image, new_caption, version FROM decisions "
                "WHERE version > ? ORDER BY version",
                (version,),
            ).fetchall()
        return [_from_row(row) for row in rows]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _standing(connection: sqlite3.Connection, pair_id: str) -> Standing | None:
    row = connection.execute(
        "SELECT pair_id, image, caption, decision, new_image, new_caption, version FROM decisions WHERE pair_id = ?",
        (pair_id,),
    ).fetchone()
    return None if row is None else _from_row(row)


def _from_row(row: tuple[str, str, str, Verdict | Literal[""], str, str, int]) -> Standing:
    pair_id, image, caption, verdict, new_image, new_caption, version = row
    return Standing(
        pair=Pair(pair_id=pair_id, image=image, caption=caption),
        choice=Choice(verdict=verdict, new_image=new_image, new_caption=new_caption),
        version=version,
    )


def _is_known(connection: sqlite3.Connection, request: str) -> str | None:
    """The pair that a request of this name was about, if there was one."""
    row = connection.execute("SELECT pair_id FROM history WHERE request = ?", (request,)).fetchone()
    return None if row is None else str(row[0])


def _force(connection: sqlite3.Connection, pair: Pair) -> int:
    """The version of the decision that is in force: an undo brings back that of the decision before."""
    row = connection.execute("SELECT force FROM decisions WHERE pair_id = ?", (pair.pair_id,)).fetchone()
    return 0 if row is None else int(row[0])


def _record(
    connection: sqlite3.Connection,
    request: str,
    tab: str,
    pair: Pair,
    before: str,
    after: Choice,
    force: int,
    *,
    undoable: bool,
) -> int:
    """Write what happened into the history; the version that it gets."""
    cursor = connection.execute(
        "INSERT INTO history (request, tab, pair_id, before, after, force_before, open) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (request, tab, pair.pair_id, before, json.dumps(asdict(after)), force, undoable),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _put(connection: sqlite3.Connection, pair: Pair, choice: Choice, version: int, *, force: int) -> Standing:
    """Write how a pair stands now."""
    connection.execute(
        "REPLACE INTO decisions (pair_id, image, caption, decision, new_image, new_caption, version, force, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(pair.pair_id, pair.image, pair.caption),
            *(choice.verdict, choice.new_image, choice.new_caption),
            *(version, force, time.time()),
        ),
    )
    return Standing(pair=pair, choice=choice, version=version)
