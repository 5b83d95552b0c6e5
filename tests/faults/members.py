"""Members change members: a fifth node gets a vote, is needed, and loses it again, while readings flow.

usage: members.py

The sandbox prepares a node that is none of the founders, and its epochs are short. With the commands that an operator has,
three of the four organisations raise their voices for it; one voice more or less does not do. Its votes then make blocks final
that the founders alone could not, and receipts of that time hold for who follows the handovers, and not for who knows the
founders alone. In the end the members take the seat back, and every promise of the sandbox is checked. Prints how long it took.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

import sandbox
from sandbox import Sandbox, eventually

EPOCH_BLOCKS = 64
# Two epochs of the slowest blocks that come while readings flow.
EFFECT_MAX_S = 600
# However this test ends, what it started does not outlive it.
ENDS_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
COMMAND_MAX_S = 60
# The newcomer reads the whole chain when it starts.
FOLLOWS_MAX_S = 90
# Blocks that must become final while a founder stands still.
BLOCKS_NEEDED = 20
SCRIPT = pathlib.Path(__file__).parents[2] / "docs/verify_receipt.py"


class Members(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sandbox = Sandbox(devices=20, settings=f"epoch_blocks = {EPOCH_BLOCKS}")
        cls.data = pathlib.Path(cls.sandbox.report["data_dir"])
        cls.newcomer = None

    @classmethod
    def tearDownClass(cls):
        if cls.newcomer and cls.newcomer.poll() is None:
            cls.newcomer.kill()
            cls.newcomer.wait()
        cls.sandbox.close()

    def fog_node(self, *arguments, good=True):
        """What the program printed; `good` says how it must end."""
        command = [self.data / "bin/fog-node", *arguments]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=COMMAND_MAX_S)
        self.assertEqual(ended.returncode == 0, good, ended.stdout)
        return ended.stdout

    def voice(self, organization, *change, good=True):
        return self.fog_node("voice", "--config", self.data / f"nodes/{organization}/config.toml",
                             "--organization-key", self.data / f"organizations/{organization}.pem", *change, good=good)

    def members(self, node=0):
        return self.sandbox.get("/api/v1/members", node)

    def votes(self, key, node=0):
        return key in [validator["key"] for validator in self.members(node)["voting"]]

    def organizations(self):
        return [node["name"] for node in self.sandbox.report["nodes"]]

    def a_fifth_node_gets_a_vote(self):
        cls, plan = type(self), self.sandbox.report["newcomer"]
        seat = self.fog_node("seat", "--config", plan["config_file"])
        cls.key, file = json.loads(seat)["key"], self.data / "seat.json"
        file.write_text(seat)
        first, second, third, fourth = self.organizations()
        cls.newcomer = subprocess.Popen([*ENDS_WITH_US, self.data / "bin/fog-node", "run", "--config", plan["config_file"]],
                                        stdout=subprocess.DEVNULL, stderr=open(self.data / "newcomer.log", "w"))
        raised = time.monotonic()
        self.voice(first, "seat", file)
        self.voice(second, "seat", file)
        decided = [validator["key"] for validator in self.members()["decided"]]
        self.assertNotIn(self.key, decided, "two of four organisations decide nothing")
        self.voice(third, "seat", file)
        eventually("the decision", COMMAND_MAX_S,
                   lambda: self.key in [validator["key"] for validator in self.members()["decided"]])
        self.assertIn("names what is not there or is there already", self.voice(fourth, "seat", file, good=False))
        eventually("its vote", EFFECT_MAX_S, lambda: all(self.votes(self.key, node) for node in self.sandbox.nodes()))
        print(f"seated, from the first voice on: {time.monotonic() - raised:.1f} s, in epoch {self.members()['epoch']}")

    def its_votes_are_needed_and_count(self):
        def height():
            _, body = self.sandbox.fetch(self.sandbox.report["newcomer"]["http"] + "/api/v1/chain/head")
            return json.loads(body)["height"]

        eventually("the newcomer follows", FOLLOWS_MAX_S, lambda: height() + 5 > self.sandbox.height(0))
        eventually("it may vote", FOLLOWS_MAX_S, lambda: "this node may vote" in (self.data / "newcomer.log").read_text())
        frozen = self.sandbox.report["nodes"][3]["pid"]
        os.kill(frozen, signal.SIGSTOP)
        try:
            start, began = self.sandbox.height(0), time.monotonic()
            eventually("blocks without one founder", FOLLOWS_MAX_S,
                       lambda: self.sandbox.height(0) > start + BLOCKS_NEEDED)
            took = time.monotonic() - began
            receipt = self.receipt()
        finally:
            os.kill(frozen, signal.SIGCONT)
        voters = [vote["validator"] for vote in json.loads(receipt)["finalization"]]
        self.assertIn(self.key, voters, "four of five are a quorum: without one founder the newcomer is one of them")
        print(f"{BLOCKS_NEEDED} blocks with four of five: {took:.1f} s")
        self.holds(receipt, self.sandbox.report["validators_file"], holds=False)
        _, told = self.sandbox.ask(0, "/api/v1/chain/validators")
        follows = self.data / "validators-now.json"
        follows.write_bytes(told)
        self.holds(receipt, follows, holds=True)

    def receipt(self):
        """Of the newest bundle whose block the newcomer may have voted on."""
        def look():
            top = self.sandbox.height(0)
            for height in range(top, top - 20, -1):
                bundles = [t["bundle"] for t in self.sandbox.get(f"/api/v1/chain/blocks/{height}")["transactions"] if "bundle" in t]
                if bundles:
                    status, body = self.sandbox.ask(0, f"/api/v1/receipts/{bundles[0]}?wait_ms=5000")
                    return body.decode() if status == 200 else None
            return None

        return eventually("a receipt", FOLLOWS_MAX_S, look)

    def holds(self, receipt, validators, holds):
        file = self.data / "receipt.json"
        file.write_text(receipt)
        self.fog_node("verify-receipt", file, "--validators", validators, good=holds)
        try:
            import cryptography  # noqa: F401  the script's one package
        except ImportError:
            return
        ended = subprocess.run([sys.executable, SCRIPT, file, validators], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(ended.returncode == 0, holds, ended.stdout)

    def it_loses_its_vote(self):
        lost = time.monotonic()
        for organization in self.organizations()[:3]:
            self.voice(organization, "unseat", self.key)
        eventually("a committee without it", EFFECT_MAX_S,
                   lambda: not any(self.votes(self.key, node) for node in self.sandbox.nodes()))
        print(f"unseated, from the first voice on: {time.monotonic() - lost:.1f} s")
        self.newcomer.terminate()
        self.assertEqual(self.newcomer.wait(timeout=COMMAND_MAX_S), 0)
        self.sandbox.agreed(self.sandbox.height(0))

    every_promise_held = sandbox.PromisesHeld.every_promise_held


if __name__ == "__main__":
    order = ["a_fifth_node_gets_a_vote", "its_votes_are_needed_and_count", "it_loses_its_vote", "every_promise_held"]
    sandbox.run(sandbox.in_order(Members, *order))
