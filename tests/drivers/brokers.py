"""The suite for what is between devices and gateway, the same tests on the embedded broker and on Mosquitto.

usage: brokers.py [embedded|mosquitto]      both, otherwise

Each driver gets a sandbox of its own, whose fleet measures all the time; the tests play devices that are enrolled and that
nobody switched on. At the end the sandbox checks every promise: what was acknowledged, to the fleet and here, is final, once.
Where the brokers differ, the difference is written down in the test and in docs/OPERATIONS.md.
"""

import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest
import urllib.parse
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "faults"))
import sandbox  # noqa: E402
from abuse import Abuse  # noqa: E402
from device import CHANNELS, PATIENCE_S, Device, Refused, seal, topic_of  # noqa: E402
from homeassistant import OWN, HomeAssistant  # noqa: E402
from sandbox import Sandbox, eventually  # noqa: E402

FLEET = 7
# What a sealed message has besides its padded content.
SEAL_BYTES = 112
# Two of each kind that is played by hand come after the fleet's, in the household's order of kinds.
SPARES = 14
NOT_AUTHORIZED, QUOTA_EXCEEDED, PAYLOAD_FORMAT_INVALID = 0x87, 0x97, 0x99
# A device that is heard now and then is not silent, even if the machine stands still for a few seconds.
SILENT_AFTER_S = 15
SETTINGS = "nodes = 1\nspare_devices = {spares}\n[mqtt]\nbroker = \"{driver}\"\n"
NODE_CLIENT = """
const mqtt = require("mqtt"), fs = require("fs"), [url, ca, cert, key, user, topic, file] = process.argv.slice(2);
const client = mqtt.connect(url, { protocolVersion: Number(process.env.VERSION), clientId: user, username: user,
    ca: fs.readFileSync(ca), cert: fs.readFileSync(cert), key: fs.readFileSync(key), reconnectPeriod: 0 });
client.on("error", (e) => { console.error(e.message); process.exit(1); });
client.on("connect", () => client.publish(topic, fs.readFileSync(file), { qos: 1 }, (e) => {
    console.log(e ? e.message : "acknowledged"); client.end(false, () => process.exit(e ? 1 : 0)); }));
setTimeout(() => process.exit(2), 20000);
"""


def only(version, identity):
    """What a client needs that offers one version of TLS alone, with a certificate."""
    warnings.simplefilter("ignore", DeprecationWarning)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(identity["certificate_file"], identity["private_key_file"])
    return context


def offers(context):
    """Whether a client of this context says its first words: the local OpenSSL may have no such version any more."""
    words = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), words).do_handshake()
    except ssl.SSLWantReadError:
        # It waits for the answer.
        return words.pending > 0
    except ssl.SSLError:
        return False


