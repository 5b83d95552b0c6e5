"""Alters what one running fog node has on its disk, a byte at a time, and waits until the node has mended it.

usage: flipped_bytes.py REPORT      the report of a running sandbox; its nodes should scrub every few seconds

Four attacks on the node of the hospital: a block in chain.redb, a payload in vault.redb, a row of index.sqlite, the snapshot of
the state in chain.redb. Each must become an incident that is mended; afterwards head and state are those of the other
nodes and the hospital reads what it read before. Prints what was done, where, and how long it took.
"""

import contextlib
import json
import pathlib
import random
import sqlite3
import sys
import time
import unittest

import sandbox
from sandbox import AGREE_MAX_S, eventually

SANDBOX = sandbox.Running(sys.argv[-1])
# From the damage until it is mended: two scrubs, on a slow machine; each reads at its own pace what the tests before have written.
MENDED_MAX_S = 300


def data_file(name):
    return pathlib.Path(SANDBOX.report["nodes"][0]["data_dir"]) / name


def flip(path, needle, offset):
    """Flips one byte at an offset from each place where these bytes stand: old copies lie about in the file."""
    data = path.read_bytes()
    places, at = [], data.find(needle)
    while at >= 0:
        places.append(at + offset)
        at = data.find(needle, at + 1)
    assert places, f"{path.name} does not hold what was looked for"
    with open(path, "r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes([data[place] ^ 1]))
    return len(places)


def bundles():
    """Bundles of recent blocks, the newest first."""
    height = SANDBOX.height(0)
    found = []
    for at in range(height - 30, max(height - 400, 1), -1):
        block = SANDBOX.get(f"/api/v1/chain/blocks/{at}")
        found += [(at, transaction["bundle"]) for transaction in block["transactions"] if "bundle" in transaction]
        if len(found) > 3:
            break
    return found


class FlippedBytes(unittest.TestCase):
    def mended(self, kind, since, what):
        """Waits for the incident, mended, and for the node to be as the others are."""
        before = time.monotonic()

        def look():
            new = [each for each in SANDBOX.get("/api/v1/incidents") if each["id"] > since and each["kind"] == kind]
            return [each for each in new if each["took_ms"] is not None]

        incident = eventually(f"a mended incident {kind}", MENDED_MAX_S, look)[-1]
        found_s = time.monotonic() - before - incident["took_ms"] / 1000
        eventually("readiness", AGREE_MAX_S, lambda: SANDBOX.is_ready(0))
        eventually("equal heads and states", AGREE_MAX_S, SANDBOX.agrees)
        print(f"{what}: found after {max(found_s, 0):.1f} s, mended in {incident['took_ms']} ms from "
              f"{', '.join(incident['repaired_from'])}; {incident['where']}: {incident['what']}")
        return incident

    def last_incident(self):
        return max([each["id"] for each in SANDBOX.get("/api/v1/incidents")], default=0)

    def read_all(self):
        status, body = SANDBOX.ask(0, "/fhir/Observation?_summary=count", token=SANDBOX.report["hospital"]["token"])
        self.assertEqual(status, 200, body)
        return json.loads(body)["total"]

    def test_a_block(self):
        since, (height, _) = self.last_incident(), bundles()[0]
        status, carried = SANDBOX.ask(0, f"/api/v1/chain/blocks/{height}", accept="application/vnd.ipld.dag-cbor")
        self.assertEqual(status, 200)
        # A stretch in the middle of the block's own bytes: its transactions.
        start = carried.find(b"transactions")
        places = flip(data_file("chain.redb"), carried[start + 60:start + 120], 30)
        self.mended("chain-damaged", since, f"one byte of block {height} in chain.redb ({places} copies)")

    def test_a_payload(self):
        since, total = self.last_incident(), self.read_all()
        places = flip(data_file("vault.redb"), b"jciphertext", random.randrange(60, 120))
        self.mended("payload-damaged", since, f"one byte of each of {places} payloads in vault.redb")
        self.assertGreaterEqual(self.read_all(), total)

    def test_a_row(self):
        since = self.last_incident()
        with contextlib.closing(sqlite3.connect(data_file("index.sqlite"), timeout=20)) as database, database:
            (row,) = database.execute("SELECT id FROM observation ORDER BY height LIMIT 1 OFFSET 3").fetchone()
            database.execute("UPDATE observation SET effective_ms = effective_ms + 1 WHERE id = ?", (row,))
        self.mended("index-altered", since, "one row of index.sqlite")

    def test_the_snapshot_of_the_state(self):
        since = self.last_incident()
        places = flip(data_file("chain.redb"), b"jvalidators", -3)
        self.mended("chain-damaged", since, f"one byte of the state's snapshot ({places} copies)")


if __name__ == "__main__":
    sandbox.run(unittest.defaultTestLoader.loadTestsFromTestCase(FlippedBytes))
