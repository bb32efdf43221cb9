"""What makes a row true: the guarded upsert, on a real server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from random import Random

import asyncpg
import pytest
from tests.postgres.writing import SCHEMA, T0, VERSION, Snapshot, Writing, at, make_schema, writing

from pinstripe.client.response import AsOf, StripeObject
from pinstripe.errors import Drifted
from pinstripe.mirror.batch import Batch
from pinstripe.rows.extract import RowSet
from pinstripe.store.cursors import Checkpoint, load_checkpoints

_TABLES = ("customer", "coupon", "charge", "source", "product", "terminal_reader")


def customer(**fields: object) -> StripeObject:
    return {"id": "cus_1", "object": "customer", **fields}


@pytest.fixture
async def w(database: str) -> AsyncIterator[Writing]:
    await make_schema(database, _TABLES)
    async with writing(database, *_TABLES) as made:
        yield made


async def name_of(w: Writing) -> object:
    return (await w.row("customer", "cus_1"))["name"]


async def test_a_surely_newer_snapshot_is_written(w: Writing) -> None:
    await w.put((customer(name="old"), 0, 1))
    assert await w.put((customer(name="new"), 1, 2)) == []
    row = await w.row("customer", "cus_1")
    assert (row["name"], row["_as_of"], row["_as_of_latest"]) == ("new", at(1), at(2))
    assert row["_api_version"] == VERSION


async def test_a_surely_older_snapshot_is_dropped(w: Writing) -> None:
    await w.put((customer(name="new"), 5, 6))
    before = await w.place("customer", "cus_1")
    assert await w.put((customer(name="old"), 4, 5)) == []
    assert await name_of(w) == "new"
    assert await w.place("customer", "cus_1") == before


@pytest.mark.parametrize(("lo", "hi"), [(5.5, 7), (4, 7), (5.5, 5.8), (4.5, 6), (8, 9)])
async def test_a_snapshot_of_the_same_content_touches_no_row(
    w: Writing, lo: float, hi: float
) -> None:
    await w.put((customer(name="same", balance=3), 5, 6))
    before = await w.place("customer", "cus_1")
    assert await w.put((customer(name="same", balance=3), lo, hi)) == []
    assert await w.place("customer", "cus_1") == before


async def test_the_state_between_two_that_are_alike_never_wins_when_it_comes_late(
    w: Writing,
) -> None:
    await w.put((customer(name="same"), 1, 2))
    await w.put((customer(name="same"), 8, 9))
    # Stripe had "between" at 4, and "same" again at 8.
    assert await w.put((customer(name="between"), 4, 5)) == []
    assert await name_of(w) == "same"
    # What overlaps with the moment when the row was last seen is for one GET to decide.
    assert len(await w.put((customer(name="next"), 8.5, 9.5))) == 1
    assert await name_of(w) == "same"
    now = await w.pg.fetchval("SELECT clock_timestamp()")
    await w.put((customer(name="next"), 8.7, 9.7), known_until=now)
    assert await name_of(w) == "next"
    assert await w.put((customer(name="last"), 9.7, 10.7)) == []
    assert await name_of(w) == "last"


async def test_an_answer_over_a_version_that_was_seen_again_since_does_not_win_by_it(
    w: Writing,
) -> None:
    await w.put((customer(name="same"), 1, 2))
    before = await w.pg.fetchval("SELECT clock_timestamp()")
    # The answer that shows "between" was requested first and arrives last.
    await w.put((customer(name="same"), 8, 9))
    assert await w.put((customer(name="between"), 4, 5), known_until=before) == []
    assert await name_of(w) == "same"
    conflicts = await w.put((customer(name="between"), 7.5, 8.5), known_until=before)
    assert [(c.table, c.key) for c in conflicts] == [("customer", "cus_1")]
    assert await name_of(w) == "same"


async def test_an_answer_requested_after_the_row_was_last_seen_wins_over_that(w: Writing) -> None:
    await w.put((customer(name="same"), 1, 2))
    await w.put((customer(name="same"), 8, 9))
    now = await w.pg.fetchval("SELECT clock_timestamp()")
    assert await w.put((customer(name="next"), 8.5, 9.5), known_until=now) == []
    assert await name_of(w) == "next"


async def test_the_same_content_in_another_api_version_is_written(w: Writing) -> None:
    await w.put((customer(name="same"), 1, 2))
    await w.pg.execute("UPDATE stripe.customer SET _api_version = '2020-08-27'")
    await w.put((customer(name="same"), 3, 4))
    assert (await w.row("customer", "cus_1"))["_api_version"] == VERSION


async def test_an_overlapping_snapshot_of_other_content_is_contested_and_not_written(
    w: Writing,
) -> None:
    await w.put((customer(name="one"), 5, 6))
    conflicts = await w.put((customer(name="two"), 5.5, 6.5))
    assert [(c.table, c.key) for c in conflicts] == [("customer", "cus_1")]
    assert await name_of(w) == "one"


async def test_what_was_asked_for_after_the_row_was_seen_wins_over_it(w: Writing) -> None:
    await w.put((customer(name="one"), 5, 6))
    assert len(await w.put((customer(name="two"), 5.5, 6.5))) == 1
    now = await w.pg.fetchval("SELECT clock_timestamp()")
    assert await w.put((customer(name="three"), 5.6, 6.6), known_until=now) == []
    row = await w.row("customer", "cus_1")
    assert row["name"] == "three"
    assert row["_as_of_latest"] == at(6.6)


async def test_an_answer_over_a_version_that_has_passed_is_contested_again(w: Writing) -> None:
    await w.put((customer(name="one"), 5, 6))
    now = await w.pg.fetchval("SELECT clock_timestamp()")
    await w.put((customer(name="other"), 6, 7))
    await w.put((customer(name="one"), 7, 8))
    conflicts = await w.put((customer(name="two"), 7.6, 8.6), known_until=now)
    assert [c.key for c in conflicts] == ["cus_1"]
    assert await name_of(w) == "one"


async def test_an_absent_field_keeps_its_value_and_null_is_null(w: Writing) -> None:
    await w.put((customer(name="N", email="e@example.com", metadata={"a": "1"}), 0, 1))
    await w.put((customer(name="M"), 1, 2))
    row = await w.row("customer", "cus_1")
    assert (row["name"], row["email"], row["metadata"]) == ("M", "e@example.com", '{"a": "1"}')
    await w.put((customer(email=None), 2, 3))
    row = await w.row("customer", "cus_1")
    assert (row["name"], row["email"]) == ("M", None)


async def test_unknown_fields_are_merged_by_their_name(w: Writing) -> None:
    async def extra() -> object:
        return (await w.row("customer", "cus_1"))["_extra"]

    await w.put((customer(colour="red", size={"cm": 3}), 0, 1))
    assert await extra() == '{"size": {"cm": 3}, "colour": "red"}'
    await w.put((customer(name="N"), 1, 2))
    assert await extra() == '{"size": {"cm": 3}, "colour": "red"}'
    await w.put((customer(size={"inch": 1}), 2, 3))
    assert await extra() == '{"size": {"inch": 1}, "colour": "red"}'


async def test_a_misfit_leaves_with_the_next_value_that_fits(w: Writing) -> None:
    await w.put((customer(balance="many"), 0, 1))
    row = await w.row("customer", "cus_1")
    assert (row["balance"], row["_extra"]) == (None, '{"balance": "many"}')
    await w.put((customer(balance=7), 1, 2))
    row = await w.row("customer", "cus_1")
    assert (row["balance"], row["_extra"]) == (7, None)


async def test_unknown_fields_that_differ_are_contested_too(w: Writing) -> None:
    await w.put((customer(name="N", colour="red"), 5, 6))
    conflicts = await w.put((customer(name="N", colour="blue"), 4.5, 6.5))
    assert [c.key for c in conflicts] == ["cus_1"]
    assert (await w.row("customer", "cus_1"))["_extra"] == '{"colour": "red"}'


async def test_a_late_page_does_not_raise_the_dead(w: Writing) -> None:
    await w.put((customer(name="N"), 0, 1))
    await w.put((customer(deleted=True), 10, 11))
    assert await w.put((customer(name="N"), 3, 9)) == []
    row = await w.row("customer", "cus_1")
    assert (row["deleted"], row["name"]) == (True, "N")


async def test_an_object_made_anew_under_a_chosen_id_lives_again(w: Writing) -> None:
    await w.put(({"id": "p", "object": "product", "deleted": True}, 0, 1))
    await w.put(({"id": "p", "object": "product", "name": "Again"}, 1, 2))
    row = await w.row("product", "p")
    assert (row["deleted"], row["name"]) == (False, "Again")


async def test_rows_of_several_shapes_go_in_one_batch(w: Writing) -> None:
    await w.put(*((customer(id=f"cus_{n}", name="old", balance=n), 0, 1) for n in range(6)))
    shapes: list[StripeObject] = [{"name": "new"}, {"balance": 9}, {"name": None, "balance": 8}]
    await w.put(*((customer(id=f"cus_{n}", **shapes[n % 3]), 1, 2) for n in range(8)))
    rows = await w.pg.fetch(f"SELECT name, balance FROM {SCHEMA}.customer ORDER BY id")
    expected = [("new", 0), ("old", 9), (None, 8), ("new", 3), ("old", 9), (None, 8)]
    assert [tuple(r) for r in rows] == [*expected, ("new", None), (None, 9)]


async def test_a_key_that_comes_twice_with_other_content_is_decided_in_the_batch(
    w: Writing,
) -> None:
    a, b, c = (customer(name=n) for n in "abc")
    assert await w.put((a, 0, 1), (b, 2, 3), (c, 1, 2), (b, 2.5, 3.5)) == []
    row = await w.row("customer", "cus_1")
    assert (row["name"], row["_as_of"], row["_as_of_latest"]) == ("b", at(2), at(3))
    conflicts = await w.put((a, 5, 6), (b, 5.5, 6.5))
    assert [c.key for c in conflicts] == ["cus_1"]


async def test_the_same_snapshot_again_writes_nothing(w: Writing) -> None:
    snapshot = (customer(name="N", metadata={"a": "b"}, colour="red", created=5), 5, 6)
    await w.put(snapshot)
    before = await w.place("customer", "cus_1")
    assert await w.put(snapshot, snapshot) == []
    assert await w.place("customer", "cus_1") == before


async def test_text_that_postgres_cannot_hold_does_not_end_the_writer(w: Writing) -> None:
    with pytest.raises(Drifted):
        await w.put((customer(name="nul \0 byte"), 0, 1))
    await w.put((customer(name="fine"), 0, 1))
    assert await name_of(w) == "fine"


async def test_a_writer_works_on_after_an_error_in_the_middle(
    w: Writing, pg: asyncpg.Connection
) -> None:
    await w.put((customer(name="one"), 0, 1))
    await pg.execute(f"ALTER TABLE {SCHEMA}.customer ADD CHECK (name <> 'bad')")
    mark = Checkpoint("/v1/customers", "running", position={"table": "customer"})
    with pytest.raises(Exception, match="23514"):
        await w.put(
            ({"id": "c1", "object": "coupon"}, 1, 2),
            (customer(name="bad"), 1, 2),
            checkpoints=[mark],
        )
    assert await pg.fetchval(f"SELECT count(*) FROM {SCHEMA}.coupon") == 0
    assert await load_checkpoints(pg, SCHEMA) == {}
    await w.put((customer(name="good"), 1, 2), checkpoints=[mark])
    assert await name_of(w) == "good"
    assert list(await load_checkpoints(pg, SCHEMA)) == ["/v1/customers"]


async def test_two_writers_on_the_same_rows_never_wait_in_a_circle(
    database: str, w: Writing
) -> None:
    rounds, keys = 25, 40

    async def write(mine: Writing, offset: float, seed: int) -> None:
        dice = Random(seed)
        for number in range(rounds):
            order = dice.sample(range(keys), keys)
            moment = 2 * number + offset
            end = moment + 1
            people: list[Snapshot] = [
                (customer(id=f"cus_{k}", balance=int(moment)), moment, end) for k in order
            ]
            things: list[Snapshot] = [
                ({"id": f"p_{k}", "object": "product", "name": str(moment)}, moment, end)
                for k in order
            ]
            await mine.put(*people, *things)

    async with writing(database, *_TABLES) as other, asyncio.timeout(60):
        await asyncio.gather(write(w, 0, 1), write(other, 1, 2))
    balances = await w.pg.fetch(f"SELECT DISTINCT balance, _as_of FROM {SCHEMA}.customer")
    assert [tuple(b) for b in balances] == [(2 * rounds - 1, at(2 * rounds - 1))]


async def test_a_member_that_changes_while_a_list_takes_it_out_is_contested(database: str) -> None:
    def subscription(*ids: str) -> StripeObject:
        data = [{"id": i, "object": "subscription_item", "subscription": "sub_1"} for i in ids]
        items = {"object": "list", "data": data, "has_more": False}
        return {"id": "sub_1", "object": "subscription", "items": items}

    names = ("subscription", "subscription_item")
    await make_schema(database, names)
    async with writing(database, *names) as w:
        await w.put((subscription("si_1", "si_2"), 0, 1))
        change = (
            f"UPDATE {SCHEMA}.subscription_item SET quantity = 2, _synced_at = clock_timestamp(),"
            " _as_of = _as_of + interval '5 s', _as_of_latest = _as_of_latest + interval '5 s'"
            " WHERE id = 'si_2'"
        )
        other = w.pg.transaction()
        await other.start()
        await w.pg.execute(change)
        taking = asyncio.create_task(w.put((subscription("si_1"), 4, 8)))
        async with asyncio.timeout(20):
            while not await w.pg.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await other.commit()
        (conflict,) = await taking
        assert (conflict.table, conflict.key) == ("subscription_item", "si_2")


class History:
    """One object whose content changes at known moments, and snapshots that know them roughly.

    In most histories it changes back to what it was.
    """

    def __init__(self, dice: Random) -> None:
        self.changes = sorted(dice.uniform(0, 20) for _ in range(dice.randint(1, 5)))
        self.snapshots: list[tuple[float, float, int, float]] = []
        states = dice.choice([2, 2, 3, 99])
        for _ in range(dice.randint(2, 10)):
            true_at = dice.uniform(0, 20)
            content = sum(change <= true_at for change in self.changes) % states
            lo = true_at - dice.choice([0.0, 0.1, 1.0, 3.0]) * dice.random()
            hi = true_at + 0.01 + dice.choice([0.1, 1.0, 3.0]) * dice.random()
            self.snapshots.append((lo, hi, content, true_at))


async def test_any_history_in_any_order_ends_in_the_newest_state_or_is_contested(
    w: Writing,
) -> None:
    """Random snapshots of one object; each is true for a moment hidden in its interval."""
    for seed in range(150):
        dice = Random(seed)
        history = History(dice)
        key = f"cus_h{seed}"
        open_contests = 0
        held: tuple[float, float, int] | None = None
        for size in itertools.cycle([1, 1, 2, 3]):
            chosen, history.snapshots = history.snapshots[:size], history.snapshots[size:]
            if not chosen:
                break
            conflicts = await w.put(
                *((customer(id=key, balance=content), lo, hi) for lo, hi, content, _ in chosen)
            )
            open_contests += len(conflicts)
            row = await w.row("customer", key)
            content = int(row["balance"])
            lo, hi = (row["_as_of"].timestamp() - T0, row["_as_of_latest"].timestamp() - T0)
            if held is not None and held[2] != content:
                # Never back to a surely older state: what replaced it began after it ended.
                assert lo >= held[1] - 1e-5
            held = (lo, hi, content)
            all_seen = chosen
            assert any(c == content or s for _, _, c, s in all_seen)
        everything = History(Random(seed)).snapshots
        newest = max(everything, key=lambda s: s[3])
        row = await w.row("customer", key)
        if row["balance"] != newest[2]:
            assert open_contests, f"seed {seed}: neither newest nor contested"


async def test_stages_do_not_keep_what_a_rolled_back_batch_left(w: Writing) -> None:
    batch = Batch(VERSION, w.writer._tables)
    found = RowSet()
    w.extractor.object(customer(name="lost"), found)
    batch.add(found, AsOf(T0, T0 + 1))

    async def fail(_: object) -> None:
        raise asyncio.CancelledError

    batch.effects.append(fail)
    with pytest.raises(asyncio.CancelledError):
        await w.writer.write(batch)
    await w.put((customer(id="cus_2", name="kept"), 0, 1))
    assert await w.pg.fetchval(f"SELECT array_agg(id) FROM {SCHEMA}.customer") == ["cus_2"]


COUPON: StripeObject = {"id": "c1", "object": "coupon", "name": "new"}
WHOLE: StripeObject = {
    "id": "c1",
    "object": "coupon",
    "name": "old",
    "applies_to": {"products": ["prod_1"]},
    "currency_options": {"eur": {"amount_off": 5}},
}


async def test_a_late_page_completes_what_an_event_left_out_and_nothing_else(w: Writing) -> None:
    await w.put((COUPON, 5, 6))
    assert (await w.row("coupon", "c1"))["_partial"] is True
    assert await w.put((WHOLE, 0, 1)) == []
    row = await w.row("coupon", "c1")
    assert (row["name"], row["applies_to_products"], row["_partial"]) == ("new", ["prod_1"], None)
    assert row["_as_of"] == at(5)


async def test_an_event_leaves_what_only_a_page_tells(w: Writing) -> None:
    await w.put((WHOLE, 0, 1))
    await w.put((COUPON, 5, 6))
    row = await w.row("coupon", "c1")
    assert (row["name"], row["applies_to_products"]) == ("new", ["prod_1"])


async def test_a_deleted_plan_that_a_later_subscription_still_holds_stays_deleted(
    database: str,
) -> None:
    plan: StripeObject = {"id": "plan_1", "object": "plan", "amount": 500}
    item: StripeObject = {"id": "si_1", "object": "subscription_item", "plan": plan}
    await make_schema(database, ["plan", "subscription_item"])
    async with writing(database, "plan", "subscription_item") as w:
        await w.put((item, 0, 1))
        assert (await w.row("plan", "plan_1"))["deleted"] is False
        await w.put(({"id": "plan_1", "object": "plan", "deleted": True}, 5, 6))
        await w.put((item, 10, 11))
        assert (await w.row("plan", "plan_1"))["deleted"] is True
        # Its own address tells whether it lives.
        await w.put((plan, 20, 21))
        assert (await w.row("plan", "plan_1"))["deleted"] is False


async def test_a_deletion_that_comes_after_a_later_subscription_with_the_plan_is_looked_up(
    database: str,
) -> None:
    """The subscription of second 10 shows the plan that was deleted at 5, and says nothing of that."""
    plan: StripeObject = {"id": "plan_1", "object": "plan", "amount": 500}
    item: StripeObject = {"id": "si_1", "object": "subscription_item", "plan": plan}
    gone: StripeObject = {**plan, "deleted": True}
    await make_schema(database, ["plan", "subscription_item"])
    async with writing(database, "plan", "subscription_item") as w:
        await w.put((item, 10, 11))
        conflicts = await w.put((gone, 5, 6))
        assert [(c.table, c.key) for c in conflicts] == [("plan", "plan_1")]
        await w.put((gone, 20, 21))
        assert await w.put((gone, 5, 6)) == []


async def test_a_row_of_another_version_keeps_no_value_that_ours_does_not_send(w: Writing) -> None:
    await w.put((customer(name="N", phone="old", colour="red"), 0, 1))
    await w.pg.execute(f"UPDATE {SCHEMA}.customer SET _api_version = '2020-08-27'")
    await w.put((customer(name="N"), 5, 6))
    row = await w.row("customer", "cus_1")
    assert (row["name"], row["phone"], row["_extra"]) == ("N", None, None)
    assert row["_api_version"] == VERSION


async def test_the_stub_of_a_deletion_leaves_a_row_of_another_version_its_content(
    w: Writing,
) -> None:
    await w.put((customer(name="N", phone="old"), 0, 1))
    await w.pg.execute(f"UPDATE {SCHEMA}.customer SET _api_version = '2020-08-27'")
    await w.put((customer(deleted=True), 5, 6))
    row = await w.row("customer", "cus_1")
    assert (row["deleted"], row["name"], row["phone"]) == (True, "N", "old")
    assert row["_api_version"] == "2020-08-27"


async def test_an_event_is_not_older_than_a_response_that_may_have_come_before_it(
    w: Writing,
) -> None:
    await w.put((customer(name="one"), 0, 1))
    # The row was seen in a response of [2, 12), and an event of 5 changes it.
    assert await w.put((customer(name="one"), 2, 12)) == []
    assert await w.put((customer(name="two"), 5, 6)) == []
    assert await name_of(w) == "two"
    # A response of [4, 14) that shows the old state decides nothing.
    assert len(await w.put((customer(name="one"), 4, 14))) == 1
    assert await name_of(w) == "two"
