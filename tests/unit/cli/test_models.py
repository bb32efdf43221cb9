"""The models that `pinstripe schema models` prints are read by the tools that they are for.

The tools of Node are used where PINSTRIPE_TEST_NODE names a folder whose `node_modules` has esbuild,
drizzle-orm and @prisma/prisma-schema-wasm.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import configure_mappers

from pinstripe.catalog.tables import tables
from pinstripe.cli.models import TOOLS, Tool, models

NODE = os.environ.get("PINSTRIPE_TEST_NODE", "")
needs_node = pytest.mark.skipif(not NODE, reason="PINSTRIPE_TEST_NODE names no folder")
SOME = [tables()[n] for n in ("charge", "customer", "invoice", "subscription", "payment_intent")]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes models and imports them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(tool: Tool) -> ModuleType:
        (tmp_path / f"models_of_{tool}.py").write_text(models(tool, "stripe", SOME))
        return importlib.import_module(f"models_of_{tool}")

    yield load
    for tool in TOOLS:
        sys.modules.pop(f"models_of_{tool}", None)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_column_and_its_description_is_in_the_models(tool: Tool) -> None:
    text = models(tool, "stripe", list(tables().values()))
    for table in tables().values():
        assert table.name in text
        for column in table.all_columns:
            assert column.name in text
    assert "Refers to customer." in text


def test_sqlalchemy_reads_its_models_and_makes_the_join(loaded: Any) -> None:
    read = loaded("sqlalchemy")
    configure_mappers()
    query = sqlalchemy.select(read.Invoice.id).join(read.Invoice.subscription)
    assert "invoice.subscription_id = stripe.subscription.id" in str(query)


def test_pydantic_reads_its_models(loaded: Any) -> None:
    read = loaded("pydantic")
    charge = read.Charge.model_validate(
        {
            "id": "ch_1",
            "metadata": {"a": 1},
            "created": "2026-01-01T00:00:00Z",
            "customer": {"id": "cus_1"},
        }
    )
    assert (charge.customer.id, charge.metadata_, charge.created.year) == ("cus_1", {"a": 1}, 2026)


@needs_node
def test_drizzle_reads_its_models(tmp_path: Path) -> None:
    (Path(NODE) / "models_test.ts").write_text(models("drizzle", "stripe", SOME))
    source = (
        "import * as s from './models_test.ts'; import { PgDialect } from 'drizzle-orm/pg-core';"
        "import { drizzle } from 'drizzle-orm/node-postgres';"
        "const db = drizzle.mock({ schema: s });"
        "console.log(db.query.charge.findMany({ with: { customer: true } }).toSQL().sql);"
    )
    (Path(NODE) / "query_test.ts").write_text(source)
    bundle = str(tmp_path / "query.cjs")
    node(
        f"node_modules/.bin/esbuild query_test.ts --bundle --platform=node --outfile={bundle}"
        " --external:pg-native --log-level=error"
    )
    assert '"charge"."customer_id"' in node(f"node {bundle}")


@needs_node
def test_prisma_reads_its_models(tmp_path: Path) -> None:
    schema = tmp_path / "schema.prisma"
    schema.write_text(models("prisma", "stripe", list(tables().values())))
    script = (
        "const w = require('@prisma/prisma-schema-wasm'), fs = require('fs');"
        f"const text = fs.readFileSync({json.dumps(str(schema))}, 'utf8');"
        "const p = JSON.stringify({prismaSchema: [['s.prisma', text]]});"
        "w.validate(p); console.log(JSON.parse(w.get_dmmf(p)).datamodel.models.length);"
    )
    (Path(NODE) / "prisma_test.cjs").write_text(script)
    assert int(node("node prisma_test.cjs")) == len(tables())


def node(command: str) -> str:
    done = subprocess.run(command.split(), cwd=NODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
