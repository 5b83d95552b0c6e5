"""Cuts the network between four fog nodes in two, twice: two and two, and one from three; and lets it mend.

usage: partition.py      needs root and `ip`; without them nothing is run

Each node is in a network namespace of its own, the sandbox with gateway and devices in one more. Two bridges in a sixth carry
them; a cut moves some of the hosts to the other bridge: no packet goes between the two, and nobody is told. Two and two:
nothing becomes final on either side, what is final is one chain, writes and (after the freshness limit) reads are refused,
the gateway keeps what it acknowledged. One from three: the three go on, the one refuses. Mended, all have the same head again
within HEAL_MAX_S, and at the end the devices' own list is compared with the chain. Prints how long everything took.
"""

import atexit
import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import time
import unittest

import sandbox
from sandbox import Sandbox, eventually

# From the mending until all nodes are ready, have had another block, and have the same head: links that were silent are dialled
# anew within seconds, and missing blocks fetched; the rest is for a slow machine.
HEAL_MAX_S = 60
# A node refuses after http.stale_after_ms (15 s) without a block; the rest is for a slow machine.
REFUSED_MAX_S = 45
# What two thirds had voted for before the cut may become final after it; that is over when no height moves for so long.
UNDER_WAY_S = 5
UNDER_WAY_MAX_S = 60
# So long nothing may become final after that.
STILL_S = 20
# The three go on so many blocks without the one, with its turns to lead skipped.
BLOCKS_WITHOUT_ONE = 10
GO_ON_MAX_S = 120

NODES = 4
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@contextlib.contextmanager
def inside(namespace):
    """Lets this program use the network of a namespace."""
    def enter(handle):
        if LIBC.setns(handle, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"the namespace {namespace} cannot be entered")

    with open("/proc/self/ns/net") as here, open(f"/run/netns/{namespace}") as there:
        enter(there.fileno())
        try:
            yield
        finally:
            enter(here.fileno())


class Network:
    """Hosts on two bridges, each a namespace: `home` and the nodes. They end with the program."""

    def __init__(self):
        self.prefix = f"vitalfog-{os.getpid()}-"
        self.made = []
        atexit.register(self.clear)
        sweep()
        self.switch = self.add("switch")
        for bridge in ("one", "two"):
            ip("-n", self.switch, "link", "add", bridge, "up", "type", "bridge")
        self.home = self.host("home", 1)
        self.nodes = [self.host(f"node-{i}", 2 + i) for i in range(NODES)]

    @staticmethod
    def address(number):
        return f"10.213.77.{number}"

    def add(self, name):
        namespace = self.prefix + name
        ip("netns", "add", namespace)
        self.made.append(namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def host(self, name, number):
        namespace = self.add(name)
        ip("-n", self.switch, "link", "add", name, "type", "veth", "peer", "name", "wire", "netns", namespace)
        ip("-n", self.switch, "link", "set", name, "up", "master", "one")
        ip("-n", namespace, "address", "add", f"{self.address(number)}/24", "dev", "wire")
        ip("-n", namespace, "link", "set", "wire", "up")
        return namespace

    def settings(self):
        """The lines of the sandbox's configuration that put each node on its host."""
        hosts = [f'{{ address = "{self.address(2 + i)}", namespace = "{self.nodes[i]}" }}' for i in range(NODES)]
        return f"hosts = [{', '.join(hosts)}]\n"

    def cut_off(self, nodes):
        for node in nodes:
            ip("-n", self.switch, "link", "set", f"node-{node}", "master", "two")

    def mend(self):
        for node in range(NODES):
            ip("-n", self.switch, "link", "set", f"node-{node}", "master", "one")

    def clear(self):
        for namespace in self.made:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, timeout=20)


def sweep():
    """Removes the namespaces of earlier runs that were killed."""
    for path in pathlib.Path("/run/netns").glob("vitalfog-*-*"):
        if not pathlib.Path("/proc", path.name.split("-")[1]).exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, timeout=20)


class Apart(Sandbox):
    """A sandbox whose nodes are on hosts of their own; each node is asked from its own host, cut off or not."""

    def __init__(self, network):
        self.network = network
        super().__init__(devices=14, settings=network.settings(), prefix=("ip", "netns", "exec", network.home))

    def doorway(self, node):
        return inside(self.network.nodes[node])

    def gateway_status(self):
        with inside(self.network.home):
            return super().gateway_status()

    def write(self, node):
        """The answer to something that the gateway might hand in, and that is no bundle."""
        files = self.folder / "data/gateway"
        return self.ask(node, "/api/v1/bundles", body=b"no bundle",
                        certificate=(files / "gateway.crt", files / "gateway.key"))

    def read(self, node):
        return self.ask(node, "/fhir/Observation?_count=1", token=self.report["hospital"]["token"])


