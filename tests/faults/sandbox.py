"""A sandbox as the fault tests see it: started for one test or found by its report, asked over HTTP, ended with a check.

A sandbox that a test starts ends with the program, and its folder is removed, also on Ctrl-C; if the program is killed, its
processes end by themselves: they watch it through a pipe.
"""

import atexit
import contextlib
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

PROGRAM = pathlib.Path(__file__).parents[2] / "target/release/sandbox"
# What each step of a sandbox may take on a slow machine that does something else; it gives up by itself then.
LIMITS = {"start_s": 120, "enrol_s": 180, "drain_s": 120, "agree_s": 120, "stop_s": 60}
READY_MAX_S = 3 * LIMITS["start_s"] + LIMITS["enrol_s"]
END_MAX_S = LIMITS["drain_s"] + 2 * LIMITS["agree_s"] + 3 * LIMITS["stop_s"]
AGREE_MAX_S = 60
ANSWER_MAX_S = 20
# A sandbox ends with this when somebody else listens on one of its ports: others are asked for.
EXIT_USAGE = 64
TRIES = 5
# What a sandbox may ask for as the base of its ports. Its ports lie up to 130 above it, and 10430 above it.
BASES = (2000, 8000)


def eventually(what, within_s, look):
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError, AssertionError, http.client.HTTPException):
            found = look()
            if found:
                return found
        assert time.monotonic() < deadline, f"{what} did not come within {within_s} s"
        time.sleep(0.2)


class Running:
    """A running sandbox, known by the file of its report."""

    def __init__(self, report):
        self.report_file = pathlib.Path(report)

    @property
    def report(self):
        return json.loads(self.report_file.read_text())

    def doorway(self, _node):
        """From where a node is asked: from here."""
        return contextlib.nullcontext()

    def fetch(self, url, accept="application/json", token=None, body=None, certificate=()):
        """Status and body of a GET, or of a POST of a body in the one encoding."""
        context = ssl.create_default_context(cafile=self.report["gateway"]["ca_file"])
        if certificate:
            context.load_cert_chain(*certificate)
        headers = {"Accept": accept} | ({"Authorization": f"Bearer {token}"} if token else {})
        headers |= {"Content-Type": "application/vnd.ipld.dag-cbor"} if body is not None else {}
        request = urllib.request.Request(url, data=body, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            with opener.open(request, timeout=ANSWER_MAX_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask(self, node, path, **how):
        """Status and body of what one of the nodes answers."""
        with self.doorway(node):
            return self.fetch(self.report["nodes"][node]["http"] + path, **how)

    def get(self, path, node=0):
        status, body = self.ask(node, path)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def nodes(self):
        return range(len(self.report["nodes"]))

    def height(self, node):
        return self.get("/api/v1/chain/head", node)["height"]

    def is_ready(self, node):
        return self.ask(node, "/readyz")[0] == 200

    def positions(self, height):
        """Block and state at one height, as each node signs them."""
        return [self.get(f"/api/v1/heads/{height}", node)["position"] for node in self.nodes()]

    def agrees(self):
        """The lowest of the nodes' heights if all have the same block and the same state there."""
        height = min(self.height(node) for node in self.nodes())
        positions = self.positions(height)
        return height if all(position == positions[0] for position in positions) else None

    def agreed(self, above=0):
        """Waits until all nodes are ready, above a height, and have the same block and state at one."""
        def look():
            ready = all(self.is_ready(node) and self.height(node) > above for node in self.nodes())
            return ready and self.agrees()

        return eventually(f"equal heads and states above {above}", AGREE_MAX_S, look)

    def gateway_status(self):
        status, body = self.fetch(self.report["gateway"]["http"] + "/status")
        assert status == 200, (status, body)
        return json.loads(body)


class Sandbox(Running):
    """A sandbox of its own, ready; `settings` are lines of its configuration, `prefix` is what its command begins with.

    Its base is one of `bases`, below the second: sandboxes that start at once take no port of each other's if theirs differ.
    """

    def __init__(self, devices, settings="", prefix=(), bases=BASES):
        self.bases = bases
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vitalfog-faults-"))
        super().__init__(self.folder / "report.json")
        limits = "".join(f"{key} = {value}\n" for key, value in LIMITS.items())
        (self.folder / "sandbox.toml").write_text(f"{settings}\n[limits]\n{limits}")
        self.process = None
        atexit.register(self.close)
        for _ in range(TRIES):
            self.process = self.started(devices, prefix)
            if self.came_up():
                return
        raise AssertionError(f"no free ports after {TRIES} tries:\n{self.printed()}")

    def started(self, devices, prefix):
        flags = ["--config", self.folder / "sandbox.toml", "--devices", str(devices), "--data-dir", self.folder / "data"]
        flags += ["--report", self.report_file, "--port-base", str(random.randrange(*self.bases))]
        with open(self.folder / "printed", "w") as printed:
            return subprocess.Popen([*prefix, PROGRAM, *flags], stdin=subprocess.PIPE, stdout=printed, stderr=printed,
                                    env=os.environ | {"VITALFOG_PARENT_PIPE": "stdin"})

    def came_up(self):
        """Whether it is ready; false if somebody else has one of its ports."""
        def look():
            end = self.process.poll()
            if end is not None:
                return f"ended with {end}"
            return self.report_file.exists() and self.report["ready"] and "ready"

        state = eventually("a ready sandbox", READY_MAX_S, look)
        assert state in ("ready", f"ended with {EXIT_USAGE}"), f"it {state}:\n{self.printed()}"
        return state == "ready"

    def printed(self):
        return (self.folder / "printed").read_text()

    def end(self):
        """Says that its time is over, waits until it has checked every promise, and returns its exit code and last report."""
        self.process.send_signal(signal.SIGUSR1)
        return self.process.wait(timeout=END_MAX_S), self.report

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=3 * LIMITS["stop_s"])
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class PromisesHeld:
    """The last test of a class whose `sandbox` is a `Sandbox`."""

    def every_promise_held(self):
        """What the devices say was acknowledged is on the chain, served, each once; heads and states are equal."""
        code, report = self.sandbox.end()
        told = {key: report[key] for key in ("acknowledged", "final", "gaps", "duplicates", "unconfirmed")}
        print(f"every promise: {told}")
        self.assertEqual((code, report["passed"], report["failures"]), (0, True, []), self.sandbox.printed())
        self.assertEqual((report["gaps"], report["duplicates"]), (0, 0))
        self.assertGreater(report["acknowledged"], 100)
        heads = {(node["height"], node["head"], node["state_digest"]) for node in report["nodes"]}
        self.assertEqual(len(heads), 1, heads)


class Counted(unittest.TextTestResult):
    """Counts what passed, which is not all the rest: a class that cannot be set up has run no test."""

    passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def run(suite, stage="faults"):
    """Runs tests, prints one line that counts them, and ends the program. What is not run is a failure in CI."""
    # SIGTERM ends the program as Ctrl-C does: with everything cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Whoever runs this sees each line as it comes, also through a pipe.
    sys.stdout.reconfigure(line_buffering=True)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Counted).run(suite)
    for _, why in result.skipped:
        print(f"not run: {why}")
    failed = len(result.failures) + len(result.errors)
    print(f"{stage}: {result.passed} passed, {failed} failed, {len(result.skipped)} skipped")
    sys.exit(1 if failed or (result.skipped and os.environ.get("CI") == "true") else 0)


def in_order(case, *names):
    """These tests of a class, one after the other as they are named: they share a sandbox."""
    return unittest.TestSuite(case(name) for name in names)
