"""A bank's transactions from outside, and what must be true of the database that survived.

Owns: the tables, the log of what was sent and acknowledged, the judgement. Must not know: regions,
recovery points but for their time. Like pgbench: two balances and one line of history each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from scenario.postgres_client import Database, DatabaseError

CLIENTS = 4
ACCOUNTS = 2000
PACE_SECONDS = 0.08
"""Each client's pause between two transactions: an emulated processor does not take many."""
ANSWER_SECONDS = 60.0
CHECK_SECONDS = 180.0

TABLES = f"""
CREATE TABLE accounts (aid int PRIMARY KEY, balance bigint NOT NULL, filler char(84));
CREATE TABLE branches (bid int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE history (run int, client int, n int, delta int NOT NULL, aid int NOT NULL,
                      PRIMARY KEY (run, client, n));
CREATE INDEX history_aid ON history (aid);
INSERT INTO accounts SELECT aid, 0, '' FROM generate_series(1, {ACCOUNTS}) aid;
INSERT INTO branches SELECT bid, 0 FROM generate_series(1, {CLIENTS}) bid;
CREATE EXTENSION amcheck;
"""
AMCHECK = """
CREATE TEMP TABLE said (line text);
COPY said FROM PROGRAM
  'PGOPTIONS="-c client_min_messages=warning" /usr/lib/postgresql/15/bin/pg_amcheck'
  ' --all --parent-check --install-missing 2>&1; echo "exit code $?"';
SELECT string_agg(line, '; ') FROM said;
"""


@dataclass(slots=True)
class Journal:
    """One client's transactions, numbered from 1: when each was sent, and acknowledged if it was,
    by this machine's clock, ns. The last may be sent and not acknowledged."""

    sent_ns: list[int] = field(default_factory=list)
    acknowledged_ns: list[int] = field(default_factory=list)


class Load:
    """Clients that commit from `start` to `stop`, or until the server is gone."""

    def __init__(self, address: str, run: int) -> None:
        self._address = address
        self.run = run
        self.journals = {client: Journal() for client in range(1, CLIENTS + 1)}
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(client,), daemon=True)
            for client in self.journals
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No client sends any more; what is under way is waited for."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS)

    @property
    def acknowledged(self) -> int:
        """Commits acknowledged so far."""
        return sum(len(journal.acknowledged_ns) for journal in self.journals.values())

    def longest_wait_s(self) -> float:
        """Return the longest that a client waited for an acknowledgement it got."""
        waits = [
            acknowledged - sent
            for journal in self.journals.values()
            for sent, acknowledged in zip(journal.sent_ns, journal.acknowledged_ns, strict=False)
        ]
        return max(waits, default=0) / 1e9

    def _work(self, client: int) -> None:
        journal = self.journals[client]
        try:
            database = Database(self._address, seconds=ANSWER_SECONDS)
            while not self._stopping.wait(PACE_SECONDS):
                number = len(journal.sent_ns) + 1
                delta, aid = number % 19 - 9, (number * 31 + client * 7) % ACCOUNTS + 1
                journal.sent_ns.append(time.time_ns())
                database.ask(
                    f"BEGIN; UPDATE accounts SET balance = balance + {delta} WHERE aid = {aid};"
                    f"UPDATE branches SET balance = balance + {delta} WHERE bid = {client};"
                    f"INSERT INTO history VALUES ({self.run}, {client}, {number}, {delta}, {aid});"
                    "COMMIT;"
                )
                journal.acknowledged_ns.append(time.time_ns())
        except (OSError, DatabaseError):
            return  # the VM is gone; what was not acknowledged stays so in the journal


@dataclass(frozen=True, slots=True)
class Survived:
    """What a database holds. lines: (run, client) → (lines of history, lowest, highest number).
    sums: of accounts, branches and history; they are equal. amcheck: what pg_amcheck said."""

    lines: Mapping[tuple[int, int], tuple[int, int, int]]
    sums: tuple[int, int, int]
    amcheck: str


def set_up(address: str) -> None:
    """The tables are there, and nothing in them."""
    database = Database(address, seconds=CHECK_SECONDS)
    database.ask(TABLES)
    database.close()


def look(address: str) -> Survived:
    """Return what is there. Raises: OSError, DatabaseError."""
    database = Database(address, seconds=CHECK_SECONDS)
    rows = database.ask(
        "SELECT run, client, count(*), min(n), max(n) FROM history GROUP BY run, client"
    )
    (sums,) = database.ask(
        "SELECT (SELECT sum(balance) FROM accounts), (SELECT sum(balance) FROM branches),"
        " (SELECT coalesce(sum(delta), 0) FROM history)"
    )
    ((amcheck,),) = database.ask(AMCHECK)
    database.close()
    return Survived(
        lines={(int(r[0]), int(r[1])): (int(r[2]), int(r[3]), int(r[4])) for r in rows},
        sums=(int(sums[0]), int(sums[1]), int(sums[2])),
        amcheck=amcheck,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """lost: commits acknowledged before the point that are missing. invented: lines that nobody
    had sent by then. problems: sentences, none if all is well."""

    lost: int
    invented: int
    problems: tuple[str, ...]


def judge(load: Load, survived: Survived, before: Survived | None, point_ns: int) -> Verdict:
    """Return what is wrong with what survived of `load` at a recovery point of that time.

    before: what had been there when the load began; none of it may have changed.
    """
    lost = invented = 0
    problems = []
    for client, journal in load.journals.items():
        count, lowest, highest = survived.lines.get((load.run, client), (0, 1, 0))
        must = sum(acknowledged < point_ns for acknowledged in journal.acknowledged_ns)
        may = sum(sent < point_ns for sent in journal.sent_ns)
        if count and (lowest, highest) != (1, count):
            problems.append(f"client {client}: {count} lines numbered {lowest} to {highest}")
        lost += max(must - count, 0)
        invented += max(highest - may, 0)
        if not must <= count <= may:
            problems.append(f"client {client}: {count} lines, not {must} to {may}")
    for key, lines in (before.lines if before is not None else {}).items():
        there = survived.lines.get(key)
        if there != lines:
            problems.append(f"run and client {key}: {there}, not {lines} as before")
    if len(set(survived.sums)) != 1:
        problems.append(f"balances and history differ: {survived.sums}")
    if survived.amcheck != "exit code 0":
        problems.append(f"pg_amcheck: {survived.amcheck}")
    return Verdict(lost, invented, tuple(problems))
