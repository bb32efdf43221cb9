"""A worker of platforms: joins, takes tasks and sweeps with its share of the budget, leaves in order.

    async with open_worker(vault) as worker:
        await worker.run()               # until cancelled: then it finishes what it has begun, for some
        seconds

Any number of workers run beside each other, on any machines; all they share is Postgres. Procrastinate
fetches the tasks (`engine`), `platforms.tasks` does them. A worker that is killed is noticed by its
heartbeats: its tasks are fetched again within `STALLED_S` and a check, its share of the budget goes to the
others.

Sessions: two of `control`, three of Procrastinate, and those of `platforms.account`, at most ten in all for
one platform.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import structlog
from procrastinate import App, PsycopgConnector
from procrastinate.connector import Notify
from procrastinate.exceptions import ProcrastinateException
from psycopg import AsyncConnection
from psycopg import Error as PsycopgError

from pinstripe.catalog.model import spec
from pinstripe.client.api_key import ApiKey
from pinstripe.client.retry import Patience
from pinstripe.concurrency import backoff, cancel, end
from pinstripe.errors import NotEnabled, NotPermitted, PinstripeError
from pinstripe.platforms.account import open_platform
from pinstripe.platforms.budget import Membership
from pinstripe.platforms.sweep import Sweep, discover
from pinstripe.platforms.tasks import Tasks, WorkedPlatform
from pinstripe.platforms.vault import PlatformVault
from pinstripe.service import budget_for, chosen_tables, personal_of, rate_shares, stripe_for
from pinstripe.store.database_url import url_for_libpq
from pinstripe.store.leases import new_holder, session_name
from pinstripe.store.migrate import ensure_bookkeeping, migrate_platform
from pinstripe.store.platforms.stored import SealedPlatform, load_platforms
from pinstripe.store.platforms.sweep import note_synced, request_due
from pinstripe.store.platforms.tasks import (
    DISCOVER,
    KINDS,
    SEARCH_PATH,
    STALLED_S,
    Queue,
    TaskName,
    ensure_tasks,
    request_discovery,
    take_up_stalled,
)
from pinstripe.store.pool import Pool, check_sessions, connect, open_pool
from pinstripe.store.quarantine import find_lost
from pinstripe.store.rewrite import apply_policy
from pinstripe.store.session import settings_for

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_HEARTBEAT_S = 2.0
_CONCURRENCY: dict[Queue, int] = {"live": 32, "bulk": 4}
"""Live tasks mostly wait: for Stripe, or until no replica can be behind the row that they fetch."""
_FETCH_S: dict[Queue, float] = {"live": 2.0, "bulk": 1.0}
"""How often a queue is read without a notification; that of long tasks has none."""
_GRACE_S = 5.0
"""What a task gets to end in order when the worker does."""

_LOOK_S = 5.0
_DUE_S = 1.0
_MOST_DUE = 200
_RENEW_S = 2.0
_RETRY_S = (0.5, 1.0, 2.0, 5.0)

_CONTROL, _POOLED, _WRITING = 2, 3, 2

_PATIENCE = Patience(attempts=5, limited_attempts=8)
"""Of tasks: an account in trouble gives its place to others, and is tried again later."""
_LOOKING = Patience(attempts=1, first_contact=1, limited_attempts=2)
"""A look is made again after the pause of its account."""


class Worker:
    """One worker. Create it with `open_worker`."""

    def __init__(self, vault: PlatformVault, control: Pool, holder: str) -> None:
        self.holder = holder
        self._vault = vault
        self._url = vault.database_url
        self._control = control
        self._platforms: dict[str, tuple[WorkedPlatform, AsyncExitStack]] = {}
        self._troubled: dict[str, str] = {}
        self._opening = asyncio.Lock()
        self.tasks = Tasks(control, holder, self._find)
        self.membership = Membership(control, holder, running=lambda: self.tasks.running)

    async def run(self) -> None:
        """Work until cancelled; then end what is under way, and leave."""
        beside = [
            asyncio.create_task(work, name=name)
            for name, work in {
                "heartbeat": self.membership.run(),
                "platforms": _again_and_again(self.look, _LOOK_S),
                "due": _again_and_again(self._request_due, _DUE_S),
                "stalled": _again_and_again(self._take_up_stalled, _LOOK_S),
                "leases": _again_and_again(self.tasks.renew, _RENEW_S),
            }.items()
        ]
        engine = asyncio.create_task(self._engine(), name="engine")
        try:
            # The engine needs the others until it has ended.
            await asyncio.wait((engine, *beside), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [*await cancel(engine), *await cancel(*beside)]
            await self.close()
            await self.membership.leave()
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def close(self) -> None:
        for schema in list(self._platforms):
            await self._close(schema)

    async def look(self) -> None:
        """Read the platforms from the database: open new ones, close those that are gone or paused.

        One that lacks a table is opened anew: that makes it, and has all accounts read its lists again.
        """
        async with self._control.acquire() as connection:
            stored = {p.schema: p for p in await load_platforms(connection) if not p.paused}
        async with self._opening:
            for schema, (worked, _) in list(self._platforms.items()):
                if stored.get(schema) != worked.stored or await self._lacks_a_table(worked):
                    await self._close(schema)
            for schema, platform in stored.items():
                if schema not in self._platforms:
                    await self._open(platform)

    async def _lacks_a_table(self, worked: WorkedPlatform) -> bool:
        async with self._control.acquire() as connection:
            return bool(await find_lost(connection, worked.stored.schema, worked.shared.wanted, {}))

    async def _find(self, schema: str) -> WorkedPlatform | None:
        if schema not in self._platforms:
            with suppress(PinstripeError):
                await self.look()
        found = self._platforms.get(schema)
        return None if found is None else found[0]

    async def _open(self, platform: SealedPlatform) -> None:
        """Open a platform. One that does not open is tried again at the next look, the others go on."""
        try:
            async with AsyncExitStack() as stack:
                worked = await self._worked(stack, platform)
                self._platforms[platform.schema] = worked, stack.pop_all()
        except PinstripeError as error:
            if self._troubled.get(platform.id) != error.message:
                _log.error("platform.closed", platform=platform.id, error=error.message)
            self._troubled[platform.id] = error.message
            return
        self._troubled.pop(platform.id, None)
        async with self._control.transaction() as connection:
            await request_discovery(connection)
        _log.info("platform.open", platform=platform.id, schema=platform.schema)

    async def _worked(self, stack: AsyncExitStack, platform: SealedPlatform) -> WorkedPlatform:
        config = self._vault.config_of(platform)
        key = ApiKey.parse(config.api_key or "")
        wanted = chosen_tables(config)
        async with connect(self._url) as connection:
            await migrate_platform(
                connection,
                platform.schema,
                wanted,
                sdk_version=spec().sdk_version,
                api_version=spec().api_version,
            )
            await apply_policy(connection, platform.schema, wanted, personal_of(config))
            async with connection.transaction():
                await note_synced(connection, platform.schema, sorted(wanted))
        limiter = budget_for(rate_shares(config, key).worker, key)
        stripe = await stack.enter_async_context(
            stripe_for(config, key, limiter, patience=_PATIENCE)
        )
        looking = await stack.enter_async_context(
            stripe_for(config, key, limiter, patience=_LOOKING)
        )
        shared = await stack.enter_async_context(
            open_platform(
                self._url,
                platform.schema,
                wanted,
                personal=personal_of(config),
                changes=config.changes,
                session_name=session_name(self.holder),
                pooled=_POOLED,
                writing=_WRITING,
            )
        )
        self.membership.add(limiter)
        stack.callback(self.membership.remove, limiter)
        worked = WorkedPlatform(platform, config, shared, stripe, looking, limiter)
        sweep = Sweep(self._control, platform.id, platform.schema, worked.look_as)
        sweeping = asyncio.create_task(sweep.run(), name=f"sweep {platform.id}")
        stack.push_async_callback(end, sweeping)
        return worked

    async def _close(self, schema: str) -> None:
        worked, stack = self._platforms.pop(schema)
        await worked.stop()
        await stack.aclose()

    async def _request_due(self) -> None:
        async with self._control.transaction() as connection:
            await request_due(connection, _MOST_DUE)

    async def _take_up_stalled(self) -> None:
        """Not a task: a worker that dies in it would leave all others waiting for its lock."""
        async with self._control.acquire() as connection:
            for task, scope in await take_up_stalled(connection):
                _log.warning("task.stalled", task=task, scope=scope)

    async def discover(self) -> None:
        """Look for new accounts of all platforms."""
        for worked, _ in list(self._platforms.values()):
            stored = worked.stored
            try:
                await discover(worked.stripe, self._control, stored.id, stored.schema)
            except (NotEnabled, NotPermitted) as error:
                _log.warning("platform.no_accounts", platform=stored.id, error=error.message)
            except PinstripeError as error:
                _log.warning("discover.trouble", platform=stored.id, error=error.message)

    async def _engine(self) -> None:
        """Run Procrastinate's workers; begin again when Postgres was away."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            app = engine(self._url, self)
            try:
                async with app.open_async():
                    await _run_queues(app)
            except (ProcrastinateException, PsycopgError, ExceptionGroup) as error:
                inner = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                _log.warning("engine.trouble", error=type(inner).__name__)
            if asyncio.get_running_loop().time() - began > 60:
                failures = 0
            await asyncio.sleep(backoff(_RETRY_S, failures))
            failures += 1