class Brokers(Abuse):
    """The tests; a class below names the driver."""

    driver = None
    # What its sandbox may ask for as the base of its ports: both start at once, and must not take a port of each other's.
    bases = None

    @classmethod
    def start(cls):
        try:
            cls.sandbox = Sandbox(devices=FLEET, settings=SETTINGS.format(spares=SPARES, driver=cls.driver), bases=cls.bases)
        except Exception as error:
            cls.failure = error

    @classmethod
    def setUpClass(cls):
        cls.starting.join()
        if cls.failure:
            raise cls.failure
        # So many readings of this class are believed, each once.
        cls.by_hand = 0

    def setUp(self):
        self.opened = []

    def tearDown(self):
        for device in self.opened:
            device.close()

    # --- what the tests use

    @property
    def is_mosquitto(self):
        return self.driver == "mosquitto"

    def device(self, name, **how):
        """A spare device, connected, that hears what the gateway says to it."""
        report = self.sandbox.report
        entry = next(d for d in report["devices"][FLEET:] if d["id"] == name)
        device = Device(report, entry)
        self.opened.append(device)
        device.connect(**how)
        device.listen()
        return device

    def believed(self, device, message, **how):
        """Publishes a reading that has to be taken, and waits until the gateway has it."""
        self.assertIn(device.publish(message, **how), (0, 0x10))
        type(self).by_hand += 1
        if self.is_mosquitto:
            eventually("the acknowledgement", PATIENCE_S, lambda: device.is_acknowledged(device.seq))

    def status(self):
        return self.sandbox.gateway_status()

    def quarantined(self, reason):
        return self.status()["quarantined"]["by_reason"].get(reason, 0)

    def kill(self, who, meanwhile=lambda: None):
        """Ends a process as a power cut would; the sandbox starts it again."""
        before = self.sandbox.report[who]
        os.kill(before["pid"], signal.SIGKILL)
        meanwhile()

        def back():
            now = self.sandbox.report[who]
            return now["restarts"] > before["restarts"] and now["pid"]

        eventually(f"{who} started again", PATIENCE_S, back)
        eventually("the gateway hears devices", PATIENCE_S, self.hears)

    def hears(self):
        status = self.status()
        return status.get("broker", {"state": "up"})["state"] == "up" and status["connected"] > 0

    def fleet(self):
        return json.loads((pathlib.Path(self.sandbox.report["fleet"]["data_dir"]) / "status.json").read_text())

    def fleet_goes_on(self):
        before = self.fleet()["acknowledged"]
        eventually("the fleet is acknowledged", PATIENCE_S, lambda: self.fleet()["acknowledged"] > before + FLEET)

    # --- T1: who may publish what

    def a_device_publishes_nothing_for_another(self):
        thief, victim = self.device("thermometer-2"), self.device("scale-2")
        message = victim.message("71.5")
        self.assertEqual(thief.publish(message, of=victim.device), NOT_AUTHORIZED)
        for channel in ("ack", "error", "cmd"):
            self.assertEqual(thief.publish(b"{}", channel=channel), NOT_AUTHORIZED, channel)
            self.assertEqual(thief.publish(b"{}", channel=channel, of=victim.device), NOT_AUTHORIZED, channel)
        self.assertEqual(thief.publish_on("elsewhere", b"x"), NOT_AUTHORIZED)
        # The victim's number was not used up.
        self.believed(victim, message)

    def a_device_claims_no_others_name_in_a_reading(self):
        thief, victim = self.device("thermometer-2"), self.device("scale-2")
        forged = thief.signed(victim.reading("29463-7", "71.5", "kg"))
        before = self.quarantined("wrong-signature")
        self.assertIn(thief.publish(forged), (0, NOT_AUTHORIZED))
        notice = eventually("the reason", PATIENCE_S, lambda: thief.notice(forged))
        self.assertEqual(notice["reason"], "wrong-signature")
        self.assertNotIn("seq", notice, "nobody has vouched for a number")
        self.assertEqual(self.quarantined("wrong-signature"), before + 1)
        # Its own name, its own key, and what belongs to somebody else inside: also a changed byte is seen.
        genuine = thief.message("36.61")
        forged = genuine.replace(b"36.61", b"39.61")
        thief.publish(forged)
        self.assertEqual(eventually("the reason", PATIENCE_S, lambda: thief.notice(forged))["reason"], "wrong-signature")
        self.believed(thief, genuine)

    def a_certificate_opens_for_its_own_name_alone(self):
        report = self.sandbox.report
        thief, victim = [Device(report, d) for d in report["devices"][FLEET:FLEET + 2]]
        self.opened += [thief, victim]
        if self.is_mosquitto:
            # Mosquitto does not look at what a client calls itself: it is who its certificate says.
            victim.connect(certificate_of=thief.device)
            self.assertEqual(victim.publish(b"x"), NOT_AUTHORIZED)
        else:
            for said in ({"user": victim.device["id"]}, {"client_id": victim.device["id"]}):
                with self.assertRaises(Refused):
                    thief.connect(**said)
            with self.assertRaises(Refused):
                victim.connect(certificate_of=thief.device)

    def nobody_comes_in_without_a_right(self):
        report = self.sandbox.report
        broker = urllib.parse.urlsplit(report["gateway"]["mqtt"])
        # A fog node's certificate is of another authority.
        folder = pathlib.Path(report["nodes"][0]["data_dir"]).parent
        stranger = {"certificate_file": folder / "node.crt", "private_key_file": folder / "node.key"}
        self.assertTrue(stranger["certificate_file"].exists())
        device = Device(report, report["devices"][FLEET])
        with self.assertRaises((Refused, OSError)):
            device.connect(certificate_of=stranger)
        command = ["mosquitto_pub", "-h", broker.hostname, "-p", str(broker.port), "-V", "5", "-q", "1", "--cafile", report["gateway"]["ca_file"],
                   "-t", device.device["topic"], "-m", "x"]
        for who in ([], ["-u", device.device["id"]], ["-u", device.device["id"], "-P", "guessed"]):
            self.assertNotEqual(subprocess.run(command + who, capture_output=True, timeout=30).returncode, 0, who)

    def an_old_version_of_tls_is_refused(self):
        report = self.sandbox.report
        broker = urllib.parse.urlsplit(report["gateway"]["mqtt"])
        own = report["devices"][FLEET]

        def shake_hands(version):
            plain = socket.create_connection((broker.hostname, broker.port), timeout=PATIENCE_S)
            with plain, only(version, own).wrap_socket(plain) as wrapped:
                return wrapped.version()

        # The same client with the next version comes in: it is the version that is refused, and nothing else.
        self.assertEqual(shake_hands(ssl.TLSVersion.TLSv1_2), "TLSv1.2")
        if not offers(only(ssl.TLSVersion.TLSv1_1, own)):
            print("not looked at: TLS 1.1, which the OpenSSL of this machine cannot offer")
            return
        # Not any error: nobody there, or no answer in time, would be another.
        with self.assertRaises((ssl.SSLError, ConnectionResetError)):
            shake_hands(ssl.TLSVersion.TLSv1_1)

    # --- T6: what a curious client sees

    def whoever_listens_to_everything_hears_nothing_of_others(self):
        curious = self.device("oximeter-2")
        for name in ("#", "+/#", "vitalfog/v1/home-1/#", "vitalfog/v1/home-1/+/reading", "$SYS/#", "vitalfog/v1/home-1/scale-2/ack"):
            # Mosquitto's rights are about messages: it grants the subscription and delivers nothing.
            self.assertEqual(curious.subscribe(name), [1] if self.is_mosquitto else [NOT_AUTHORIZED], name)
        curious.heard.clear()
        self.fleet_goes_on()
        other = self.device("scale-2")
        self.believed(other, other.message("70.5"))
        own = f"vitalfog/v1/home-1/{curious.device['id']}/"
        self.assertEqual([topic for topic, *_ in curious.heard if not topic.startswith(own)], [])

    def listener(self):
        """Who hears all that this broker tells anybody: at Mosquitto its operator; the embedded one tells a device its own."""
        if not self.is_mosquitto:
            device = self.device("scale-2")
            self.assertEqual(device.subscribe(f"vitalfog/v1/home-1/{device.device['id']}/#"), [1])
            return device
        rights = pathlib.Path(self.sandbox.report["broker"]["data_dir"]).parent / "mosquitto.acl"
        rights.write_text(rights.read_text() + "\nuser cuff-3\ntopic readwrite #\n")
        os.kill(self.sandbox.report["broker"]["pid"], signal.SIGHUP)
        operator, probe = self.device("cuff-3"), topic_of({"id": "cuff-2"}, "cmd")
        operator.subscribe("#")
        # Until Mosquitto has read the rights again.
        eventually("every right", PATIENCE_S, lambda: operator.publish_on(probe, b"probe") in (0, 0x10))
        eventually("every message", PATIENCE_S, lambda: any(topic == probe for topic, *_ in operator.heard))
        return operator

    def is_served(self, device, value):
        """Whether the hospital has this value of a device, to the digit."""
        report = self.sandbox.report
        query = urllib.parse.urlencode({"patient": device.device["patient"], "code": "29463-7", "_count": 100})
        _, page = self.sandbox.fetch(f"{report['hospital']['fhir']}/Observation?{query}", token=report["hospital"]["token"])
        return f'"value":{value}' in page.decode().replace(" ", "")

    def whoever_operates_the_broker_reads_no_value(self):
        listener = self.listener()
        # With the embedded broker it is the device itself that hears.
        device = self.device("scale-2") if self.is_mosquitto else listener
        device.seals = True
        canaries = ["71.58233917", "72.90416653", "73.11847925"]
        self.believed(device, device.message(canaries[0]))
        self.believed(device, device.message(canaries[1]), channel="event")
        self.fleet_goes_on()
        readings = lambda: [(topic, payload) for topic, payload, _ in list(listener.heard) if topic.rsplit("/", 1)[1] in CHANNELS]
        eventually("everything is heard", PATIENCE_S, lambda: len(readings()) >= (2 + FLEET if self.is_mosquitto else 2))
        for canary in canaries:
            forms = canary.encode(), canary.replace(".", "").encode(), int(canary.replace(".", "")).to_bytes(8, "big")
            for topic, payload, _ in list(listener.heard):
                self.assertFalse([form for form in forms if form in payload], topic)
        for topic, payload in readings():
            # Of the sealed form, of one of its sizes, and nothing that every reading says in words.
            self.assertIn(len(payload), [size + SEAL_BYTES for size in seal.CLASSES], topic)
            self.assertEqual(payload[0], 0xA4, topic)
            for word in (b"observations", b"time_quality", b"synced", b"29463-7"):
                self.assertNotIn(word, payload, topic)
        # The ear is good: in the clear it hears it. The gateway takes that only where the broker is its own.
        before, clear = self.quarantined("unsealed"), device.message(canaries[2])
        code = device.publish_on(device.device["topic"], clear)
        self.assertIn(code, (0, 0x10))
        eventually("the canary in the clear", PATIENCE_S, lambda: any(canaries[2].encode() in payload for _, payload in readings()))
        if self.is_mosquitto:
            notice = eventually("the reason", PATIENCE_S, lambda: device.notice(clear))
            self.assertEqual(notice["reason"], "unsealed")
            self.assertNotIn("seq", notice)
            self.assertEqual(self.quarantined("unsealed"), before + 1)
            self.believed(device, clear)
        else:
            type(self).by_hand += 1
            self.assertEqual(self.quarantined("unsealed"), before)
        for canary in canaries:
            eventually("served", PATIENCE_S, lambda: self.is_served(device, canary))

    def what_the_broker_keeps_for_the_gateway_says_nothing(self):
        gateway, device, canary = self.sandbox.report["gateway"], self.device("scale-2"), "74.60938271"
        message = device.message(canary)
        forms = canary.encode(), canary.replace(".", "").encode(), b"observations"
        if not self.is_mosquitto:
            # What the embedded broker has taken is in the gateway's spool, which names the device and nothing else.
            self.believed(device, message)
            kept = b"".join(file.read_bytes() for file in pathlib.Path(gateway["data_dir"]).rglob("*") if file.is_file())
            self.assertIn(device.device["id"].encode(), kept)
            self.assertEqual([form for form in forms if form in kept], [])
            return
        broker = self.sandbox.report["broker"]
        kept = pathlib.Path(broker["data_dir"]) / "mosquitto.db"
        os.kill(gateway["pid"], signal.SIGSTOP)
        try:
            self.assertIn(device.publish(message), (0, 0x10))
            topic = device.device["topic"].encode()
            # The reading waits: Mosquitto writes down what waits when it is told to.
            os.kill(broker["pid"], signal.SIGUSR1)
            eventually("it is on Mosquitto's disk", PATIENCE_S, lambda: kept.exists() and topic in kept.read_bytes())
            self.assertEqual([form for form in (*forms, device.boot.encode()) if form in kept.read_bytes()], [])
        finally:
            os.kill(gateway["pid"], signal.SIGCONT)
        eventually("the acknowledgement", PATIENCE_S, lambda: device.is_acknowledged(device.seq))
        type(self).by_hand += 1

    def reading_key(self, *words):
        """Changes the reading keys beside the running gateway; their public halves, when it has taken them."""
        report = self.sandbox.report
        config = pathlib.Path(report["gateway"]["data_dir"]).parent / "config.toml"
        command = [pathlib.Path(report["data_dir"]) / "bin" / "gateway", "reading-key", *words, "--config", config]
        ended = subprocess.run(command, capture_output=True, timeout=PATIENCE_S)
        self.assertEqual(ended.returncode, 0, ended.stderr.decode())
        listed = [line.split("\t")[:2] for line in ended.stdout.decode().splitlines()]
        taken = lambda: [[key["id"], key["public"]] for key in self.status()["reading_keys"]] == listed
        eventually("the gateway has the keys", PATIENCE_S, taken)
        return listed

    def reading_keys_are_renewed_and_dropped_while_everything_runs(self):
        device, network = self.device("scale-3"), self.sandbox.report["network"]
        sealed = lambda key, message: seal.seal(network, key, device.device["topic"], message)
        (second_id, second), (_, first) = self.reading_key("renew")
        self.assertEqual(first, self.sandbox.report["gateway"]["reading_key"])
        (_, third), *_ = self.reading_key("renew")
        for key in (first, second, third):
            message = device.message()
            self.assertIn(device.publish_on(device.device["topic"], sealed(key, message)), (0, 0x10))
            type(self).by_hand += 1
            if self.is_mosquitto:
                eventually("the acknowledgement", PATIENCE_S, lambda: device.is_acknowledged(device.seq))
        self.assertEqual([public for _, public in self.reading_key("drop", "--id", second_id)], [third, first])
        late = sealed(second, device.message())
        self.assertEqual(device.publish_on(device.device["topic"], late), 0 if self.is_mosquitto else NOT_AUTHORIZED)
        notice = eventually("the reason", PATIENCE_S, lambda: device.notice(late))
        self.assertEqual(notice["reason"], "not-opened")
        # The number is not used up, and the fleet, which has the first key, was never refused.
        self.believed(device, device.sent[device.seq])
        self.fleet_goes_on()

    def a_fleet_that_spoils_its_seals_has_exactly_the_outcomes_of_its_account(self):
        report, folder = self.sandbox.report, self.sandbox.folder / "spoilers"
        folder.mkdir()
        devices = [d for d in report["devices"][FLEET:] if d["id"] in ("glucose-2", "glucose-3")]
        entries = [{"id": d["id"], "kind": "glucose-sensor", "key_file": d["key_file"], "user": d["id"], "recording": d["recording"],
                    "certificate": d["certificate_file"], "private_key": d["private_key_file"]} for d in devices]
        (folder / "devices.json").write_text(json.dumps(entries))
        # In the clear is a fault only where seals are required.
        faults = ["misdirected", "truncated", "flipped", "wrong_unit"] + (["unsealed"] if self.is_mosquitto else [])
        broker, receipt = urllib.parse.urlsplit(report["gateway"]["mqtt"]), "ack" if self.is_mosquitto else "puback"
        lines = ['gateway = "home-1"', f'data_dir = "{folder}/data"', f'devices = "{folder}/devices.json"', "cadence_ms = 50", "[mqtt]",
                 f'address = "{broker.hostname}:{broker.port}"', f'ca = "{report["gateway"]["ca_file"]}"', f'receipt = "{receipt}"', "[seal]",
                 f'network = "{report["network"]}"', f'reading_key = "{report["gateway"]["reading_key"]}"', "[fault]",
                 *(f"{fault} = 0.15" for fault in faults)]
        (folder / "config.toml").write_text("\n".join(lines))
        reasons = ("not-opened", "malformed", "wrong-unit", "unsealed")
        before = {reason: self.quarantined(reason) for reason in reasons}
        program = pathlib.Path(report["data_dir"]) / "bin" / "firmware-sim"
        ended = subprocess.run([program, "run", "--config", folder / "config.toml", "--for", "10s"], capture_output=True, timeout=120)
        status = json.loads((folder / "data" / "status.json").read_text())
        type(self).by_hand += status["acknowledged"]
        self.assertEqual((ended.returncode, status["unexpected"]), (0, 0), ended.stderr.decode())
        self.assertEqual(status["published"], status["acknowledged"] + status["refused"])
        counted = {reason: self.quarantined(reason) - of for reason, of in before.items()}
        self.assertEqual(sum(counted.values()), status["refused"], counted)
        # Each strikes one of seven readings, of which there are some hundreds.
        self.assertEqual({reason for reason, number in counted.items() if number}, set(reasons) - (set() if self.is_mosquitto else {"unsealed"}))
        lost = [json.loads(line) for line in (folder / "data" / "missing.ndjson").read_text().splitlines()]
        self.assertEqual({line["why"] for line in lost}, {"not-believed"})
        high = {g["boot"]: g for g in self.status()["gaps"] if g["device"].startswith("glucose-")}
        told = {(boot, n) for boot, g in high.items() for low, top in g["missing"] for n in range(low, top + 1)}
        missing = {(line["boot"], n) for line in lost for n in range(line["from"], line["to"] + 1)}
        # After the last number that came nobody can know of a gap.
        self.assertLessEqual(told, missing)
        self.assertTrue(all(n > max((m for b, m in told if b == boot), default=0) for boot, n in missing - told), missing - told)

    def what_is_sealed_for_somebody_else_forged_or_altered_is_refused(self):
        device, network = self.device("thermometer-2"), self.sandbox.report["network"]
        device.seals = True
        own, key = device.device["topic"], self.sandbox.report["gateway"]["reading_key"]
        message = device.message("36.71")
        good = device.sealed(message)
        elsewhere = seal.seal(network, key, own.replace("home-1", "home-2"), message)
        flipped = good[:-1] + bytes([good[-1] ^ 1])
        # Anybody can seal to the gateway; nobody else can sign.
        forged = device.sealed(message.replace(b"36.71", b"38.71"))
        cases = [("not-opened", device.sealed(message, topic_of(device.device, "event")), NOT_AUTHORIZED),
                 ("not-opened", device.sealed(message, topic_of({"id": "scale-2"}, "reading")), NOT_AUTHORIZED),
                 ("not-opened", elsewhere, NOT_AUTHORIZED), ("not-opened", flipped, NOT_AUTHORIZED),
                 ("malformed", good[:-1], PAYLOAD_FORMAT_INVALID), ("malformed", good[:1], PAYLOAD_FORMAT_INVALID),
                 ("malformed", device.sealed(good), PAYLOAD_FORMAT_INVALID), ("wrong-signature", forged, NOT_AUTHORIZED)]
        before = {reason: self.quarantined(reason) for reason, *_ in cases}
        for number, (reason, payload, code) in enumerate(cases):
            self.assertEqual(device.publish_on(own, payload), 0 if self.is_mosquitto else code, number)
            notice = eventually(f"the reason {reason}", PATIENCE_S, lambda: device.notice(payload))
            self.assertEqual((notice["reason"], "seq" in notice), (reason, False), number)
            self.assertNotIn("36.71", json.dumps(notice))
        counted = {reason: self.quarantined(reason) - of for reason, of in before.items()}
        self.assertEqual(counted, {"not-opened": 4, "malformed": 3, "wrong-signature": 1})
        # Its number is not used up; and the same again, and sealed anew, is a repetition.
        self.believed(device, message)
        before = self.status()["duplicates"]
        for again in (good, good, device.sealed(message)):
            self.assertIn(device.publish_on(own, again), (0, 0x10))
        eventually("duplicates", PATIENCE_S, lambda: self.status()["duplicates"] >= before + 3)
        if self.is_mosquitto:
            eventually("the acknowledgement", PATIENCE_S, lambda: device.progress()["upto_seq"] == device.seq)

    # --- T3: what is not believed

    def hostile_payloads_are_kept_apart_with_their_reason(self):
        device = self.device("thermometer-2")
        head = '{"v":1,"device":"thermometer-2","boot":"9-0000000000000009","seq":1,"up_ms":1,"time_quality":"unknown","observations":'
        hostile = {
            "malformed": [b"\x00\xffnot a reading", b"", b"\x81" * 60_000, b"{" * 60_000, b"\xa1" * 1_000, b"\xd2\x84\x5b" + b"\xff" * 8,
                          device.signed(head + '[{"code":"8310-5","value":NaN,"unit":"Cel","state":"valid"}]}')],
            "implausible": [device.message("366")],
            "wrong-unit": [device.signed(device.reading("8310-5", "309.8", "K"))],
            "unknown-code": [device.signed(device.reading("0-0", "1", "1"))],
        }
        for reason, messages in hostile.items():
            for message in messages:
                code = device.publish(message)
                self.assertEqual(code, 0 if self.is_mosquitto else PAYLOAD_FORMAT_INVALID, reason)
                notice = eventually(f"the reason {reason}", PATIENCE_S, lambda: device.notice(message))
                self.assertEqual(notice["reason"], reason)
                self.assertTrue(notice["detail"])
                if reason != "malformed":
                    self.assertEqual(notice["boot"], device.boot)
                    self.assertTrue(1 <= notice["seq"] <= device.seq)
        self.assertEqual(self.quarantined("implausible"), 1)
        # Larger than a reading may be: the embedded broker says why, Mosquitto hangs up.
        self.assertEqual(device.publish(b"x" * 70_000), None if self.is_mosquitto else PAYLOAD_FORMAT_INVALID)
        # The number that was refused is used: the next one is taken, and nothing waits.
        device.close()
        device = self.device("thermometer-2")
        self.believed(device, device.message())

    # --- F25: repeated, out of order, retained

    def what_comes_twice_or_out_of_order_counts_once(self):
        device = self.device("scale-2")
        messages = [device.message(f"7{n}.5") for n in range(1, 7)]
        for at in (2, 0, 1, 0, 2, 5):
            self.assertIn(device.publish(messages[at]), (0, 0x10))
        type(self).by_hand += 4
        gaps = eventually("the gap", PATIENCE_S, lambda: [g for g in self.status()["gaps"] if g["boot"] == device.boot])
        self.assertEqual(gaps[0]["missing"], [[4, 5]])
        if self.is_mosquitto:
            said = eventually("the acknowledgement", PATIENCE_S, lambda: device.is_acknowledged(6) and device.progress())
            self.assertEqual((said["upto_seq"], said["high_seq"], said["missing"]), (3, 6, [[4, 5]]))
            self.assertFalse(device.is_acknowledged(4))
        for at in (4, 3):
            self.assertIn(device.publish(messages[at]), (0, 0x10))
        type(self).by_hand += 2
        eventually("no gap", PATIENCE_S, lambda: all(g["boot"] != device.boot for g in self.status()["gaps"]))
        if self.is_mosquitto:
            eventually("all", PATIENCE_S, lambda: device.progress()["upto_seq"] == 6 and "missing" not in device.progress())

    # --- the gateway asks for what is missing

    def what_is_missing_is_asked_for_until_it_comes(self):
        device = self.device("scale-3")
        device.subscribe(topic_of(device.device, "cmd"))
        other = self.device("thermometer-3")
        other.subscribe(topic_of(device.device, "cmd"))
        messages = {n: device.message(f"6{n}.5", seq=n) for n in range(1, 6)}
        self.assertIn(device.publish(json.dumps({"online": True, "boot": device.boot, "up_ms": 5_000}), channel="state"), (0, 0x10))
        # Two get lost on the way, and the device does not know.
        for n in (1, 2, 5):
            self.assertIn(device.publish(messages[n]), (0, 0x10))

        def asked():
            return [said["resend"]["ranges"] for said in device.told("cmd") if said["resend"]["boot"] == device.boot]

        def missing():
            return next((gap["missing"] for gap in self.status()["gaps"] if gap["boot"] == device.boot), None)

        eventually("the question", PATIENCE_S, lambda: asked() == [[[3, 4]]])
        self.assertIn(device.publish(messages[4]), (0, 0x10))
        lost = {"online": True, "boot": device.boot, "up_ms": 9_000, "lost": {"boot": device.boot, "ranges": [[3, 3]]}}
        self.assertIn(device.publish(json.dumps(lost), channel="state"), (0, 0x10))
        eventually("one number", PATIENCE_S, lambda: missing() == [[3, 3]])
        # What nobody has signed closes no gap; by hand it is asked for all the same.
        config = pathlib.Path(self.sandbox.report["gateway"]["data_dir"]).parent / "config.toml"
        command = [sandbox.PROGRAM, "gateway", "resync", "--config", config, "--device"]
        by_hand = subprocess.run([*command, "scale-3"], capture_output=True, timeout=60, text=True)
        self.assertTrue(by_hand.stdout.startswith("asked for 1 numbers of 1 starts; "), by_hand.stdout + by_hand.stderr)
        eventually("the question by hand", PATIENCE_S, lambda: asked()[-1] == [[3, 3]])
        self.assertEqual(len(asked()), 2, "what is lost is not asked for again by itself")
        self.assertIn(device.publish(messages[3]), (0, 0x10))
        eventually("no gap", PATIENCE_S, lambda: missing() is None)
        type(self).by_hand += 5
        nothing = subprocess.run([*command, "scale-3"], capture_output=True, timeout=60, text=True)
        self.assertEqual((nothing.returncode, nothing.stdout), (0, "nothing is missing of this device\n"))
        self.assertEqual([topic for topic, *_ in other.heard if topic.endswith("/cmd")], [], "a device hears its own alone")

    # --- a device that only counts ticks connects for the first time

    def what_was_measured_before_the_first_connection_has_its_time(self):
        device = self.device("scale-2")
        booted_s, old_ms = time.time() - 7_200, 60_000

        def publish(up_ms):
            text = device.reading("29463-7", "81.5", "kg", up_ms=up_ms, time_quality="relative")
            self.believed(device, device.signed(re.sub(r'"wall": \d+, ', "", text)))
            return device.seq

        def tell():
            """Says what stands on its counter, then sends what it had stored; through an outside broker something live goes between."""
            up_ms = lambda: int((time.time() - booted_s) * 1_000)
            state = {"online": True, "boot": device.boot, "up_ms": up_ms()}
            self.assertIn(device.publish(json.dumps(state), channel="state"), (0, 0x10))
            if self.is_mosquitto:
                time.sleep(3)
                publish(up_ms())
            seq = publish(old_ms)
            name = f"{device.device['id']}/{device.boot}/{seq}"
            return eventually("it is served", PATIENCE_S, lambda: self.of_patient(device.device["id"], "29463-7").get(name))

        # On a busy machine a message may wait, and proves nothing then.
        deadline = time.monotonic() + 2 * PATIENCE_S
        one = tell()
        while '"valueCode": "corrected"' not in json.dumps(one["extension"]):
            self.assertLess(time.monotonic(), deadline, one["extension"])
            one = tell()
        measured = datetime.datetime.fromisoformat(one["effectiveDateTime"].replace("Z", "+00:00")).timestamp()
        self.assertLess(abs(measured - booted_s - old_ms / 1_000), 20, one["effectiveDateTime"])

    # --- Home Assistant

    def home_assistant_shows_what_the_home_wishes_and_nothing_else(self):
        home = HomeAssistant()
        self.addCleanup(home.close)
        self.addCleanup(self.configure, "homeassistant", "")
        section = "\n".join([f'address = "127.0.0.1:{home.port}"', f'ca = "{home.ca}"', 'user = "vitalfog"',
                             f'password_file = "{home.folder}/vitalfog.password"', "devices = {}\n"])
        self.configure("homeassistant", section.format('["thermometer-2", "nobody-yet"]'))
        device, other = self.device("thermometer-2", will=(topic_of({"id": "thermometer-2"}, "state"), json.dumps({"online": False}))), self.device("scale-2")
        self.assertIn(device.publish(json.dumps({"online": True}), channel="state"), (0, 0x10))
        self.believed(other, other.message("88.88"))
        self.believed(device, device.message("36.70"))
        of = "thermometer-2_8310-5"
        eventually("the value", PATIENCE_S, lambda: home.shown(of).get("value") == "36.70")
        sensor = home.sensors()[of]
        self.assertEqual((sensor["device_class"], sensor["unit_of_measurement"], sensor["state_topic"]), ("temperature", "°C", f"{OWN}{of}/state"))
        available = [one["topic"] for one in sensor["availability"]]
        eventually("it is there", PATIENCE_S, lambda: [home.last(topic) for topic in available] == ["online", "online"])
        # An older one that comes later, and one that is not believed, change nothing.
        self.believed(device, device.message("36.90", seq=3))
        eventually("the newer value", PATIENCE_S, lambda: home.shown(of).get("value") == "36.90")
        self.believed(device, device.message("36.81", seq=2))
        device.publish(device.message("366", seq=4))
        # Home Assistant has started anew, and is told all again.
        told = len(home.heard)
        home.say("homeassistant/status", "online")
        eventually("told again", PATIENCE_S, lambda: {f"{OWN}{of}/config", f"{OWN}{of}/state"} <= {topic for topic, _ in home.heard[told:]})
        self.assertEqual(home.shown(of)["value"], "36.90")
        device.vanish()
        eventually("it is gone", PATIENCE_S, lambda: home.last(available[1]) == "offline")
        told = len(home.heard)
        self.kill("gateway")
        eventually("the gateway's will", PATIENCE_S, lambda: (available[0], "offline") in home.heard[told:])
        eventually("the gateway is back", PATIENCE_S, lambda: home.last(available[0]) == "online")
        # Only what is wished is ever there.
        self.assertEqual({topic for topic, _ in home.heard if "thermometer-2" not in topic} - {"homeassistant/status"},
                         {f"{OWN}availability", "homeassistant/vitalfog_home-1/echo"})
        self.assertEqual(set(home.sensors()), {of})
        # Wished no more, also by a gateway that was started since: it is taken away.
        self.configure("homeassistant", section.format("[]"))
        eventually("taken away", PATIENCE_S, lambda: not home.sensors() and not home.shown(of) and not home.last(available[1]))
        self.assertEqual(home.last(available[0]), "online")
        # The seconds of its times look like temperatures.
        log = re.sub(r"T[0-9:.]+Z", "", pathlib.Path(self.sandbox.report["gateway"]["log"]).read_text())
        for value in ("36.70", "36.81", "36.90", "88.88", "thermometer-2_8310-5"):
            self.assertNotIn(value, log)

    def what_home_assistant_has_comes_in_by_a_bridge_with_a_key_of_its_own(self):
        home = HomeAssistant()
        self.addCleanup(home.close)
        entry, broker = self.device("thermometer-3"), urllib.parse.urlsplit(self.sandbox.report["gateway"]["mqtt"])
        entry.close()
        name, topic = entry.device["id"], "statestream/sensor/ear_thermometer/state"
        config = home.folder / "bridge.json"
        config.write_text(json.dumps({
            "gateway": "home-1", "device": name, "key_file": entry.device["key_file"], "journal": str(home.folder / "bridge.sqlite"),
            "from": {"host": "127.0.0.1", "port": home.port, "ca": str(home.ca), "user": "bridge", "password_file": str(home.folder / "bridge.password")},
            "to": {"host": broker.hostname, "port": broker.port, "ca": self.sandbox.report["gateway"]["ca_file"], "user": name,
                   "certificate": entry.device["certificate_file"], "private_key": entry.device["private_key_file"],
                   "receipt": "ack" if self.is_mosquitto else "puback"} | (
                {"seal": {"network": self.sandbox.report["network"], "reading_key": self.sandbox.report["gateway"]["reading_key"]}}
                if self.is_mosquitto else {}),
            "entities": {topic: {"code": "8310-5", "unit": "Cel"}},
        }))
        # What stood there before was measured nobody knows when.
        home.say(topic, "35.01", retain=True)
        program = pathlib.Path(__file__).parents[2] / "docs/bridges/homeassistant.py"
        for value in ("36.61", "37.20"):
            bridge = subprocess.Popen([sys.executable, program, config], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            try:
                self.assertEqual(bridge.stdout.readline(), b"listening to 1 topics\n")
                home.say(topic, "unavailable")
                home.say(topic, value)
                served = eventually(f"{value} at the hospital", PATIENCE_S, lambda: self.served(name, value))
            except AssertionError as late:
                bridge.kill()
                raise AssertionError(f"{late}; the bridge says {bridge.communicate()[1]}, the gateway {self.status()['quarantined']}") from late
            finally:
                bridge.kill()
            self.assertEqual(bridge.communicate()[1], b"", "nothing is refused")
            starts = {one["identifier"][0]["value"].split("/")[1].split("-")[0] for one in served}
        self.assertEqual(starts, {"1", "2"}, "each start has a number of its own")
        values = [one["valueQuantity"]["value"] for one in served]
        type(self).by_hand += len(values)
        self.assertEqual(set(values), {36.61, 37.2}, "neither what was retained nor what is no value")

    def served(self, device, value):
        """What the hospital has of the bridge's starts, once it has this value."""
        # Devices that are worked by hand start with 9.
        all_of_it = self.of_patient(device, "8310-5").items()
        of_bridge = [one for name, one in all_of_it if name.startswith((f"{device}/1-", f"{device}/2-"))]
        return of_bridge if float(value) in [one["valueQuantity"]["value"] for one in of_bridge] else None

    def of_patient(self, device, code):
        """What the hospital has of a sign of the person that a device measures, by the name of the reading."""
        hospital = self.sandbox.report["hospital"]
        patient = next(d["patient"] for d in self.sandbox.report["devices"] if d["id"] == device)
        _, body = self.sandbox.fetch(f"{hospital['fhir']}/Observation?patient={patient}&code={code}&_count=100", token=hospital["token"])
        found = [entry["resource"] for entry in json.loads(body).get("entry", [])]
        return {one["identifier"][0]["value"]: one for one in found if "identifier" in one}

    # --- T2, F3, session resume: the gateway is killed

    def a_replay_after_a_restart_is_known(self):
        device = self.device("oximeter-2", clean=True, expiry_s=600)
        messages = [device.message(str(n)) for n in range(90, 96)]
        for message in messages[:4]:
            self.assertIn(device.publish(message), (0, 0x10))
        # Also one that the broker keeps, and gives to every new subscriber.
        self.assertIn(device.publish(messages[4], retain=True), (0, 0x10))
        type(self).by_hand += 5
        if self.is_mosquitto:
            eventually("the acknowledgement", PATIENCE_S, lambda: device.is_acknowledged(5))
        before = self.status()["duplicates"]
        for message in messages[:5]:
            device.publish(message)
        eventually("duplicates", PATIENCE_S, lambda: self.status()["duplicates"] >= before + 5)

        def meanwhile():
            if self.is_mosquitto:
                # Nobody hears it now: Mosquitto says 0, keeps it in the gateway's session, and that is no receipt.
                self.assertIn(device.publish(messages[5]), (0, 0x10))
                self.assertFalse(device.is_acknowledged(6))

        self.kill("gateway", meanwhile)
        if self.is_mosquitto:
            eventually("what waited in the gateway's session", PATIENCE_S, lambda: device.is_acknowledged(6))
            type(self).by_hand += 1
        else:
            device = self.reconnected(device)
            self.believed(device, messages[5])
        before = self.status()["duplicates"]
        for message in messages * 2:
            self.assertIn(device.publish(message), (0, 0x10))
        eventually("duplicates", PATIENCE_S, lambda: self.status()["duplicates"] >= before + 12)
        self.fleet_goes_on()

    def reconnected(self, device):
        eventually("the broker lets devices in", PATIENCE_S, lambda: device.connect() is not None)
        device.listen()
        return device

    def a_session_is_resumed(self):
        device = self.device("oximeter-2", clean=True, expiry_s=600)
        absurd = device.message("970")
        device.close()
        self.assertTrue(device.connect(clean=False, expiry_s=600))
        self.assertEqual(device.publish(absurd), 0 if self.is_mosquitto else PAYLOAD_FORMAT_INVALID)
        notice = eventually("the reason, without a new subscription", PATIENCE_S, lambda: device.notice(absurd))
        self.assertEqual((notice["reason"], notice["seq"]), ("implausible", device.seq))
        device.close()
        self.assertFalse(device.connect(clean=True), "a clean start forgets")

    # --- back-pressure: the spool is full

    def a_full_spool_takes_nothing_and_loses_nothing(self):
        device = self.device("scale-2", receive_max=8)
        self.configure("outbox", "bytes_max = 1\n")
        device = self.reconnected(device)
        message = device.message("75.5")
        self.assertEqual(device.publish(message), 0 if self.is_mosquitto else QUOTA_EXCEEDED)
        acknowledged = self.status()["acknowledged"]
        time.sleep(1.5)
        self.assertFalse(device.is_acknowledged(device.seq))
        self.assertEqual(self.status()["acknowledged"], acknowledged)
        self.configure("outbox", "")
        device = self.reconnected(device)
        if self.is_mosquitto:
            eventually("what Mosquitto kept", PATIENCE_S, lambda: device.is_acknowledged(device.seq))
            type(self).by_hand += 1
        else:
            self.believed(device, message)
        self.fleet_goes_on()

    def configure(self, section, lines, windows=()):
        """Restarts the gateway with other lines in a section, other windows at an outside broker, and a short patience with silent devices."""
        file = pathlib.Path(self.sandbox.report["gateway"]["data_dir"]).parent / "config.toml"
        original = file.with_name("config.original")
        if not original.exists():
            shutil.copy(file, original)
        text = original.read_text().replace("[mqtt]\n", f"[mqtt]\nsilent_after_s = {SILENT_AFTER_S}\n")
        for name, value in dict(windows).items():
            text = text.replace("[mqtt.subscriber]\n", f"[mqtt.subscriber]\n{name} = {value}\n")
        file.write_text(text + (f"[{section}]\n{lines}" if lines else ""))
        self.kill("gateway")

    # --- will, state, silence

    def a_device_that_vanishes_is_known_to_be_gone(self):
        state = topic_of({"id": "cuff-2"}, "state")
        eventually("the fleet is there", PATIENCE_S, lambda: self.status()["silent"]["online"] == FLEET)
        device = self.device("cuff-2", will=(state, json.dumps({"online": False})))
        self.assertIn(device.publish(json.dumps({"online": True}), channel="state"), (0, 0x10))
        eventually("one more", PATIENCE_S, lambda: self.status()["silent"]["online"] == FLEET + 1)
        device.vanish()
        eventually("its will", PATIENCE_S, lambda: self.status()["silent"]["online"] == FLEET)
        # Nobody else can be declared dead: a will is bound to its device's topic.
        other = Device(self.sandbox.report, device.device)
        self.opened.append(other)
        try:
            other.connect(will=(topic_of({"id": "scale-1"}, "state"), json.dumps({"online": False})))
            other.vanish()
        except Refused:
            self.assertFalse(self.is_mosquitto)
        time.sleep(1)
        self.assertEqual(self.status()["silent"]["online"], FLEET)

    def a_silent_device_is_shown(self):
        # The spares that nobody plays are silent; the fleet is not, and who speaks now is not any more.
        steady = {d["id"] for d in self.sandbox.report["devices"][:FLEET] if d["id"].startswith(("ecg", "ppg"))}

        def shown():
            silent = self.status()["silent"]
            names = {d["device"] for d in silent["longest"]}
            return silent["devices"] >= SPARES - 3 and {"cuff-3", "scale-3"} <= names and not names & steady

        eventually("the spares are silent, and who measures all the time is not", PATIENCE_S, shown)
        device = self.device("scale-3")
        self.believed(device, device.message("60.5"))
        self.assertNotIn("scale-3", {d["device"] for d in self.status()["silent"]["longest"]})
        _, metrics = self.sandbox.fetch(self.sandbox.report["gateway"]["http"] + "/metrics")
        self.assertRegex(metrics.decode(), r"(?m)^gateway_devices_silent [1-9]")

    # --- F26: the broker dies, and forgets

    def a_broker_that_forgets_everything_loses_nothing(self):
        if not self.is_mosquitto:
            # It is in the gateway: its death is the gateway's, which the tests above were about.
            self.kill("gateway")
            return self.fleet_goes_on()
        # Killed, it comes back with what it had saved; the devices bring the rest.
        self.kill("broker")
        self.fleet_goes_on()
        gateway, broker = self.sandbox.report["gateway"], self.sandbox.report["broker"]
        device = self.device("scale-2")
        os.kill(gateway["pid"], signal.SIGSTOP)
        try:
            # Mosquitto acknowledges what nobody has.
            lost = device.message("76.5")
            self.assertIn(device.publish(lost), (0, 0x10))
            before = self.fleet()["published"]
            eventually("readings wait in the broker", PATIENCE_S, lambda: self.fleet()["published"] > before + FLEET)
            os.kill(broker["pid"], signal.SIGKILL)
            for file in pathlib.Path(broker["data_dir"]).iterdir():
                file.unlink()
        finally:
            # With it goes what the kernel had received for it.
            os.kill(gateway["pid"], signal.SIGKILL)
        eventually("a new broker", PATIENCE_S, lambda: self.sandbox.report["broker"]["restarts"] > broker["restarts"] and self.hears())
        device = self.reconnected(device)
        time.sleep(1)
        self.assertFalse(device.is_acknowledged(device.seq), "nobody has it")
        self.believed(device, lost)
        # What the fleet had published by the time of the death is acknowledged in the end.
        published = self.fleet()["published"]
        eventually("the fleet sent again", PATIENCE_S, lambda: self.fleet()["acknowledged"] >= published)

    # --- foreign clients, unchanged

    def mosquitto_clients_speak_with_it(self):
        device = self.device("thermometer-3")
        device.close()
        broker, entry = urllib.parse.urlsplit(self.sandbox.report["gateway"]["mqtt"]), device.device
        common = ["-h", broker.hostname, "-p", str(broker.port), "--cafile", self.sandbox.report["gateway"]["ca_file"],
                  "--cert", entry["certificate_file"], "--key", entry["private_key_file"], "-i", entry["id"], "-u", entry["id"], "-q", "1"]
        for version in ("5", "311"):
            ended = subprocess.run(["mosquitto_pub", *common, "-V", version, "-t", entry["topic"], "-s", "-d"],
                                   input=device.as_it_publishes(device.message()), capture_output=True, timeout=30)
            self.assertEqual(ended.returncode, 0, ended.stderr.decode())
            type(self).by_hand += 1
            said = json.dumps({"online": False, "version": version})
            state = topic_of(entry, "state")
            kept = subprocess.run(["mosquitto_pub", *common, "-V", version, "-t", state, "-m", said, "-r"], capture_output=True, timeout=30)
            self.assertEqual(kept.returncode, 0, kept.stderr.decode())
            heard = subprocess.run(["mosquitto_sub", *common, "-V", version, "-t", state, "-C", "1", "-W", "2"], capture_output=True, timeout=30)
            # On Mosquitto a device may not read its state, only the gateway may.
            self.assertEqual(heard.stdout.decode().strip(), "" if self.is_mosquitto else said)

    def the_npm_client_speaks_with_it(self):
        modules = pathlib.Path(__file__).parents[2] / "target/peers/node/node_modules"
        if not (modules / "mqtt").is_dir() or not shutil.which("node"):
            self.skipTest("npm's mqtt is not installed")
        device = self.device("thermometer-3")
        device.close()
        entry, folder = device.device, self.sandbox.folder
        (folder / "client.js").write_text(NODE_CLIENT)
        for version in ("5", "4"):
            (folder / "message").write_bytes(device.as_it_publishes(device.message()))
            command = ["node", folder / "client.js", self.sandbox.report["gateway"]["mqtt"], self.sandbox.report["gateway"]["ca_file"],
                       entry["certificate_file"], entry["private_key_file"], entry["id"], entry["topic"], folder / "message"]
            ended = subprocess.run(command, capture_output=True, timeout=40, env=os.environ | {"NODE_PATH": str(modules), "VERSION": version})
            self.assertEqual((ended.returncode, ended.stdout.decode().strip()), (0, "acknowledged"), ended.stderr.decode())
            type(self).by_hand += 1

    # --- the end

    def every_promise_held(self):
        code, report = self.sandbox.end()
        told = {key: report[key] for key in ("acknowledged", "final", "gaps", "duplicates", "unconfirmed", "by_hand")}
        print(f"{self.driver}: {told}")
        log = pathlib.Path(report["gateway"]["log"]).read_text().splitlines()
        said = "\n".join(line for line in log if " INFO " not in line)
        self.assertEqual((code, report["passed"], report["failures"]), (0, True, []), f"{self.sandbox.printed()}\nthe gateway's log:\n{said}")
        self.assertEqual((report["gaps"], report["duplicates"]), (0, 0))
        self.assertEqual(report["by_hand"], self.by_hand)


class Embedded(Brokers, unittest.TestCase):
    driver = "embedded"
    bases = (2000, 4800)


class Mosquitto(Brokers, unittest.TestCase):
    driver = "mosquitto"
    bases = (5000, 7800)


TESTS = [
    "a_device_publishes_nothing_for_another",
    "a_device_claims_no_others_name_in_a_reading",
    "a_certificate_opens_for_its_own_name_alone",
    "nobody_comes_in_without_a_right",
    "an_old_version_of_tls_is_refused",
    "whoever_listens_to_everything_hears_nothing_of_others",
    "whoever_operates_the_broker_reads_no_value",
    "what_the_broker_keeps_for_the_gateway_says_nothing",
    "reading_keys_are_renewed_and_dropped_while_everything_runs",
    "a_fleet_that_spoils_its_seals_has_exactly_the_outcomes_of_its_account",
    "what_is_sealed_for_somebody_else_forged_or_altered_is_refused",
    "hostile_payloads_are_kept_apart_with_their_reason",
    "what_comes_twice_or_out_of_order_counts_once",
    "what_is_missing_is_asked_for_until_it_comes",
    "what_was_measured_before_the_first_connection_has_its_time",
    "a_session_is_resumed",
    "mosquitto_clients_speak_with_it",
    "the_npm_client_speaks_with_it",
    "a_replay_after_a_restart_is_known",
    "a_full_spool_takes_nothing_and_loses_nothing",
    "waveforms_give_way_first_and_alarms_pass_everything",
    "a_hot_device_costs_the_others_nothing",
    "a_code_is_used_once_and_shown_to_nobody",
    "a_device_that_vanishes_is_known_to_be_gone",
    "home_assistant_shows_what_the_home_wishes_and_nothing_else",
    "what_home_assistant_has_comes_in_by_a_bridge_with_a_key_of_its_own",
    "a_silent_device_is_shown",
    "a_stolen_gateway_tells_nothing_and_its_device_is_out_at_once",
    "a_broker_that_forgets_everything_loses_nothing",
    "every_promise_held",
]


def main():
    chosen = [case for case in (Embedded, Mosquitto) if case.driver in (sys.argv[1:] or ["embedded", "mosquitto"])]
    for case in chosen:
        # Both sandboxes start at once; each is waited for by its own tests.
        case.sandbox, case.failure, case.starting = None, None, threading.Thread(target=case.start)
        case.starting.start()
    suite = unittest.TestSuite(case(name) for case in chosen for name in TESTS)
    sandbox.run(suite, "drivers")


if __name__ == "__main__":
    main()
