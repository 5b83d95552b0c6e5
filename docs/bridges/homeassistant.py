#!/usr/bin/env python3
"""Brings values that Home Assistant has into the gateway: a device of its own, in Python with paho-mqtt and cryptography.

homeassistant.py CONFIG.json

It listens on Home Assistant's broker (`mqtt_statestream`, or an automation that publishes), and each value of a listed topic
becomes a signed reading of this bridge: its own key, its own numbers, its own journal. What it says is what Home Assistant
said, not what a sensor signed. CONFIG.json:

{"gateway": "home-1", "device": "homeassistant-1", "key_file": "bridge.key", "journal": "bridge.sqlite",
 "from": {"host": "..", "port": 8883, "ca": "..", "user": "..", "password_file": ".."},
 "to": {"host": "..", "port": 18830, "ca": "..", "user": "..", "password_file": "..", "certificate": "..", "private_key": "..", "receipt": "puback"},
 "entities": {"statestream/sensor/thermometer/state": {"code": "8310-5", "unit": "Cel"}}}

`to` may have `"seal": {"network": "..", "reading_key": ".."}`, as the gateway's /status has them: behind an outside broker it takes nothing else.
Of `password_file`, or `certificate` and `private_key`, one is enough. `receipt` is `ack` behind an outside broker (docs/DEVICES.md).
"""

import base64
import json
import pathlib
import re
import secrets
import sqlite3
import ssl
import sys
import threading
import time

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.serialization import load_pem_private_key

# seal.py lies with the examples; or beside this file.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
from seal import seal  # noqa: E402

# A number as a reading carries it: no exponent, no more digits than the gateway takes.
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?")
JOURNAL_MAX = 10_000
ANSWER_S, PAUSE_S = 30, 5
TAKEN, REFUSED = {0x00, 0x10}, {0x87, 0x90, 0x99}


class Journal:
    """What is numbered and not answered yet, durable before it is sent, and the counter of starts."""

    def __init__(self, file):
        self.lock = threading.Lock()
        self.db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE IF NOT EXISTS starts (counter INTEGER PRIMARY KEY, boot TEXT)")
        self.db.execute("CREATE TABLE IF NOT EXISTS readings (id INTEGER PRIMARY KEY, boot TEXT, seq INTEGER, message TEXT, handed INTEGER, refused INTEGER)")
        counter = (self.db.execute("SELECT max(counter) FROM starts").fetchone()[0] or 0) + 1
        self.boot = f"{counter}-{secrets.token_hex(8)}"
        self.db.execute("INSERT INTO starts VALUES (?, ?)", (counter, self.boot))

    def ask(self, sql, *values):
        with self.lock:
            return self.db.execute(sql, values).fetchall()

    def keep(self, seq, message):
        if self.ask("SELECT count(*) FROM readings WHERE refused = 0")[0][0] < JOURNAL_MAX:
            self.ask("INSERT INTO readings VALUES (NULL, ?, ?, ?, 0, 0)", self.boot, seq, message)

    def next(self):
        rows = self.ask("SELECT id, message FROM readings WHERE handed = 0 AND refused = 0 ORDER BY id LIMIT 1")
        return rows[0] if rows else None

    def covered(self, ack):
        """The gateway has every number up to `upto_seq`, and those up to `high_seq` that are not missing."""
        missing = ack.get("missing", [])
        for row, seq in self.ask("SELECT id, seq FROM readings WHERE boot = ?", ack["boot"]):
            if seq <= ack["upto_seq"] or (seq <= ack.get("high_seq", 0) and not any(a <= seq <= b for a, b in missing)):
                self.ask("DELETE FROM readings WHERE id = ?", row)

    def send_again(self, boot, ranges):
        """What is still here is sent again; returns the ranges of which something is not."""
        lost = []
        for first, last in ranges[:64]:
            here = {seq for (seq,) in self.ask("SELECT seq FROM readings WHERE boot = ? AND refused = 0 AND seq BETWEEN ? AND ?", boot, first, last)}
            self.ask("UPDATE readings SET handed = 0 WHERE boot = ? AND seq BETWEEN ? AND ?", boot, first, last)
            lost += [[seq, seq] for seq in range(first, min(last, first + 1000) + 1) if seq not in here]
        return lost[:64]


