"""Every function and operator of pg_catalog, planted in `public` with a trap in it: none is ever met.

Until Postgres 14 everybody may create in `public` (CVE-2018-1058), and in clusters upgraded from there.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg

from pinstripe_simulator.account import Settings
from pinstripe_simulator.server import running
from tests.flows.harness.command import pinstripe
from tests.flows.harness.serving import SECRET, env_of, served

_FUNCTIONS = """
SELECT p.oid, p.proname AS name, p.pronargs AS takes, format_type(p.prorettype, NULL) AS gives, (
  SELECT coalesce(string_agg(format_type(t, NULL), ', ' ORDER BY n), '')
  FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, n)) AS types
FROM pg_proc AS p JOIN pg_type AS r ON r.oid = p.prorettype AND r.typtype <> 'p'
WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.provariadic = 0
  AND NOT p.proretset AND p.proargmodes IS NULL AND NOT EXISTS (
    SELECT FROM unnest(p.proargtypes) AS a JOIN pg_type AS t ON t.oid = a WHERE t.typtype = 'p')
"""
_OPERATORS = """
SELECT oprname AS name, oprcode::oid AS oid, format_type(oprright, NULL) AS right_type,
  format_type(nullif(oprleft, 0), NULL) AS left_type
FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace
"""
_TRAP = """
CREATE FUNCTION public."{name}"({types}) RETURNS {gives} LANGUAGE plpgsql AS $$ BEGIN
  IF pg_catalog.current_setting('application_name') OPERATOR(pg_catalog.<>) 'planter' THEN
    BEGIN INSERT INTO public.caught VALUES ('{name}', pg_catalog.current_query());
    EXCEPTION WHEN OTHERS THEN RAISE WARNING 'caught by {name}'; END;
  END IF;
  RETURN pg_catalog."{name}"({given});
END $$
"""
COMMANDS = (("verify",), ("status",), ("check",), ("reader", "create"), ("syncs", "list"))
PAGES = ("", "/tables", "/tables/customer", "/events", "/insights", "/diagram", "/sql")


async def plant(pg: asyncpg.Connection) -> int:
    """How many traps there are."""
    name = await pg.fetchval("SELECT current_database()")
    await pg.execute(
        "SET application_name = 'planter'; SET search_path = pg_catalog; "
        "CREATE UNLOGGED TABLE public.caught (name text, statement text); "
        f"ALTER DATABASE {name} SET search_path = public, pg_catalog"
    )
    functions = {row["oid"]: row for row in await pg.fetch(_FUNCTIONS)}
    planted = 0
    async with pg.transaction():
        for row in functions.values():
            given = ", ".join(f"${n + 1}" for n in range(row["takes"]))
            await pg.execute(_TRAP.format(**row, given=given))
        for row in await pg.fetch(_OPERATORS):
            if row["oid"] not in functions:
                continue
            left = f"LEFTARG = {row['left_type']}, " if row["left_type"] else ""
            function = f'FUNCTION = public."{functions[row["oid"]]["name"]}"'
            try:
                async with pg.transaction():
                    await pg.execute(
                        f"CREATE OPERATOR public.{row['name']} "
                        f"({left}RIGHTARG = {row['right_type']}, {function})"
                    )
            except asyncpg.PostgresError:
                continue
            planted += 1
    return planted + len(functions)


async def test_nothing_that_is_planted_in_public_is_ever_run(
    database: str, pg: asyncpg.Connection, tmp_path: Path
) -> None:
    assert await plant(pg) > 2000
    async with running(Settings(scale=10, keys=(SECRET,))) as sim:
        env = {
            **env_of(sim, database),
            "PINSTRIPE_TABLES": "",
            "PINSTRIPE_CHANGES": "true",
            "PINSTRIPE_FOREIGN_KEYS": "true",
            "PINSTRIPE_COMPAT": "fivetran,sigma,supabase",
            "PINSTRIPE_DATA_DIR": str(tmp_path),
        }
        async with served(env) as service:
            await service.until_ready()
            made, _ = await service.make_customer("Ada")
            bearer = {"Authorization": f"Bearer {SECRET}"}
            wait = f"{service.url}/wait/stripe/default?timeout=60"
            async with service.http.get(wait, headers=bearer) as answer:
                assert answer.status == 200
            for page in PAGES:
                async with service.http.get(f"{service.url}/syncs/default{page}") as answer:
                    assert answer.status == 200, page
        for words in (*COMMANDS, ("erase", made)):
            done = await pinstripe(*words, env=env)
            # What is read by parent may still be on its way when `verify` looks.
            assert done.code in ((0, 6) if words == ("verify",) else (0,)), done.text
    assert await pg.fetch("SELECT DISTINCT name, statement FROM public.caught") == []
    # And they do catch.
    stranger = await asyncpg.connect(database)
    assert await stranger.fetchval("SELECT lower('A') || upper('b')") == "aB"
    await stranger.close()
    assert {r[0] for r in await pg.fetch("SELECT name FROM public.caught")} >= {"lower", "upper"}
