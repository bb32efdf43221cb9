"""Lists the children of one object, for a to-do: what an event says may have changed under it."""

from __future__ import annotations

from dataclasses import replace

from pinstripe.catalog.endpoints import ListEndpoint, list_endpoints
from pinstripe.catalog.tables import table_name
from pinstripe.client.paths import quote_id
from pinstripe.errors import NotFound
from pinstripe.source.account import LIVE, Source
from pinstripe.source.settle import can_be_asked
from pinstripe.store.todo import Todo, add_todos
from pinstripe.store.vanish import may_go, unshown


async def list_children(source: Source, todo: Todo) -> list[Todo]:
    """Mirrors the children of `todo.table` under the parent `todo.id`, to the end of the list.

    Gives what is noted to be asked next: children that the list does not show, and that most likely are
    gone. Raises what `Source.read` raises.
    """
    endpoint = _endpoint(todo.table, todo.parent)
    if endpoint is None:
        return []
    path, params = endpoint.url(todo.id, quote_id(todo.id))
    parent = table_name(endpoint.parent)
    shown: set[str] = set()
    try:
        await source.read(
            endpoint,
            path,
            params,
            parents={parent: todo.id},
            priority=LIVE,
            cause=todo.cause,
            shown=shown,
        )
    except NotFound:
        return []  # The parent went, and its list with it.
    child = source.wanted.get(todo.table)
    if child is None or not may_go(child, parent) or not can_be_asked(todo.table):
        return []
    schema = source.mirror.schema
    async with source.transaction() as connection:
        keys = await unshown(connection, schema, child, (parent, todo.id), shown)
        left = [replace(todo, kind="fetch", id=key, parent=todo.id) for key in keys]
        await add_todos(connection, schema, left)
    return left


def _endpoint(table: str, parent: str) -> ListEndpoint | None:
    for endpoint in list_endpoints():
        if endpoint.parent == parent and table in map(table_name, endpoint.objects):
            return endpoint
    return None
