"""The first tables, their triggers, and a role without rights to change them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

GROWING = ("events", "tiles", "checkpoints", "cosignatures")
WRITER_ROLE = "loomdb_writer"

big = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "events",
        sa.Column("position", big, primary_key=True, autoincrement=False),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("version", big, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("schema", sa.Integer, nullable=False),
        sa.Column("time_us", big, nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("stream", "version"),
    )
    op.create_index("ix_events_event_type", "events", ["event_type", "position"])
    op.create_table(
        "tiles",
        sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("tile", big, primary_key=True, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("size", big, primary_key=True, autoincrement=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("signed_us", big, nullable=False),
    )
    op.create_table(
        "cosignatures",
        sa.Column("size", big, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
    )
    head = op.create_table(
        "head",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("size", big, nullable=False),
        sa.Column("epoch", big, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("lease_until_us", big, nullable=False),
    )
    op.create_table(
        "inbox",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("submitted_us", big, nullable=False),
        sa.Column("outcome", sa.Text),
    )
    op.create_index("ix_inbox_submitted", "inbox", ["submitted_us"])
    op.create_table(
        "subjects",
        sa.Column("reference", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, unique=True),
        sa.Column("key", sa.LargeBinary),
    )
    op.create_table(
        "projections",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("position", big, nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "size": 0, "epoch": 0, "holder": "", "lease_until_us": 0}])
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgres()
    else:
        _guard_sqlite()


def _guard_sqlite() -> None:
    for table in GROWING:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} only grows'); END"
            )


def _guard_postgres() -> None:
    op.execute(
        "CREATE FUNCTION loomdb_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% only grows', TG_TABLE_NAME "
        "USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in GROWING:
        op.execute(
            f"CREATE TRIGGER {table}_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION loomdb_only_grows()"
        )
    _make_writer_role()


def _make_writer_role() -> None:
    """`loomdb_writer` may add and read; who migrates without CREATEROLE goes without it."""
    may_create = op.get_bind().scalar(
        sa.text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    )
    if not may_create:
        return
    op.execute(
        f"DO $$ BEGIN CREATE ROLE {WRITER_ROLE} NOLOGIN; "
        "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )
    op.execute(f"GRANT SELECT, INSERT ON {', '.join(GROWING)} TO {WRITER_ROLE}")
    op.execute(
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON head, inbox, subjects, projections "
        f"TO {WRITER_ROLE}"
    )
    op.execute(f"GRANT SELECT ON alembic_version TO {WRITER_ROLE}")
    # Read models make tables of their own.
    schema = op.get_bind().scalar(sa.text("SELECT current_schema()"))
    op.execute(f'GRANT CREATE, USAGE ON SCHEMA "{schema}" TO {WRITER_ROLE}')
