"""Kills the fog nodes of a sandbox while readings flow: one after the other, all at once; and lets one stand still.

usage: killed_nodes.py [KILLS]      how many times one node is killed, 20 otherwise

The sandbox starts a killed node again, as a service manager would. Each time the node must be ready and have the others' head
again; finality goes on (or, after the death of all, comes back), and at the end the devices' own list is compared with the
chain: nothing acknowledged is missing, nothing is there twice, all heads and states are equal. Prints how long everything took.
"""

import os
import signal
import statistics
import sys
import time
import unittest

import sandbox
from sandbox import Sandbox, eventually

KILLS = 20
# From a kill until the node is ready again at the others' height. Ten seconds of it may be the pause before it is started.
BACK_MAX_S = 90
# From the death of all nodes until blocks are final again: as above, and the views that pass before all have found each other.
RESUME_MAX_S = 120
# Another block is final within this time when one node stands still; its turns to lead cost a view's timeout each.
FINALITY_MAX_S = 60
# So long one node stands still.
STILL_S = 30


class KilledNodes(unittest.TestCase):
    kills = KILLS

    @classmethod
    def setUpClass(cls):
        cls.sandbox = Sandbox(devices=28)

    def process(self, node):
        return self.sandbox.report["nodes"][node]

    def kill(self, nodes):
        """Kills these at once; returns what was known of them."""
        before = {node: self.process(node) for node in nodes}
        for process in before.values():
            os.kill(process["pid"], signal.SIGKILL)
        return before

    def back(self, before, above, within_s):
        """Waits until those that were killed are started again, ready, and not behind the height given."""
        for node, process in before.items():
            def started():
                now = self.process(node)
                return now["pid"] and now["restarts"] > process["restarts"]

            eventually(f"{process['name']} started again", within_s, started)
        for node, process in before.items():
            eventually(f"{process['name']} ready above {above}", within_s,
                       lambda: self.sandbox.is_ready(node) and self.sandbox.height(node) > above)

    def final_readings(self):
        return self.sandbox.gateway_status()["final_readings"]

    def one_after_the_other(self):
        final, took = self.final_readings(), []
        for turn in range(self.kills):
            victim, witness = turn % 4, (turn + 1) % 4
            killed = time.monotonic()
            before = self.kill([victim])
            self.back(before, self.sandbox.height(witness), BACK_MAX_S)
            took.append(time.monotonic() - killed)
        agreed = self.sandbox.agreed()
        self.assertGreater(self.final_readings(), final, "readings went on to become final")
        print(f"{self.kills} kills of one node: back at the others' head after {min(took):.1f} s at best, "
              f"{statistics.median(took):.1f} s as a rule, {max(took):.1f} s at worst; agreed at height {agreed}")

    def all_at_once(self):
        heights = [self.sandbox.height(node) for node in self.sandbox.nodes()]
        killed = time.monotonic()
        before = self.kill(self.sandbox.nodes())
        self.back(before, max(heights), RESUME_MAX_S)
        resumed = time.monotonic() - killed
        agreed = self.sandbox.agreed()
        final = self.final_readings()
        eventually("another final reading", FINALITY_MAX_S, lambda: self.final_readings() > final)
        print(f"all nodes killed at heights {heights}: all are ready and above that after {resumed:.1f} s, "
              f"agreed at height {agreed}")

    def one_stands_still(self):
        pid, gaps = self.process(3)["pid"], []
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            while time.monotonic() < stopped + STILL_S:
                looked, height, final = time.monotonic(), self.sandbox.height(0), self.final_readings()
                eventually("another block without one node", FINALITY_MAX_S, lambda: self.sandbox.height(0) > height)
                eventually("another final reading without one node", FINALITY_MAX_S,
                           lambda: self.final_readings() > final)
                gaps.append(time.monotonic() - looked)
        finally:
            os.kill(pid, signal.SIGCONT)
        thawed, above = time.monotonic(), self.sandbox.height(0)
        eventually("the frozen node caught up", BACK_MAX_S,
                   lambda: self.sandbox.is_ready(3) and self.sandbox.height(3) > above)
        print(f"one node stood still for {STILL_S} s: the next block and final reading came after {max(gaps):.1f} s at worst; "
              f"it caught up {time.monotonic() - thawed:.1f} s after")
        self.assertEqual(self.process(3)["pid"], pid, "it was not started anew")
        self.sandbox.agreed()

    every_promise_held = sandbox.PromisesHeld.every_promise_held


if __name__ == "__main__":
    KilledNodes.kills = int(sys.argv[1]) if len(sys.argv) > 1 else KILLS
    order = ["one_after_the_other", "all_at_once", "one_stands_still", "every_promise_held"]
    sandbox.run(sandbox.in_order(KilledNodes, *order))
