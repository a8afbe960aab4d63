"""`loomos gc` and `loomos stack du`, on a stack whose things are all young."""

from __future__ import annotations

import json

from loomos.jobs.retention import Sweepable
from tests.stack import Stack


def test_nothing_young_is_garbage_and_every_class_is_named(stack: Stack) -> None:
    report = json.loads(stack.loomos("gc", "--dry-run", "-o", "json").stdout)
    assert [row["what"] for row in report["freed"]] == [what.value for what in Sweepable]
    assert report["dry_run"] and report["unfinished"] == {}
    assert {row["note"] for row in report["freed"]} == {""}
    young = [row for row in report["freed"] if row["what"] != Sweepable.SERVERS]
    assert sum(row["objects"] for row in young) == 0


def test_what_takes_how_much_is_told_by_disk_and_store(stack: Stack) -> None:
    found = json.loads(stack.loomos("stack", "du", "-o", "json").stdout)
    assert found["folder"] == str(stack.folder.root)
    assert found["disk"]["S3 server"] > 0 and found["disk"]["Temporal's database"] > 0
    assert any(row["what"] == "blobs" and row["objects"] for row in found["store"])
    table = stack.loomos("stack", "du").stdout
    assert "ON DISK" in table and "IN THE STORE" in table
