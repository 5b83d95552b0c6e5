"""What people do who mean no good, and what is left when room runs short: floods, thieves, eavesdroppers; the same on each broker.

A mixin of the suite in brokers.py.
"""

import base64
import hashlib
import hmac
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.parse

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from device import PATIENCE_S, Refused, topic_of
from sandbox import PROGRAM, eventually

NOT_AUTHORIZED, QUOTA_EXCEEDED = 0x87, 0x97
# As delivered, docs/DEVICES.md has them.
BURST, RATE_PER_S, WRONG_PROOFS_MAX = 500, 50, 10
# What the flood may add to the gateway's memory, in bytes: far below what it publishes in the same time and the broker holds.
GROWTH_BYTES_MAX = 64 << 20
HOT_MESSAGES = 1_500


class Client:
    """A connection with a name and rights of its choice; hears what it subscribes to."""

    def __init__(self, url, ca, client_id="", user=None, password=None, certificate=None):
        broker, connacks = urllib.parse.urlsplit(url), queue.Queue()
        self.heard, self.subacks, self.acks = queue.Queue(), queue.Queue(), queue.Queue()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        if user:
            self.client.username_pw_set(user, password)
        cert, key = certificate or (None, None)
        self.client.tls_set(ca_certs=ca, cert_reqs=ssl.CERT_REQUIRED, certfile=cert, keyfile=key)
        self.client.on_connect = lambda _c, _u, _f, reason, _p: connacks.put(reason)
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: self.subacks.put([r.value for r in reasons])
        self.client.on_publish = lambda _c, _u, _m, reason, _p: self.acks.put(reason.value)
        self.client.on_disconnect = lambda *_: self.acks.put(None)
        self.client.on_message = lambda _c, _u, message: self.heard.put((message.topic, message.payload))
        self.client.connect(broker.hostname, broker.port)
        self.client.loop_start()
        reason = connacks.get(timeout=PATIENCE_S)
        if reason.is_failure:
            self.close()
        assert not reason.is_failure, reason

    def subscribe(self, name):
        self.client.subscribe(name, qos=1)
        return self.subacks.get(timeout=PATIENCE_S)[0]

    def publish(self, topic, message):
        """The reason code of the PUBACK, or None if the connection ended instead."""
        self.client.publish(topic, message, qos=1)
        return self.acks.get(timeout=PATIENCE_S)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def command(*words):
    ended = subprocess.run([PROGRAM, *words], capture_output=True, timeout=PATIENCE_S, text=True)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout


class Code:
    """A printed code, and who presents keys with it."""

    def __init__(self, test, device):
        self.report = test.sandbox.report
        self.config = pathlib.Path(self.report["gateway"]["data_dir"]).parent / "config.toml"
        printed = command("gateway", "claim", "new", "--config", str(self.config), "--device", device)
        self.code = json.loads(printed.splitlines()[0])
        self.base = f"vitalfog/v1/{self.code['gateway']}/claim/{self.code['claim']}"

    def request(self, key, secret=None, **others):
        """What is presented with a secret: proven to an outside broker, shown to the gateway's own."""
        code = self.code
        place = f"{code['network']}/{code['gateway']}/{code['device']}"
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        request = {"key": public, "proof": key.sign(f"vitalfog/device-key/v1\n{place}".encode()).hex(),
                   "password_sha256": hashlib.sha256(b"drawn by the device").hexdigest()}
        if code["broker"] == "external":
            text = f"vitalfog/claim/v1\n{place}\n{code['claim']}\n{public}\n{request['password_sha256']}"
            by = hashlib.sha256((secret or code["secret"]).encode()).digest()
            request["secret_proof"] = hmac.new(by, text.encode(), hashlib.sha256).hexdigest()
        return request | others

    def client(self):
        code = self.code
        user, password = code.get("user", f"claim-{code['claim']}"), code.get("password", code["secret"])
        client = Client(code["url"], self.report["gateway"]["ca_file"], f"new-{code['claim']}", user, password)
        client.subscribe(f"{self.base}/answer")
        return client

    def present(self, client, request):
        """The answer."""
        while not client.heard.empty():
            client.heard.get()
        client.publish(f"{self.base}/request", json.dumps(request))
        return json.loads(client.heard.get(timeout=PATIENCE_S)[1])


