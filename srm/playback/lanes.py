"""Lanes: the group commits of one process. Keep-alives, teardowns and setups have connections of their own.

Keep-alives never wait for a setup or an operator, and no burst of other requests takes their connection. The heartbeat
goes through the lane of the keep-alives: it tells that keep-alives can be taken, so it stops when they cannot.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from srm.db.connection import ConnectionPool
from srm.db.database import SETUP_LANE_CONNECTIONS, Database
from srm.errors import DependencyUnavailable, SrmError
from srm.playback import availability, denials
from srm.playback.availability import OUTAGE_SECONDS, Outage
from srm.playback.group_commit import GroupCommit, NotBatchable
from srm.playback.keep_alive import keep_all_alive
from srm.playback.model import Admission, Result
from srm.playback.setup import SetupRequest, set_up
from srm.playback.setup_batch import is_plain, set_all_up
from srm.playback.statements import IS_DISTRIBUTED, OwnSession
from srm.playback.teardown import tear_all_down


class Heartbeat:
    """Request for a heartbeat, with the outage that the heartbeat has ended, or the error of the database."""

    outage: Outage | None = None
    error: Exception | None = None


class Lanes:
    """Group commits for the frequent calls of players, and the heartbeat. Each one starts with its first request."""

    def __init__(self, database: Database, unclaimed_teardown: Callable[[OwnSession], None]) -> None:
        """`unclaimed_teardown`: called with a session that was torn down after its client was told to try again."""
        self._database = database
        self._unclaimed_teardown = unclaimed_teardown
        self.keep_alives: GroupCommit[OwnSession | Heartbeat, bool] = GroupCommit(
            "keep-alives", Batches(database.keep_alives, commit_keep_alives)
        )
        self.teardowns: GroupCommit[OwnSession, bool] = GroupCommit(
            "teardowns", Batches(database.teardowns, tear_all_down), unclaimed=self._report_teardowns
        )
        self.setups: GroupCommit[SetupRequest, Result[Admission]] = GroupCommit(
            "setups",
            Batches(database.setup_batches, set_all_up),
            flushers=SETUP_LANE_CONNECTIONS,
            unclaimed=self._end_unclaimed_setups,
        )
        self.denials: GroupCommit[denials.Row, str] = GroupCommit(
            "denials", Batches(database.hot, denials.record_all), queue_seconds=denials.QUEUE_SECONDS
        )
        self._beaten_at: float | None = None

    def set_up(self, request: SetupRequest) -> Result[Admission]:
        """Set a session up in a batch if it can be, else in a transaction of its own; see `srm.playback.setup`."""
        result = self.set_up_in_batch(request)
        if result is not None:
            return result
        account_id = request.principal.account_id
        with self._database.setups.request(request.access.spent_seconds, account_id) as db:
            return set_up(db, request)

    def set_up_in_batch(self, request: SetupRequest) -> Result[Admission] | None:
        """Set a session up in a batch; return None where `set_up` in a transaction has to decide."""
        return self.setups.submit(request) if is_plain(request) else None

    def _end_unclaimed_setups(self, unclaimed: Sequence[tuple[SetupRequest, Result[Admission]]]) -> None:
        """Tear down sessions whose clients were told to try again. They would hold their slots until they lapse."""
        sessions = [
            OwnSession(request.principal.account_id, str(result.outcome.session_id), request.principal.device_id)
            for request, result in unclaimed
            if isinstance(result.outcome, Admission)
        ]
        if sessions:
            answers = tear_all_down(self._database.teardowns, sessions)
            self._report_teardowns(
                [(session, True) for session, is_done in zip(sessions, answers, strict=True) if is_done]
            )

    def _report_teardowns(self, unclaimed: Sequence[tuple[OwnSession, bool]]) -> None:
        for session, _ in unclaimed:
            self._unclaimed_teardown(session)

    def record_denial(self, request: SetupRequest, denial: SrmError, *, observed: bool = False) -> None:
        """Record a denial; see `srm.playback.denials`."""
        denials.record(self.denials, self._database.hot, request, denial, observed=observed)

    def beat(self) -> Outage | None:
        """Take a heartbeat the way that keep-alives go; return the outage that the heartbeat ends, if any.

        Raises DependencyUnavailable when this process cannot take keep-alives, whatever the cause, and psycopg.Error
        when the schema is too old or a right is missing.
        """
        if self._beaten_at is None:
            self._beaten_at = time.monotonic()  # From now on heartbeats are expected.
        if self.keep_alives.is_open:
            heartbeat = Heartbeat()
            if not self.keep_alives.submit(heartbeat):
                raise heartbeat.error or DependencyUnavailable
            outage = heartbeat.outage
        else:
            outage = availability.beat(self._database.hot)
        self._beaten_at = time.monotonic()
        return outage

    @property
    def take_keep_alives(self) -> bool:
        """False once heartbeats of this process have failed for OUTAGE_SECONDS."""
        return self._beaten_at is None or time.monotonic() - self._beaten_at < OUTAGE_SECONDS

    def close(self) -> None:
        """End the flushers."""
        self.keep_alives.close()
        self.teardowns.close()
        self.setups.close()
        self.denials.close()


class Batches:
    """The `commit` of a GroupCommit. It refuses distributed tables, because a statement of a batch spans accounts."""

    def __init__(self, db: ConnectionPool, commit: Callable[..., list[Any]]) -> None:
        self._db = db
        self._commit = commit
        self._is_checked = False

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        """Commit a batch. Raises NotBatchable."""
        if not self._is_checked:
            ((is_distributed,),) = self._db.execute(IS_DISTRIBUTED, {}).fetchall()
            if is_distributed:
                raise NotBatchable("the tables are distributed")
            self._is_checked = True
        return self._commit(self._db, batch)


def commit_keep_alives(db: ConnectionPool, batch: Sequence[OwnSession | Heartbeat]) -> list[bool | None]:
    """Keep all sessions of the batch alive. After that, take the heartbeats of the batch."""
    sessions = [request for request in batch if not isinstance(request, Heartbeat)]
    answers = iter(keep_all_alive(db, sessions) if sessions else ())
    outcomes: list[bool | None] = []
    for request in batch:
        if isinstance(request, Heartbeat):
            outcomes.append(_beat(db, request))
        else:
            outcomes.append(next(answers))
    return outcomes


def _beat(db: ConnectionPool, heartbeat: Heartbeat) -> bool | None:
    try:
        heartbeat.outage = availability.beat(db)
    except (DependencyUnavailable, psycopg.Error) as error:
        heartbeat.error = error
        return None
    return True