@unittest.skipUnless(os.geteuid() == 0 and shutil.which("ip"), "partition.py needs root and iproute2")
class Partition(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        try:
            cls.network = Network()
        except subprocess.CalledProcessError as refused:
            raise unittest.SkipTest(f"no network namespaces here: {refused.stderr.strip()}") from refused
        cls.sandbox = Apart(cls.network)

    def tearDown(self):
        self.network.mend()

    def heights(self, nodes=range(NODES)):
        return [self.sandbox.height(node) for node in nodes]

    def cut_off(self, nodes, stopped):
        """Cuts, and waits until those that it stops have ended what was under way. Returns when it was cut."""
        self.sandbox.agreed()
        for node in range(NODES):
            self.assertEqual(self.sandbox.write(node)[0], 422, "before the cut a write is read, and is no bundle")
        self.assertEqual(self.sandbox.read(0)[0], 200)
        self.network.cut_off(nodes)
        cut = time.monotonic()
        self.let_end(stopped)
        return cut

    def let_end(self, nodes):
        """Waits until nothing becomes final any more at these nodes."""
        seen, since = self.heights(nodes), time.monotonic()

        def stands():
            nonlocal seen, since
            now = self.heights(nodes)
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > UNDER_WAY_S

        eventually("an end of what was under way", UNDER_WAY_MAX_S, stands)

    def stands_still(self, nodes, within_s):
        """Looks for so long that no node's height moves; returns the heads."""
        before, deadline = self.heights(nodes), time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.assertEqual(self.heights(nodes), before, "something became final without a quorum")
            time.sleep(0.5)
        return {node: self.sandbox.get("/api/v1/chain/head", node) for node in nodes}

    def refuses(self, node, cut):
        """Waits until a node refuses to write and to read, each with its reason."""
        for what, question in (("writes", self.sandbox.write), ("reads", self.sandbox.read)):
            def refused():
                status, body = question(node)
                return status == 503 and json.loads(body)

            outcome = eventually(f"node {node} refusing {what}", REFUSED_MAX_S, refused)
            self.assertEqual(outcome["resourceType"], "OperationOutcome")
            self.assertIn("no block for too long", outcome["issue"][0]["diagnostics"])
        self.assertEqual(self.sandbox.ask(node, "/readyz")[0], 503)
        print(f"node {node} refuses writes and reads {time.monotonic() - cut:.0f} s after the cut, or earlier")

    def heals(self, heads):
        """Mends, waits until all nodes have gone on together, and compares what they had with what they have."""
        above = max(self.heights())
        self.network.mend()
        mended = time.monotonic()

        def together():
            return all(self.sandbox.is_ready(node) and self.sandbox.height(node) > above for node in range(NODES)) \
                and self.sandbox.agrees()

        height = eventually("equal heads after the mending", HEAL_MAX_S, together)
        print(f"healed {time.monotonic() - mended:.1f} s after the mending: equal heads at height {height}")
        for head in heads:
            block = {self.sandbox.get(f"/api/v1/chain/blocks/{head['height']}", node)["digest"] for node in range(NODES)}
            self.assertEqual(block, {head["digest"]}, "what was final on one side is final on all")

    def two_and_two(self):
        cut = self.cut_off([2, 3], range(NODES))
        before = self.sandbox.gateway_status()
        heads = self.stands_still(range(NODES), STILL_S)
        print(f"two and two: {STILL_S} s without a block at heights {[head['height'] for head in heads.values()]}")
        lowest = min(head["height"] for head in heads.values())
        self.assertEqual(len({json.dumps(position) for position in self.sandbox.positions(lowest)}), 1, "a fork")
        for node in range(NODES):
            self.refuses(node, cut)
        now = self.sandbox.gateway_status()
        answered, kept = now["acknowledged"] - before["acknowledged"], now["spooled_readings"]
        self.assertGreater(answered, 0, "devices still get their answers")
        # It may learn late, from another node, what was final before the cut.
        self.assertGreaterEqual(now["final_readings"] + kept, now["acknowledged"], "what it acknowledged is final or kept")
        self.assertGreater(kept, before["spooled_readings"], "and the spool grows")
        print(f"two and two: {answered} readings acknowledged meanwhile, {kept} in the gateway's spool")
        self.heals(heads.values())
        eventually("an empty spool", HEAL_MAX_S, lambda: self.sandbox.gateway_status()["spooled_readings"] < 100)

    def one_from_three(self):
        """The one is the node that the hospital asks and that the gateway hands in to first."""
        cut = self.cut_off([0], [0])
        three, final = [1, 2, 3], self.sandbox.gateway_status()["final_readings"]
        before = self.heights(three)
        alone = self.stands_still([0], STILL_S)
        self.refuses(0, cut)
        enough = max(before) + BLOCKS_WITHOUT_ONE
        eventually("the three go on", GO_ON_MAX_S, lambda: min(self.heights(three)) >= enough)
        eventually("the gateway finds another node", GO_ON_MAX_S,
                   lambda: self.sandbox.gateway_status()["final_readings"] > final + 10)
        for node in three:
            self.assertTrue(self.sandbox.is_ready(node), "the three are ready")
            self.assertEqual(self.sandbox.write(node)[0], 422, "the three take writes")
        went_on = self.heights(three)[0] - before[0]
        print(f"one from three: the three went on {went_on} blocks in {time.monotonic() - cut:.0f} s, the one stood still")
        self.heals(alone.values())

    every_promise_held = sandbox.PromisesHeld.every_promise_held


if __name__ == "__main__":
    sandbox.run(sandbox.in_order(Partition, "two_and_two", "one_from_three", "every_promise_held"))
