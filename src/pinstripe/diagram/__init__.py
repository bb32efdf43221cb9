"""The entity-relationship diagram of the replica, from the catalog alone.

content (what a diagram shows) -> layout (where it goes) -> svg; or content -> mermaid. Pure and
deterministic; needs no database. `content` begins with the domains, goes on to the tables of one, and
ends with a table and its neighbours both ways.
"""