class Bridge:
    def __init__(self, config):
        self.config, self.journal, self.seq = config, Journal(config["journal"]), 0
        self.key = load_pem_private_key(pathlib.Path(config["key_file"]).read_bytes(), password=None)
        self.topics = f"vitalfog/v1/{config['gateway']}/{config['device']}"
        self.wake, self.connected, self.answers = threading.Event(), threading.Event(), {}
        self.started, self.numbering = time.monotonic_ns(), threading.Lock()

    def up_ms(self):
        return (time.monotonic_ns() - self.started) // 1_000_000

    def state(self, **more):
        return json.dumps({"online": True, "boot": self.journal.boot, "up_ms": self.up_ms()} | more)

    # --- from Home Assistant

    def heard(self, _client, _data, message):
        of, text = self.config["entities"].get(message.topic), message.payload.decode(errors="replace").strip().strip('"')
        # What is retained was measured at a time that nobody knows; `unknown` and `unavailable` are no values.
        if of is None or message.retain or not NUMBER.fullmatch(text):
            return
        with self.numbering:
            self.seq += 1
            head = {"v": 1, "device": self.config["device"], "boot": self.journal.boot, "seq": self.seq, "up_ms": self.up_ms(),
                    "wall": time.time_ns() // 1_000_000, "time_quality": "synced"}
            one = f'{{"code":"{of["code"]}","value":{text},"unit":"{of["unit"]}"}}'
            reading = json.dumps(head)[:-1] + f', "observations": [{one}]}}'
            signature = base64.b64encode(self.key.sign(b"vitalfog/reading/v1\n" + reading.encode())).decode()
            self.journal.keep(self.seq, f'{{"reading":{reading},"signature":"{signature}"}}')
        self.wake.set()

    # --- to the gateway

    def told(self, client, _data, message):
        said, channel = json.loads(message.payload), message.topic.rsplit("/", 1)[1]
        if channel == "ack" and self.config["to"].get("receipt") == "ack":
            self.journal.covered(said)
        elif channel == "error":
            if "seq" in said:
                self.journal.ask("UPDATE readings SET refused = 1 WHERE boot = ? AND seq = ?", said["boot"], said["seq"])
            print(f"refused: {said['reason']}: {said['detail']}", file=sys.stderr, flush=True)
        elif channel == "cmd" and "resend" in said:
            lost = self.journal.send_again(said["resend"]["boot"], said["resend"]["ranges"])
            if lost:
                client.publish(f"{self.topics}/state", self.state(lost={"boot": said["resend"]["boot"], "ranges": lost}), qos=1, retain=True)
            self.wake.set()

    def welcome(self, client, _data, _flags, reason, _about):
        if reason.is_failure:
            return print(f"not let in: {reason}", file=sys.stderr, flush=True)
        client.subscribe([(f"{self.topics}/{channel}", 1) for channel in ("ack", "error", "cmd")])
        client.publish(f"{self.topics}/state", self.state(), qos=1, retain=True)
        # An outside broker may have lost what it had taken.
        self.journal.ask("UPDATE readings SET handed = 0")
        self.connected.set()
        self.wake.set()

    def payload(self, message):
        of = self.config["to"].get("seal")
        return seal(of["network"], of["reading_key"], f"{self.topics}/reading", message) if of else message

    def send(self, client):
        """One at a time, the oldest first, the same bytes until it is answered."""
        while True:
            waiting = self.connected.is_set() and self.journal.next()
            if not waiting:
                self.wake.wait(PAUSE_S)
                self.wake.clear()
                continue
            row, message = waiting
            sent = client.publish(f"{self.topics}/reading", self.payload(message.encode()), qos=1)
            deadline = time.monotonic() + ANSWER_S
            while sent.mid not in self.answers and time.monotonic() < deadline and self.connected.is_set():
                time.sleep(0.01)
            code = self.answers.pop(sent.mid, None)
            handed = self.config["to"].get("receipt") == "ack"
            # Behind an outside broker 0x10 says that nobody listens, not even later: it is in no hands but ours.
            if code in TAKEN and not (handed and code == 0x10):
                self.journal.ask("UPDATE readings SET handed = 1 WHERE id = ?" if handed else "DELETE FROM readings WHERE id = ?", row)
            elif code in REFUSED:
                self.journal.ask("UPDATE readings SET refused = 1 WHERE id = ?", row)
            else:
                time.sleep(PAUSE_S)

    def client(self, to, name):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        password = pathlib.Path(to["password_file"]).read_text().strip() if "password_file" in to else None
        client.username_pw_set(to["user"], password)
        client.tls_set(ca_certs=to["ca"], certfile=to.get("certificate"), keyfile=to.get("private_key"), cert_reqs=ssl.CERT_REQUIRED)
        client.reconnect_delay_set(1, 60)
        return client

    def run(self):
        come_from, go_to = self.config["from"], self.config["to"]
        home, gateway = self.client(come_from, f"{self.config['device']}-bridge"), self.client(go_to, self.config["device"])
        home.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in self.config["entities"]])
        home.on_subscribe = lambda *_: print(f"listening to {len(self.config['entities'])} topics", flush=True)
        home.on_message = self.heard
        gateway.on_connect, gateway.on_message = self.welcome, self.told
        gateway.on_disconnect = lambda *_: self.connected.clear()
        gateway.on_publish = lambda _client, _data, mid, reason, _about: self.answers.update({mid: reason.value})
        gateway.will_set(f"{self.topics}/state", json.dumps({"online": False, "boot": self.journal.boot}), qos=1, retain=True)
        for client, to in ((gateway, go_to), (home, come_from)):
            client.connect_async(to["host"], to["port"], keepalive=30)
            client.loop_start()
        self.send(gateway)


if __name__ == "__main__":
    Bridge(json.loads(pathlib.Path(sys.argv[1]).read_text())).run()
