"""A network whose first node, the custodian's, has its index in MariaDB: altered, stopped, killed, full, and looked through.

Starts a MariaDB of its own in a private folder, with every log on, and a sandbox with the program that
`cargo build --release --workspace` (or the Rust tests) built. The node runs before the tables are there. Each attack has to be found by a
question, mended from the chain and recorded; while the server is away the chain goes on, and answers are 503 with a sentence. At
the end the sandbox checks every promise. MariaDB that is not installed is said to be not run.
"""

import json
import os
import pathlib
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
from sandbox import AGREE_MAX_S, Sandbox, eventually  # noqa: E402

SERVER = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
MENDED_MAX_S = 120
DEVICES = 14
DATABASE, USER, ADMIN, PASSWORD = "vitalfog", "vitalfog", "migrator", "only-on-this-machine"


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
        made = cls.server.run(f"CREATE DATABASE {DATABASE}; CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'; {right}"
                              f"CREATE USER {ADMIN}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';"
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

    def attacked(self, statement):
        """An administrator's statement: a question never gets a wrong answer, and soon a right one again."""
        since = self.last_incident()
        wanted = self.served("_count=1&code=8867-4")["entry"][0]["resource"]["id"]
        begun = time.monotonic()
        self.server.sql(statement)

        def right():
            status, body = self.observations(f"_id={wanted}")
            self.assertIn(status, (200, 503), body)
            if status == 503:
                self.assertIn("try again, or ask another node", body["issue"][0]["diagnostics"])
                return None
            self.assertEqual([entry["resource"]["id"] for entry in body.get("entry", [])], [wanted], "it is hidden")
            mended = [each for each in self.incidents() if each["id"] > since and each["kind"] == "index-altered"]
            return [each for each in mended if each["took_ms"] is not None]

        def asked():
            # Whatever the row is, the whole is asked for, too.
            self.observations("_count=50")
            self.observations("_summary=count")
            return right()

        incident = eventually(f"a mended incident after {statement}", MENDED_MAX_S, asked)[-1]
        self.assertEqual(incident["found_by"], "question")
        print(f"{statement[:70]}..: answered rightly again after {time.monotonic() - begun:.1f} s; {', '.join(incident['repaired_from'])}")

    # --- T14, F8: rows altered by hand

    def altered_deleted_and_invented_rows_are_found_by_a_question_and_mended(self):
        eventually("observations", AGREE_MAX_S, lambda: self.served().get("total", 0) > 100)
        newest = "(SELECT id FROM (SELECT id FROM observation WHERE code = '8867-4' ORDER BY effective_ms DESC LIMIT 5) AS chosen)"
        self.attacked(f"UPDATE observation SET effective_ms = effective_ms - 86400000 WHERE id IN {newest}")
        self.attacked(f"UPDATE observation SET code = '8310-5' WHERE id IN {newest}")
        self.attacked(f"DELETE FROM observation WHERE id IN {newest}")
        self.attacked("DELETE FROM observation")
        self.attacked("INSERT INTO observation SELECT CONCAT('f', SUBSTR(id, 2)), subject_key, subject, code, effective_ms, received_ms, device, "
                      f"boot, seq + 1000, ordinal, bundle, cid, entry, height, visible_from, tag FROM observation WHERE id IN {newest}")
        self.attacked("UPDATE observation SET subject = (SELECT subject FROM (SELECT MAX(subject) AS subject FROM observation) AS chosen)")
        self.attacked("UPDATE progress SET projected = projected + 1000000")

    # --- F27: the server is away

    def away(self, what, back):
        before = self.sandbox.height(0)

        def refused():
            status, body = self.observations()
            return status == 503 and body["issue"][0]["diagnostics"]

        sentence = eventually("a refusal", AGREE_MAX_S, refused)
        self.assertIn("try again, or ask another node", sentence)
        eventually("the chain goes on", AGREE_MAX_S, lambda: self.sandbox.height(0) > before + 5)
        status, body = self.sandbox.ask(0, "/readyz")
        self.assertEqual(status, 503, body)
        self.assertIn("the index does not answer", json.loads(body)["reasons"])
        eventually("the others are ready", AGREE_MAX_S, lambda: self.sandbox.is_ready(1))
        begun = time.monotonic()
        back()
        eventually("readiness", AGREE_MAX_S, lambda: self.sandbox.is_ready(0))
        eventually("observations", AGREE_MAX_S, lambda: self.served().get("total", 0) > 100)
        eventually("no lag", AGREE_MAX_S, lambda: self.metric("fog_projection_lag_blocks") < 3)
        print(f"{what}: \"{sentence}\"; {self.sandbox.height(0) - before} blocks meanwhile; caught up after {time.monotonic() - begun:.1f} s")

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

    def a_held_lock_is_waited_for(self):
        holder = subprocess.Popen(["mariadb", "--no-defaults", "-uroot", f"--socket={self.server.folder / 'socket'}", DATABASE],
                                  stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        holder.stdin.write("BEGIN; SELECT * FROM progress FOR UPDATE;\n")
        holder.stdin.flush()
        try:
            eventually("the index lags", AGREE_MAX_S, lambda: self.lag() > 60)
            # What is final would be missing: no answer, and a sentence.
            status, body = self.observations()
            self.assertEqual(status, 503, body)
            self.assertIn("blocks behind its chain", body["issue"][0]["diagnostics"])
        finally:
            holder.stdin.close()
            holder.wait(timeout=60)
        eventually("no lag", AGREE_MAX_S, lambda: self.lag() < 3)

    def lag(self):
        return json.loads(self.sandbox.ask(0, "/readyz")[1])["projection_lag_blocks"] or 0

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
            for canary in canaries - ({PASSWORD} if name in ("general.log", "slow.log") else set()):
                self.assertNotIn(canary.encode(), content, f"{canary} in {name}")
        print(f"{len(canaries)} canaries in none of {len(everything)} files, {sum(map(len, everything.values()))} bytes")


TESTS = [
    "altered_deleted_and_invented_rows_are_found_by_a_question_and_mended",
    "a_held_lock_is_waited_for",
    "a_server_that_stands_still_holds_nothing_up",
    "a_server_that_is_killed_is_caught_up_with",
    "a_server_that_lets_nobody_in_is_waited_for",
    "no_value_name_or_password_is_anywhere_in_the_server",
    "every_promise_held",
]

if __name__ == "__main__":
    sandbox.run(sandbox.in_order(Index, *TESTS), "index")