@asynccontextmanager
async def open_worker(vault: PlatformVault) -> AsyncIterator[Worker]:
    """A worker with what all platforms share. Makes the bookkeeping and the schema of the tasks.

    Raises Misconfigured where the database or the encryption key will never do.
    """
    await check_sessions(vault.database_url)
    async with connect(vault.database_url) as connection:
        await ensure_bookkeeping(connection)
        await ensure_tasks(connection)
        for platform in await load_platforms(connection):
            vault.config_of(platform)
    holder = new_holder()
    async with await open_pool(
        vault.database_url,
        min_size=1,
        max_size=_CONTROL,
        application_name=f"pinstripe control {holder}"[:63],
    ) as control:
        worker = Worker(vault, control, holder)
        try:
            yield worker
        finally:
            await worker.close()


async def _again_and_again(work: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """Do it until cancelled, with pauses. Trouble is logged, once as long as it is the same."""
    trouble = ""
    while True:
        try:
            await work()
            trouble = ""
        except PinstripeError as error:
            if error.message != trouble:
                _log.warning("worker.trouble", error=error.message)
            trouble = error.message
        await asyncio.sleep(pause_s)


async def _run_queues(app: App) -> None:
    """One worker of Procrastinate's for each queue: long tasks take no place from live ones."""

    async def run(queue: Queue) -> None:
        await app.run_worker_async(
            queues=[queue],
            name=queue,
            concurrency=_CONCURRENCY[queue],
            wait=True,
            fetch_job_polling_interval=_FETCH_S[queue],
            listen_notify=queue == "live",
            delete_jobs="always",
            install_signal_handlers=False,
            update_heartbeat_interval=_HEARTBEAT_S,
            stalled_worker_timeout=6 * STALLED_S,
            shutdown_graceful_timeout=_GRACE_S,
        )
        # A heartbeat or a listener failed: it has logged which.
        raise ProcrastinateException(f"The queue {queue} has ended.")

    async with asyncio.TaskGroup() as group:
        for queue in _CONCURRENCY:
            group.create_task(run(queue))


def engine(url: str, worker: Worker) -> App:
    """Procrastinate's app, with the tasks of this worker."""
    app = App(
        connector=_Connector(
            conninfo=url_for_libpq(url),
            min_size=1,
            max_size=2,
            timeout=30.0,
            configure=_configure,
            kwargs={"application_name": "pinstripe tasks"},
        ),
        periodic_defaults={"max_delay": STALLED_S},
    )

    def add(name: TaskName) -> None:
        async def task(scope: str) -> None:
            await worker.tasks.run(name, scope)

        app.task(name=name, queue=KINDS[name].queue)(task)

    for name in KINDS:
        add(name)

    # The task has the queueing lock that `request_discovery` gives it.
    @app.periodic(cron="*/10 * * * *", task_kwargs={"scope": ""}, queueing_lock=f"{DISCOVER} ")
    @app.task(name=DISCOVER, queue="bulk", priority=50, lock=DISCOVER)
    async def discover(timestamp: int = 0, scope: str = "") -> None:
        await worker.discover()

    return app


_SETTINGS = {
    "search_path": SEARCH_PATH,
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "0",
    "client_encoding": "UTF8",
}


async def _configure(connection: AsyncConnection) -> None:
    """As `store.session` sets ours: whatever the role, the database or the URL say."""
    await connection.set_autocommit(True)
    major = connection.info.server_version // 10000
    for name, value in (settings_for(major) | _SETTINGS).items():
        await connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


class _Connector(PsycopgConnector):
    """Procrastinate's connector. Of a notification it believes only that there may be a job."""

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        hint = json.dumps({"type": "job_inserted", "job_id": 0})

        async def hinted(*, channel: str, payload: str) -> None:
            # Any role may send one: with a payload that is no JSON, or that has a job aborted.
            await on_notification(channel=channel, payload=hint)

        await super().listen_notify(on_notification=hinted, channels=channels)
