"""A js-ipfs daemon for the tests: started on ports of its own, killed, started again, its blocks altered on the disk."""

import atexit
import base64
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

PEERS = pathlib.Path(__file__).parents[2] / "target/peers"
# It takes some ten seconds here; a slow machine that does something else as well has time.
READY_MAX_S = 300
ANSWER_MAX_S = 60
# Below the ports that the system gives to whoever connects, beside those of a sandbox.
PORTS = (20000, 32000)
# It ends at once when somebody else has one of its ports: it is started again, as a service manager would.
TRIES = 3


def cid_of(block, codec=0x71):
    """CIDv1, sha2-256, base32: as every IPFS peer computes it."""
    carried = bytes([1, codec, 0x12, 32]) + hashlib.sha256(block).digest()
    return "b" + base64.b32encode(carried).decode().lower().rstrip("=")


def file_of(blocks, block):
    """Where a flatfs keeps a block: by its multihash, in folders of the last but two letters."""
    name = base64.b32encode(b"\x12\x20" + hashlib.sha256(block).digest()).decode().rstrip("=")
    return blocks / name[-3:-1] / f"{name}.data"


def free_port():
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Daemon:
    """The daemon; it goes with `close`, or with the program, also when that is killed."""

    program = PEERS / "ipfs/node_modules/.bin/jsipfs"

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vitalfog-ipfs-"))
        self.repository = self.folder / "repository"
        self.port = free_port()
        self.process = None
        self.log = open(self.folder / "log", "w")
        atexit.register(self.close)
        subprocess.run([self.program, "init", "--profile", "test"], env=self.env(), check=True, stdout=self.log,
                       stderr=self.log, timeout=READY_MAX_S)
        file = self.repository / "config"
        settings = json.loads(file.read_text())
        settings["Addresses"] |= {"Swarm": [], "API": self.api, "Gateway": f"/ip4/127.0.0.1/tcp/{free_port()}",
                                  "RPC": f"/ip4/127.0.0.1/tcp/{free_port()}"}
        settings["Bootstrap"] = []
        file.write_text(json.dumps(settings))

    def env(self):
        polyfill = PEERS / "ipfs/polyfill.cjs"
        return os.environ | {"IPFS_PATH": str(self.repository), "NODE_OPTIONS": f"--require={polyfill.resolve()}"}

    @property
    def api(self):
        return f"/ip4/127.0.0.1/tcp/{self.port}"

    def start(self):
        """Starts it and waits until it answers: with its version."""
        for _ in range(TRIES):
            if version := self.started():
                return version
        raise AssertionError(f"it ended {TRIES} times:\n{self.printed()}")

    def started(self):
        """Its version when it answers; nothing if it has ended before."""
        for left in ("repo.lock", "api"):
            path = self.repository / left
            # What a killed daemon leaves behind: its service manager would clear it away.
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", self.program, "daemon", "--offline"], env=self.env(),
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        deadline = time.monotonic() + READY_MAX_S
        while self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.ask("version")
            assert time.monotonic() < deadline, f"it does not answer within {READY_MAX_S} s:\n{self.printed()}"
            time.sleep(0.1)
        return None

    def printed(self):
        return (self.folder / "log").read_text()

    def kill(self):
        """Ends it and all its threads as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, command, **arguments):
        """What it answers, by plain HTTP: no code of ours is in between."""
        query = "&".join(f"{name}={value}" for name, value in arguments.items())
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v0/{command}?{query}", data=b"", method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=ANSWER_MAX_S) as answer:
            body = answer.read()
        return body if command in ("block/get", "dag/export") else json.loads(body)

    def is_pinned(self, cid):
        try:
            return bool(self.ask("pin/ls", arg=cid, type="recursive")["Keys"])
        except urllib.error.HTTPError:
            return False

    def flip(self, block):
        """Changes a byte of a block in its file."""
        file = file_of(self.repository / "blocks", block)
        altered = bytearray(file.read_bytes())
        assert bytes(altered) == block
        altered[len(altered) // 2] ^= 1
        file.write_bytes(altered)

    def close(self):
        atexit.unregister(self.close)
        if self.process and self.process.poll() is None:
            self.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


LINK = re.compile(rb"\xd8\x2a\x58\x25\x00(\x01\x71\x12\x20.{32})", re.DOTALL)


def links_of(block):
    """The CIDs in a block of the ledger, as DAG-CBOR carries links."""
    return ["b" + base64.b32encode(link).decode().lower().rstrip("=") for link in LINK.findall(block)]
