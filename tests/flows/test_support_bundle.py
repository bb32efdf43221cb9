"""The archive for a bug report holds nothing that is secret or about a person."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import asyncpg
import pytest
from tests.flows.harness.command import pinstripe
from tests.flows.harness.serving import SECRET

KEY = SECRET
PERSON = "Zebedee Quillfeather"


@pytest.mark.migrated
async def test_a_bundle_holds_no_secret_and_nothing_about_a_person(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    """Both planted wherever a status or a setting could take them from."""
    await pg.execute(f"UPDATE pinstripe.sync SET account_id = '{PERSON}', livemode = true")
    await pg.execute(
        "INSERT INTO pinstripe.cursor (schema, stream, state, code, reason, remedy, position) VALUES "
        f"('stripe', 'list charge', 'failed', 'trouble', '{PERSON} {KEY}', '{PERSON}', "
        '\'{"table": "charge"}\'), '
        f"('stripe', 'events', 'running', 'trouble', '{PERSON} {KEY}', '{PERSON}', NULL)"
    )
    await pg.execute(
        'INSERT INTO pinstripe.pending (schema, kind, "table", id, since, code, reason, remedy,'
        f" attempts, next_try_at) VALUES ('stripe', 'fetch', 'charge', '{PERSON}', now(), 'trouble',"
        f" '{PERSON}', '{PERSON}', 3, now())"
    )
    await pg.execute(
        'INSERT INTO pinstripe.quarantine (schema, "table", id, sqlstate, name, reason, remedy)'
        f" VALUES ('stripe', 'charge', '{PERSON}', '23505', 'my_index', '{PERSON}', '{PERSON}')"
    )
    await pg.execute(
        "INSERT INTO stripe.customer (id, name, _as_of, _as_of_latest, _synced_at)"
        f" VALUES ('cus_1', '{PERSON}', now(), now(), now())"
    )
    env = {
        "STRIPE_API_KEY": KEY,
        "DATABASE_URL": database,
        "PINSTRIPE_ADMIN_TOKEN": "thisisthetokenofabundle",
        "PINSTRIPE_WEBHOOK_SECRET": "whsec_thisisthe",
        "PINSTRIPE_PUBLIC_URL": "https://quillfeather.example",
        "PINSTRIPE_DATA_DIR": str(tmp_path),
        "PINSTRIPE_POLL_INTERVAL": "3.5",
    }
    path = tmp_path / "bundle.tar.gz"
    done = await pinstripe("support-bundle", "--output", str(path), env=env)
    assert done.code == 0, done.text
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        files = {m.name: archive.extractfile(m).read().decode() for m in members}  # type: ignore[union-attr]
    whole = "\n".join([*files, *files.values(), done.text])
    for word in ("Zebedee", "uillfeather", "thisisthe", KEY, database, "cus_1"):
        assert word not in whole, word
    status = json.loads(files["pinstripe-support/status.json"])[0]
    assert status["trouble"] is True
    assert any(t["table"] == "charge" and t["state"] == "failed" for t in status["tables"])
    assert status["quarantine"][0]["sqlstate"] == "23505"
    assert json.loads(files["pinstripe-support/settings.json"])["poll_interval"] == 3.5
    assert json.loads(files["pinstripe-support/settings.json"])["api_key"] is True