class Abuse:
    """Tests; `Brokers` has what they use."""

    # --- alarms pass everything, waveforms give way

    def waveforms_give_way_first_and_alarms_pass_everything(self):
        folder = os.statvfs(self.sandbox.report["gateway"]["data_dir"])
        free = folder.f_bavail * folder.f_frsize
        device = self.device("scale-3", receive_max=8)
        # Waveforms need twice the reserve, single values all of it, alarms a half.
        self.configure("outbox", f"disk_reserve_bytes = {free // 4 * 3}\n")
        device = self.reconnected(device)
        wave = device.message("61.5")
        self.assertEqual(device.publish(wave, channel="wave"), 0 if self.is_mosquitto else QUOTA_EXCEEDED)
        waves = device.seq
        self.believed(device, device.message("62.5"))
        self.assertFalse(self.is_mosquitto and device.is_acknowledged(waves))
        self.assertEqual((self.status()["waves_refused"], self.status()["full"]), ("disk", None))
        # Windows so small that the fleet and this device fill them at once: what is not taken is not acknowledged.
        self.configure("outbox", f"disk_reserve_bytes = {free // 2 * 3}\n", {"receive_max": 4, "waves_receive_max": 4})
        device = self.reconnected(device)
        values = [device.message(f"63.{n}") for n in range(1, 13)]
        for message in values:
            self.assertEqual(device.publish(message), 0 if self.is_mosquitto else QUOTA_EXCEEDED)
        self.believed(device, device.message("64.5"), channel="event")
        self.assertEqual(self.status()["full"], "disk")
        self.assertFalse(self.is_mosquitto and device.is_acknowledged(waves + 2))
        self.configure("outbox", "")
        device = self.reconnected(device)
        if self.is_mosquitto:
            # What waited comes by itself.
            eventually("all that waited", PATIENCE_S, lambda: all(device.is_acknowledged(seq) for seq in range(1, device.seq + 1)))
            type(self).by_hand += 1 + len(values)
        else:
            for message in [wave, *values]:
                self.believed(device, message)
        self.fleet_goes_on()

    # --- T4: a device that is a hundred times too fast

    def a_hot_device_costs_the_others_nothing(self):
        # What a broker may hand over beyond the rate after a reconnection is more than this flood.
        self.configure("outbox", "", {"device_backlog_messages_max": 0})
        hot, other = self.device("thermometer-2"), self.device("scale-2")
        key = load_pem_private_key(pathlib.Path(hot.device["key_file"]).read_bytes(), None)
        messages = {}
        for number in range(HOT_MESSAGES):
            text = hot.reading("8310-5", f"36.{number % 90 + 10}", "Cel")
            signature = base64.b64encode(key.sign(f"vitalfog/reading/v1\n{text}".encode())).decode()
            messages[hot.seq] = f'{{"reading":{text},"signature":"{signature}"}}'.encode()
        before, pid = self.rss(), self.sandbox.report["gateway"]["pid"]
        taken, started = set(), time.monotonic()
        flood = threading.Thread(target=lambda: taken.update(hot.flood(messages)))
        flood.start()
        for _ in range(3):
            self.believed(other, other.message("71.5"))
            self.fleet_goes_on()
        flood.join()
        eventually("what is not taken is counted", PATIENCE_S, lambda: self.held_back() > 0)
        self.believed(other, other.message("72.5"))
        # An alarm of the hot one itself passes what it floods.
        alarm = hot.message("39.5")
        self.assertIn(hot.publish(alarm, channel="event"), (0, 0x10))
        type(self).by_hand += 1
        if self.is_mosquitto:
            eventually("the alarm", PATIENCE_S, lambda: hot.is_acknowledged(hot.seq))
        seconds = time.monotonic() - started
        count = len(self.covered(hot, taken, messages))
        self.assertLessEqual(count, BURST + RATE_PER_S * (seconds + 1))
        self.assertGreaterEqual(count, BURST // 2)
        self.assertLess(self.rss() - before, GROWTH_BYTES_MAX)
        self.assertEqual(self.sandbox.report["gateway"]["pid"], pid, "it did not end")
        print(f"{self.driver}: of {len(messages)} messages of a hot device {count} were taken in {seconds:.1f} s, "
              f"the gateway grew by {(self.rss() - before) >> 20} MiB")
        # Nothing is lost by it: the device has kept the rest, and sends it at a pace that is allowed.
        deadline = time.monotonic() + 4 * PATIENCE_S
        while missing := sorted(messages.keys() - self.covered(hot, taken, messages)):
            assert time.monotonic() < deadline, f"{len(missing)} are missing"
            for seq in missing[:RATE_PER_S // 2]:
                code = hot.publish(messages[seq])
                if not self.is_mosquitto and code in (0, 0x10):
                    taken.add(seq)
            time.sleep(0.6)
        type(self).by_hand += len(messages)

    def covered(self, device, taken, messages):
        """Which of these the gateway has, as the device knows it."""
        return {seq for seq in messages if device.is_acknowledged(seq)} if self.is_mosquitto else set(taken)

    def rss(self):
        text = pathlib.Path(f"/proc/{self.sandbox.report['gateway']['pid']}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) << 10

    def held_back(self):
        _, metrics = self.sandbox.fetch(self.sandbox.report["gateway"]["http"] + "/metrics")
        found = re.search(r'(?m)^gateway_mqtt_refused_total\{what="rate"\} (\d+)', metrics.decode())
        return int(found[1]) if found else 0

    # --- a new device with a printed code, and who watches it

    def a_code_is_used_once_and_shown_to_nobody(self):
        # It has been enrolled before, and presents the key that it has: the sandbox's audit knows no other.
        own = next(device for device in self.sandbox.report["devices"] if device["id"] == "oximeter-3")
        key = load_pem_private_key(pathlib.Path(own["key_file"]).read_bytes(), None)
        code, thief = Code(self, "oximeter-3"), Ed25519PrivateKey.generate()
        self.assertEqual(code.code["broker"], "external" if self.is_mosquitto else "embedded")
        eavesdropper = self.eavesdropper()
        # The gateway knows a code a moment after it was printed.
        client = eventually("the code's user", PATIENCE_S, code.client)
        answer = eventually("the claim", PATIENCE_S, lambda: self.claimed(code, client, code.request(key)))
        self.assertEqual((answer["device"], answer["user"]), ("oximeter-3", "oximeter-3"))
        if eavesdropper:
            topic, request = eavesdropper.heard.get(timeout=PATIENCE_S)
            self.assertEqual(topic, f"{code.base}/request")
            self.assertNotIn(code.code["secret"].encode(), request)
            # With everything that was said he makes nothing of his own.
            seen = json.loads(request)
            for own in (code.request(thief, secret="guess"), code.request(thief, secret_proof=seen["secret_proof"]),
                        code.request(thief, secret_proof="")):
                self.assertIn("claim-unknown", code.present(client, own)["reason"])
            self.assertEqual(code.present(client, seen)["status"], "claimed", "said again, it is the same key")
        self.assertIn("claim-used", code.present(client, code.request(thief))["reason"], "burnt for every other key")
        # The claimant may do nothing else.
        self.assertIn(client.publish(topic_of({"id": "scale-2"}, "reading"), b"x"), (NOT_AUTHORIZED,) if self.is_mosquitto else (NOT_AUTHORIZED, None))
        client.close()
        if eavesdropper:
            self.guessing_spoils_a_code_and_gives_nothing(eavesdropper)
            eavesdropper.close()
        device = self.device("oximeter-3")
        self.believed(device, device.message("97"))
        self.the_operator_approves_another_key()

    def claimed(self, code, client, request):
        answer = code.present(client, request)
        return answer if answer["status"] == "claimed" else None

    def eavesdropper(self):
        """Whoever runs an outside broker; nobody at the gateway's own."""
        report = self.sandbox.report
        if not self.is_mosquitto:
            curious = self.device("thermometer-2")
            self.assertEqual(curious.subscribe("vitalfog/v1/home-1/claim/+/request"), [NOT_AUTHORIZED])
            return None
        folder = pathlib.Path(report["gateway"]["data_dir"]).parents[1] / "mqtt"
        broker = urllib.parse.urlsplit(report["gateway"]["mqtt"])
        url = f"mqtts://{broker.hostname}:{broker.port + 1}"
        client = Client(url, report["gateway"]["ca_file"], "eavesdropper", certificate=(folder / "gateway.crt", folder / "gateway.key"))
        client.subscribe("vitalfog/v1/home-1/claim/+/request")
        return client

    def guessing_spoils_a_code_and_gives_nothing(self, eavesdropper):
        code, key = Code(self, "oximeter-3"), Ed25519PrivateKey.generate()
        client = eventually("the code's user", PATIENCE_S, code.client)
        # Not counted while the gateway does not know the code yet.
        eventually("the code is known", PATIENCE_S, lambda: "malformed" in code.present(client, {})["reason"])
        for n in range(WRONG_PROOFS_MAX):
            self.assertIn("claim-unknown", code.present(client, code.request(key, secret=f"guess-{n}"))["reason"])
        self.assertIn("claim-unknown", code.present(client, code.request(key))["reason"])
        client.close()
        listed = command("gateway", "claim", "list", "--config", str(code.config))
        line = next(line for line in listed.splitlines() if line.startswith(code.code["claim"]))
        self.assertTrue(line.endswith("open"), "nobody has used it")

    def the_operator_approves_another_key(self):
        code, key = Code(self, "oximeter-3"), Ed25519PrivateKey.generate()
        # The gateway knows a code a moment after it was printed.
        client = eventually("the code's user", PATIENCE_S, code.client)
        eventually("the claim", PATIENCE_S, lambda: self.claimed(code, client, code.request(key)))
        client.close()
        requests = self.sandbox.folder / "requests.json"
        requests.write_text(command("gateway", "claim", "requests", "--config", str(code.config)))
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        self.assertEqual([(one["device"], one["key"]) for one in json.loads(requests.read_text())], [("oximeter-3", public)])
        self.decide("approve", "--rotate", str(requests))
        eventually("the key is on the chain", PATIENCE_S, lambda: public in json.dumps(self.sandbox.get("/api/v1/gateways/home-1/devices")))

    def decide(self, *decision):
        report = self.sandbox.report
        node = pathlib.Path(report["nodes"][0]["data_dir"]).parent / "config.toml"
        return command("fog-node", "edge", "--config", str(node), "--organization-key", report["hospital"]["private_key_file"], *decision)

    # --- T5: the gateway is stolen

    def a_stolen_gateway_tells_nothing_and_its_device_is_out_at_once(self):
        device = self.device("cuff-3")
        canary = "71.918273645"
        node, gateway = self.sandbox.report["nodes"][0]["pid"], self.sandbox.report["gateway"]
        os.kill(node, signal.SIGSTOP)
        try:
            # What is stolen has readings that no node has.
            for _ in range(5):
                self.believed(device, device.message(canary))
            self.assertGreaterEqual(self.status()["spooled_readings"], 5)
            stolen = self.sandbox.folder / "stolen"
            os.kill(gateway["pid"], signal.SIGKILL)
            shutil.copytree(pathlib.Path(gateway["data_dir"]).parent, stolen, symlinks=True)
        finally:
            os.kill(node, signal.SIGCONT)
        files = [file for file in stolen.rglob("*") if file.is_file() and not file.is_symlink()] + [pathlib.Path(gateway["log"])]
        self.assertTrue(any(file.name == "outbox.redb" and file.stat().st_size > 0 for file in files))
        # As text, and as the number in CBOR.
        needles = [canary.encode(), b"918273645", int(canary.replace(".", "")).to_bytes(8, "big").lstrip(b"\0")]
        for file in files:
            content = file.read_bytes()
            for needle in needles:
                self.assertNotIn(needle, content, file)
        eventually("the gateway hears devices", PATIENCE_S, self.hears)
        device = self.reconnected(device)
        self.believed(device, device.message("72.5"))
        self.decide("revoke-device", "cuff-3")
        began, blocks = time.monotonic(), self.sandbox.height(0)
        while not self.is_refused(device):
            self.assertLess(time.monotonic() - began, PATIENCE_S, "it is still believed")
        print(f"{self.driver}: refused {time.monotonic() - began:.1f} s and {self.sandbox.height(0) - blocks} blocks after the revocation was final")
        if self.is_mosquitto:
            # It may come in there as long as the broker lets it; it is not believed.
            self.assertGreater(self.quarantined("revoked"), 0)
        else:
            with self.assertRaises(Refused):
                device.connect()

    def is_refused(self, device):
        """Whether the gateway refuses the next reading as revoked; one that it takes counts."""
        message = device.message("73.5")
        code = device.publish(message)
        if not self.is_mosquitto:
            type(self).by_hand += code in (0, 0x10)
            # Or its session has ended.
            return code in (NOT_AUTHORIZED, None)

        def told():
            notice = device.notice(message)
            return (notice and notice["reason"]) or (device.is_acknowledged(device.seq) and "taken")

        verdict = eventually("a verdict", PATIENCE_S, told)
        type(self).by_hand += verdict == "taken"
        return verdict == "revoked"
