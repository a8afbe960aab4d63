"""Alembic's entry: runs migrations on the connection that `upgrade` hands over."""

from alembic import context

from loomos.loomdb.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
