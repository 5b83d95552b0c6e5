"""A network whose first node, the custodian's, has its index in MariaDB: altered, stopped, killed, full, and looked through.

Starts a MariaDB of its own in a private folder, with every log on, and a sandbox with the program that
`cargo build --release --workspace` (or the Rust tests) built. The node runs before the tables are there. Each attack has to be found by a
question, mended from the chain and recorded; while the server is away the chain goes on, and answers are 503 with a sentence. At
the end the sandbox checks every promise. MariaDB that is not installed is said to be not run.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "faults"))
import sandbox  # noqa: E402
from sandbox import Sandbox, eventually  # noqa: E402

SERVER = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
# What the machine may take when it does something else as well.
MENDED_MAX_S = 300
LATER_MAX_S = 300
# A node that is so many blocks behind says so and answers nothing (`http.projection_lag_blocks_max`).
LAG_BLOCKS_MAX = 50
DEVICES = 14
DATABASE, USER, ADMIN, PASSWORD = "vitalfog", "vitalfog", "migrator", "only-on-this-machine"
# As the server keeps it: nobody but the node tells it the password itself.
HASH = "*" + hashlib.sha1(hashlib.sha1(PASSWORD.encode()).digest()).hexdigest().upper()


def sentence(outcome):
    """What a refusal says; with any number."""
    return re.sub(r"\d+", "N", outcome["issue"][0]["diagnostics"])


class Server:
    """MariaDB in a folder of its own."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vitalfog-mariadb-"))
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        subprocess.run(["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db",
                        f"--datadir={self.folder / 'data'}", *as_root], check=True, capture_output=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.command = [SERVER, "--no-defaults", *as_root, f"--datadir={self.folder / 'data'}", f"--socket={self.folder / 'socket'}",
                        f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve", "--log-bin=binlog", "--general-log",
                        f"--general-log-file={self.folder / 'general.log'}", "--slow-query-log", "--long-query-time=0",
                        f"--slow-query-log-file={self.folder / 'slow.log'}", f"--log-error={self.folder / 'error.log'}",
                        f"--pid-file={self.folder / 'pid'}"]
        self.password = self.folder / "password"
        self.password.write_text(PASSWORD)
        self.password.chmod(0o600)
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually("MariaDB", 120, lambda: self.try_sql("SELECT 1"))

    def run(self, text, *flags):
        return subprocess.run(["mariadb", "--no-defaults", "-uroot", f"--socket={self.folder / 'socket'}", "-N", "-B", *flags, "-e", text],
                              capture_output=True, text=True, timeout=60)

    def try_sql(self, text):
        return self.run(text).returncode == 0

    def sql(self, text):
        """What the administrator does in the node's database."""
        done = self.run(text, DATABASE)
        assert done.returncode == 0, (text, done.stderr)
        return done.stdout.strip()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@unittest.skipUnless(SERVER, "MariaDB is not installed (apt-get install mariadb-server)")
class Index(sandbox.PromisesHeld, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.close)
        print(cls.server.run("SELECT @@version").stdout.strip())
        right = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {DATABASE}.* TO {USER}@'127.0.0.1';"
        made = cls.server.run(f"CREATE DATABASE {DATABASE}; CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY PASSWORD '{HASH}'; {right}"
                              f"CREATE USER {ADMIN}@'127.0.0.1' IDENTIFIED BY PASSWORD '{HASH}';"
                              f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP ON {DATABASE}.* TO {ADMIN}@'127.0.0.1'")
        assert made.returncode == 0, made.stderr
        settings = (f'scrub_s = 3600\n[mysql]\nhosts = ["127.0.0.1:{cls.server.port}"]\ndatabase = "{DATABASE}"\nuser = "{USER}"\n'
                    f'password_file = "{cls.server.password}"\nstatement_timeout_ms = 3000\n')
        cls.ended = threading.Event()
        cls.folder = None
        migrating = threading.Thread(target=cls.migrate)
        # The tables are made while the node runs already.
        cls.original = Sandbox.started

        def started(self, *how):
            cls.folder = self.folder
            return cls.original(self, *how)

        Sandbox.started = started
        migrating.start()
        try:
            cls.sandbox = Sandbox(devices=DEVICES, settings=settings)
        finally:
            cls.ended.set()
            migrating.join()
            Sandbox.started = cls.original
        cls.addClassCleanup(cls.sandbox.close)

    @classmethod
    def migrate(cls):
        """`fog-node index migrate`, as soon as the node has written that it has no tables."""
        while not cls.ended.is_set():
            for config in (cls.folder.glob("data/nodes/*/config.toml") if cls.folder else []):
                if "mysql" in config.read_text():
                    command = [sandbox.PROGRAM, "fog-node", "index", "migrate", "--config", config, "--user", ADMIN,
                               "--password-file", cls.server.password]
                    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                    print(f"index migrate: {done.returncode} {done.stdout}{done.stderr}".strip())
                    if done.returncode == 0:
                        return
            time.sleep(1)

    # --- what the tests use

    def observations(self, query="_count=50"):
        status, body = self.sandbox.ask(0, f"/fhir/Observation?{query}", token=self.sandbox.report["hospital"]["token"])
        return status, json.loads(body)

    def served(self, query="_count=50"):
        status, body = self.observations(query)
        assert status == 200, (status, body)
        return body

    def incidents(self):
        return self.sandbox.get("/api/v1/incidents")

    def last_incident(self):
        return max([each["id"] for each in self.incidents()], default=0)

    def metric(self, name):
        _, text = self.sandbox.ask(0, "/metrics", accept="text/plain")
        return next((float(line.split()[-1]) for line in text.decode().splitlines() if line.startswith(name)), None)

    def some(self):
        """The newest heart rates, by their ids."""
        return [entry["resource"]["id"] for entry in self.served("_count=5&code=8867-4")["entry"]]

    def attacked(self, statement, wanted):
        """An administrator's statement: a question never gets a wrong answer, and soon a right one again."""
        since, wrong, sentences = self.last_incident(), [], set()
        begun = time.monotonic()
        self.server.sql(statement)

        def right():
            """Whether it is served again; what is never to happen is remembered, since this is asked until it is true."""
            status, body = self.observations(f"_id={wanted}")
            if status == 503:
                sentences.add(sentence(body))
                return None
            found = [entry["resource"]["id"] for entry in body.get("entry", [])]
            if status != 200 or found != [wanted]:
                wrong.append((status, body))
                return None
            mended = [each for each in self.incidents() if each["id"] > since and each["kind"] == "index-altered"]
            return [each for each in mended if each["took_ms"] is not None]

        def asked():
            # Whatever the row is, the whole is asked for, too.
            for query in ("_count=50", "_summary=count"):
                status, body = self.observations(query)
                if status == 503:
                    sentences.add(sentence(body))
            return right()

        incident = eventually(f"a mended incident after {statement}", MENDED_MAX_S, asked)[-1]
        self.assertEqual(wrong, [], "it is hidden")
        self.assertEqual([told for told in sentences if "ask another node" not in told], [])
        self.assertEqual(incident["found_by"], "question")
        print(f"{statement[:70]}..: answered rightly again after {time.monotonic() - begun:.1f} s; {', '.join(incident['repaired_from'])}; "
              f"meanwhile: {sorted(sentences)}")

    # --- T14, F8: rows altered by hand

    def altered_deleted_and_invented_rows_are_found_by_a_question_and_mended(self):
        eventually("observations", LATER_MAX_S, lambda: self.served().get("total", 0) > 100)
        old, old_height = self.some()[0], self.sandbox.height(0)
        for statement in (
            "UPDATE observation SET effective_ms = effective_ms - 86400000 WHERE id IN {ids}",
            "UPDATE observation SET code = '8310-5' WHERE id IN {ids}",
            "DELETE FROM observation WHERE id IN {ids}",
            "DELETE FROM observation",
            "INSERT INTO observation SELECT CONCAT('g', SUBSTR(id, 2)), subject_key, subject, code, effective_ms, received_ms, device, boot, "
            "seq + 1000, ordinal, bundle, cid, entry, height, visible_from, tag FROM observation WHERE id IN {ids}",
            "UPDATE observation SET subject = '6f9619ff-8b86-4d01-b42d-00c04fc964ff'",
        ):
            ids = self.some()
            self.attacked(statement.replace("{ids}", "('" + "','".join(ids) + "')"), ids[0])
        # All is projected anew: until it has come to what is asked for, it is too far behind to answer.
        eventually("blocks", LATER_MAX_S, lambda: self.sandbox.height(0) > old_height + LAG_BLOCKS_MAX + 5)
        self.attacked("UPDATE progress SET projected = projected + 1000000", old)

    # --- F27: the server is away

    def away(self, what, back):
        before = self.sandbox.height(0)

        def refused():
            status, body = self.observations()
            return status == 503 and sentence(body)

        said = eventually("a refusal", LATER_MAX_S, refused)
        self.assertIn("try again, or ask another node", said)
        eventually("the chain goes on", LATER_MAX_S, lambda: self.sandbox.height(0) > before + 5)
        status, body = self.sandbox.ask(0, "/readyz")
        self.assertEqual(status, 503, body)
        self.assertIn("the index does not answer", json.loads(body)["reasons"])
        eventually("the others are ready", LATER_MAX_S, lambda: self.sandbox.is_ready(1))
        begun = time.monotonic()
        back()
        eventually("readiness", LATER_MAX_S, lambda: self.sandbox.is_ready(0))
        eventually("observations", LATER_MAX_S, lambda: self.served().get("total", 0) > 100)
        eventually("no lag", LATER_MAX_S, lambda: self.metric("fog_projection_lag_blocks") < 3)
        print(f"{what}: \"{said}\"; {self.sandbox.height(0) - before} blocks meanwhile; caught up after {time.monotonic() - begun:.1f} s")

    def a_server_that_stands_still_holds_nothing_up(self):
        self.server.process.send_signal(signal.SIGSTOP)
        self.away("stopped", lambda: self.server.process.send_signal(signal.SIGCONT))

    def a_server_that_is_killed_is_caught_up_with(self):
        self.server.kill()
        self.away("killed", self.server.start)

    def a_server_that_lets_nobody_in_is_waited_for(self):
        self.server.sql("SET GLOBAL max_connections = 10")
        self.server.sql(f"ALTER USER {USER}@'127.0.0.1' ACCOUNT LOCK")
        connections = self.server.sql(f"SELECT id FROM information_schema.processlist WHERE user = '{USER}'").split()
        for connection in connections:
            self.server.run(f"KILL {connection}")
        self.away("locked out", lambda: self.server.sql(f"ALTER USER {USER}@'127.0.0.1' ACCOUNT UNLOCK"))

    def a_slow_server_is_waited_for_and_nothing_wrong_is_said(self):
        """It runs for a tenth of each second: statements take up to a second, and sooner or later one has no answer in time."""
        before, total, answers = self.sandbox.height(0), self.served()["total"], {200: 0, 503: 0}
        slow = threading.Event()

        def slowed():
            while not slow.wait(0.1):
                self.server.process.send_signal(signal.SIGSTOP)
                slow.wait(0.9)
                self.server.process.send_signal(signal.SIGCONT)

        slowing = threading.Thread(target=slowed)
        slowing.start()
        try:
            begun = time.monotonic()
            while time.monotonic() < begun + 20 or self.sandbox.height(0) < before + 5:
                status, body = self.observations()
                self.assertIn(status, answers, body)
                answers[status] += 1
                if status == 200:
                    # Nothing that was final is missing.
                    self.assertGreaterEqual(body["total"], total)
                    total = body["total"]
                else:
                    self.assertIn("ask another node", sentence(body))
                self.assertLess(time.monotonic(), begun + LATER_MAX_S, "the chain stands still")
                time.sleep(0.2)
        finally:
            slow.set()
            slowing.join()
        eventually("no lag", LATER_MAX_S, lambda: self.lag() < 3)
        eventually("readiness", LATER_MAX_S, lambda: self.sandbox.is_ready(0))
        self.assertGreaterEqual(self.served()["total"], total)
        print(f"slow: {self.sandbox.height(0) - before} blocks meanwhile; answers {answers}")

    def a_held_lock_is_waited_for(self):
        holder = subprocess.Popen(["mariadb", "--no-defaults", "-uroot", f"--socket={self.server.folder / 'socket'}", DATABASE],
                                  stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        holder.stdin.write("BEGIN; SELECT * FROM progress FOR UPDATE;\n")
        holder.stdin.flush()
        try:
            eventually("the index lags", LATER_MAX_S, lambda: self.lag() > LAG_BLOCKS_MAX)
            # What is final would be missing: no answer, and a sentence.
            status, body = self.observations()
            self.assertEqual(status, 503, body)
            self.assertIn("blocks behind its chain", body["issue"][0]["diagnostics"])
        finally:
            holder.stdin.close()
            holder.wait(timeout=60)
        eventually("no lag", LATER_MAX_S, lambda: self.lag() < 3)

    def lag(self):
        return json.loads(self.sandbox.ask(0, "/readyz")[1])["projection_lag_blocks"] or 0

    # --- A stopped node: what it is asked on the command line

    def command(self, *words):
        """Exit code and words of `fog-node` with the first node's configuration."""
        config = next(path for path in self.sandbox.folder.glob("data/nodes/*/config.toml") if "mysql" in path.read_text())
        done = subprocess.run([sandbox.PROGRAM, "fog-node", *words, "--config", config], capture_output=True, text=True,
                              timeout=LATER_MAX_S)
        return done.returncode, done.stderr + done.stdout

    def rows(self):
        """All that an observation's row says, but from which height on it is seen and the tag over it."""
        return self.server.sql("SELECT HEX(CONCAT_WS('|', id, subject_key, subject, code, effective_ms, received_ms, device, boot, seq, ordinal, "
                               "bundle, cid, entry, height)) FROM observation ORDER BY id")

    def a_stopped_nodes_index_is_verified_repaired_and_made_anew(self):
        before = self.rows()
        self.assertGreater(before.count("\n"), 100)
        code, told = self.command("index", "verify")
        self.assertEqual((code, "every row is what the chain gives" in told), (0, True), told)
        for statement in ("DELETE FROM observation ORDER BY id LIMIT 7",
                          "UPDATE observation SET effective_ms = effective_ms + 1 ORDER BY id LIMIT 7",
                          "INSERT INTO observation SELECT CONCAT('g', SUBSTR(id, 2)), subject_key, subject, code, effective_ms, received_ms, device, "
                          "boot, seq + 1000, ordinal, bundle, cid, entry, height, visible_from, tag FROM observation ORDER BY id LIMIT 7"):
            self.server.sql(statement)
            code, told = self.command("index", "verify")
            self.assertEqual((code, "altered     7 rows" in told, "not repaired" in told), (1, True, True), told)
            code, told = self.command("index", "verify", "--repair")
            self.assertEqual((code, "put right from the chain" in told), (0, True), told)
            self.assertEqual(self.rows(), before, statement)
        # Made anew, killed while that is done, and made anew again.
        config = next(path for path in self.sandbox.folder.glob("data/nodes/*/config.toml") if "mysql" in path.read_text())
        with subprocess.Popen([sandbox.PROGRAM, "fog-node", "reindex", "--config", config], stdout=subprocess.PIPE) as killed:
            killed.stdout.readline()
            # A moment at a time, so that it cannot be done before its rows were counted.
            killed.send_signal(signal.SIGSTOP)
            while (left := self.server.sql("SELECT COUNT(*) FROM observation")) == "0" and killed.poll() is None:
                killed.send_signal(signal.SIGCONT)
                time.sleep(0.01)
                killed.send_signal(signal.SIGSTOP)
            killed.kill()
        self.assertEqual(killed.returncode, -signal.SIGKILL, "it had ended before it was killed")
        self.assertLess(int(left), before.count("\n"), "nothing was left to do")
        code, told = self.command("reindex")
        self.assertEqual(code, 0, told)
        self.assertEqual(self.rows(), before)
        code, told_then = self.command("index", "verify")
        self.assertEqual(code, 0, told_then)
        print(f"reindex, killed at {left} rows, and again: {told.strip().splitlines()[-1]}")

    # --- T15: what the server's administrator can read

    def no_value_name_or_password_is_anywhere_in_the_server(self):
        bundle = self.served("_count=100")
        values = {str(entry["resource"]["valueQuantity"]["value"]) for entry in bundle["entry"] if "valueQuantity" in entry["resource"]}
        names = {patient["name"] for patient in self.sandbox.report["patients"]}
        # Long enough that it stands nowhere by chance.
        canaries = {name for name in names if len(name) > 6} | {f'"value":{value}' for value in values} | {PASSWORD}
        self.assertTrue(values and names)
        dump = subprocess.run(["mariadb-dump", "--no-defaults", "-uroot", f"--socket={self.server.folder / 'socket'}", DATABASE],
                              capture_output=True, timeout=120, check=True).stdout
        files = [self.server.folder / name for name in ("general.log", "slow.log", "error.log")]
        files += list((self.server.folder / "data").glob("binlog.0*")) + list((self.server.folder / "data" / DATABASE).iterdir())
        everything = {"dump": dump} | {path.name: path.read_bytes() for path in files}
        # The logs are on: what is looked for would be there.
        for name in ("dump", "general.log", "slow.log"):
            self.assertIn(b"observation", everything[name])
        self.assertIn(bundle["entry"][0]["resource"]["id"].encode(), everything["general.log"])
        for name, content in everything.items():
            self.assertEqual([canary for canary in canaries if canary.encode() in content], [], name)
        print(f"{len(canaries)} canaries in none of {len(everything)} files, {sum(map(len, everything.values()))} bytes")


TESTS = [
    "altered_deleted_and_invented_rows_are_found_by_a_question_and_mended",
    "a_held_lock_is_waited_for",
    "a_slow_server_is_waited_for_and_nothing_wrong_is_said",
    "a_server_that_stands_still_holds_nothing_up",
    "a_server_that_is_killed_is_caught_up_with",
    "a_server_that_lets_nobody_in_is_waited_for",
    "no_value_name_or_password_is_anywhere_in_the_server",
    "every_promise_held",
    "a_stopped_nodes_index_is_verified_repaired_and_made_anew",
]

if __name__ == "__main__":
    sandbox.run(sandbox.in_order(Index, *TESTS), "index")
