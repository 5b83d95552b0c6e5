#!/usr/bin/env python3
"""What docs/DEVICES.md tells device makers, held against a running sandbox: schemas, reasons, examples, `firmware-sim check`.

    devices.py REPORT

REPORT is what the sandbox writes as soon as it is ready. What is sent by hand here is counted by it as `by_hand`.
"""

import base64
import functools
import json
import os
import pathlib
import random
import re
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse

import clients
from clients import REPORT, device, importable, needs

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DOMAIN = b"vitalfog/reading/v1"
# Where tests/peers/run has put the npm client.
NODE_PATH = ROOT / "target" / "peers" / "node" / "node_modules"
EXAMPLES = {"0x00": 0, "0x99": 1}


def sealed(message, topic):
    """As docs/examples seals it, to the running gateway."""
    if (folder := str(DOCS / "examples")) not in sys.path:
        sys.path.insert(0, folder)
    import seal

    return seal.seal(REPORT["network"], REPORT["gateway"]["reading_key"], topic, message)


def opening():
    """What `firmware-sim check` needs to look into what is sealed to the running gateway."""
    return ["--reading-keys", pathlib.Path(REPORT["gateway"]["data_dir"]) / "reading-keys.json", "--network", REPORT["network"]]


def gateway_name():
    return device("scale")["topic"].split("/")[2]


def firmware_sim(*arguments, **kwargs):
    """The kit: the running sandbox's own program."""
    program = pathlib.Path(REPORT["data_dir"]) / "bin" / "firmware-sim"
    return subprocess.run([program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **kwargs)


def signing_key(of):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(pathlib.Path(of["key_file"]).read_bytes(), password=None)


class Maker:
    """A foreign device: it signs in either form, from a reading as Python has it."""

    def __init__(self, of):
        self.of, self.key, self.boot = of, signing_key(of), f"8-{secrets.token_hex(8)}"

    def reading(self, seq=1, **fields):
        temperature = {"code": "8310-5", "value": [random.randint(360, 379), 1], "unit": "Cel"}
        head = {"v": 1, "seq": seq, "boot": self.boot, "wall": int(time.time() * 1000), "up_ms": 1000 * seq}
        return head | {"device": self.of["id"], "observations": [temperature], "time_quality": "synced"} | fields

    def cbor(self, reading):
        from cddl_verifier.cbor import encode

        protected, payload = encode({1: -8}), encode(ordered(reading))
        to_sign = encode(["Signature1", protected, DOMAIN, payload])
        return encode([protected, {}, payload, self.key.sign(to_sign)])

    def json(self, reading):
        text = json.dumps(plain(reading)).encode()
        signature = base64.b64encode(self.key.sign(DOMAIN + b"\n" + text))
        return b'{"reading":' + text + b',"signature":"' + signature + b'"}'


def ordered(value):
    """The order that DAG-CBOR asks for: shorter keys first."""
    if isinstance(value, dict):
        return {k: ordered(v) for k, v in sorted(value.items(), key=lambda item: (len(item[0]), item[0]))}
    return [ordered(v) for v in value] if isinstance(value, list) else value


def plain(value):
    """Decimals as JSON has them: the pair becomes a number."""
    if isinstance(value, dict):
        decimal = {"value", "origin", "factor", "period_ms"}
        return {k: v[0] / 10 ** v[1] if k in decimal and isinstance(v, list) else plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value


def one(**fields):
    """A reading's only observation, changed."""
    return {"observations": [{"code": "8310-5", "value": [366, 1], "unit": "Cel"} | fields]}


def waveform(**fields):
    samples = {"data": [1, 2, 3], "factor": [5, 3], "origin": [0, 0], "period_ms": [4, 0]} | fields
    return {"observations": [{"code": "11524-6", "samples": samples, "unit": "mV"}]}


# Readings that everybody takes.
GOOD = {
    "as it should be": {},
    "without a clock": {"wall": None, "time_quality": "relative"},
    "questionable": one(state="questionable"),
    "absent": {"observations": [{"code": "8310-5", "unit": "Cel", "state": "absent"}]},
    "a waveform": waveform(),
    "many at once": {"observations": 32 * one()["observations"]},
}
# Readings whose form is wrong: the schemas, the gateway and `check` must all see it. The last is the gateway's reason.
WRONG_FORM = {
    "another version": ({"v": 2}, "malformed"),
    "number 0": ({"seq": 0}, "malformed"),
    "a boot that prints otherwise": ({"boot": "08-0123456789abcdef"}, "malformed"),
    "upper-case digits": ({"boot": "8-0123456789ABCDEF"}, "malformed"),
    "another word for the clock": ({"time_quality": "good"}, "malformed"),
    "an unknown field": ({"firmware": "1.0"}, "malformed"),
    "no time since boot": ({"up_ms": None}, "malformed"),
    "nothing measured": ({"observations": []}, "malformed"),
    "too much at once": ({"observations": 33 * one()["observations"]}, "malformed"),
    "an unknown field of an observation": (one(patient="Ada"), "malformed"),
    "value and absent": (one(state="absent"), "malformed"),
    "value and samples": (one(samples=waveform()["observations"][0]["samples"]), "malformed"),
    "a waveform of nothing": (waveform(data=[]), "malformed"),
    "a waveform without time": (waveform(period_ms=[0, 0]), "malformed"),
    "a value for a waveform": (one(code="11524-6", unit="mV", value=[1, 0]), "malformed"),
    "an unknown code": (one(code="0-0"), "unknown-code"),
    "a code of Ada's": (one(code="Ada"), "unknown-code"),
    "a unit of nobody": (one(unit="K"), "wrong-unit"),
    "a year that nobody writes": ({"wall": 9 * 10**15}, "implausible"),
}
# Readings whose form is right and that are refused all the same.
WRONG_SENSE = {
    "a unit of something else": (one(unit="kg"), "wrong-unit"),
    "too hot": (one(value=[3660, 1]), "implausible"),
    "too cold": (one(value=[-1, 0]), "implausible"),
    "a number that nobody counted up to": ({"seq": 1 << 62}, "implausible"),
}
# CDDL cannot say that a number is above zero when it is a pair.
NOT_IN_CDDL = {"a waveform without time"}


def changed(reading, fields):
    """With these fields; without those that are None."""
    return {k: v for k, v in (reading | fields).items() if v is not None}


class Publisher:
    """A foreign MQTT 5 client that waits for each answer, and hears the error topics."""

    def __init__(self):
        import paho.mqtt.client as mqtt

        gateway = REPORT["gateway"]
        broker = urllib.parse.urlsplit(gateway["mqtt"])
        self.errors, self.answer, self.answered, self.ready = [], None, threading.Event(), threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"maker-{secrets.token_hex(4)}", protocol=mqtt.MQTTv5)
        self.client.username_pw_set(gateway["mqtt_user"], pathlib.Path(gateway["mqtt_password_file"]).read_text())
        self.client.tls_set(ca_certs=gateway["ca_file"], cert_reqs=ssl.CERT_REQUIRED)
        self.client.on_connect = lambda client, *_: client.subscribe(f"vitalfog/v1/{gateway_name()}/+/error", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _client, _data, message: self.errors.append(json.loads(message.payload))
        self.client.on_publish = self.on_publish
        self.client.connect(broker.hostname, broker.port)
        self.client.loop_start()
        assert self.ready.wait(20), "the broker lets us listen"

    def on_publish(self, _client, _data, _mid, reason, about):
        self.answer = reason.value, getattr(about, "ReasonString", "")
        self.answered.set()

    def publish(self, topic, payload):
        """Reason code, and the reason's word: empty if it was taken."""
        self.answered.clear()
        self.client.publish(topic, payload, qos=1)
        assert self.answered.wait(20), "the message is answered"
        code, sentence = self.answer
        return code, sentence.split(":")[0] if code >= 0x80 else ""

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


class Schemas(unittest.TestCase):
    """The files beside the document accept what is right and refuse what is wrong."""

    @classmethod
    def setUpClass(cls):
        if not (importable("jsonschema") and importable("cddl_verifier")):
            return
        import cddl_verifier
        import jsonschema

        # As a path: a text could be one.
        cls.cddl = cddl_verifier.Validator(DOCS / "devices" / "reading.cddl")
        cls.sealed_cddl = cddl_verifier.Validator(DOCS / "devices" / "sealed.cddl")
        schema = json.loads((DOCS / "devices" / "reading.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        cls.schema = jsonschema.Draft202012Validator(schema)
        cls.maker = Maker(device("thermometer"))

    def cbor_holds(self, message):
        return self.cddl.validate(message, root_type="message").valid

    @needs("jsonschema", "cddl_verifier")
    def test_what_is_right_is_accepted(self):
        for what, fields in GOOD.items():
            reading = changed(self.maker.reading(), fields)
            self.assertTrue(self.cbor_holds(self.maker.cbor(reading)), what)
            errors = [e.message for e in self.schema.iter_errors(json.loads(self.maker.json(reading)))]
            self.assertEqual(errors, [], what)

    @needs("jsonschema", "cddl_verifier")
    def test_what_is_wrong_is_refused(self):
        for what, (fields, _) in WRONG_FORM.items():
            reading = changed(self.maker.reading(), fields)
            if what not in NOT_IN_CDDL:
                self.assertFalse(self.cbor_holds(self.maker.cbor(reading)), what)
            self.assertFalse(self.schema.is_valid(json.loads(self.maker.json(reading))), what)

    @needs("jsonschema", "cddl_verifier", "cryptography")
    def test_a_sealed_message_has_its_form_and_no_other(self):
        holds = lambda message: self.sealed_cddl.validate(message, root_type="sealed").valid
        topic = self.maker.of["topic"]
        for length in (0, 300, 508, 509, 1_020, 4_092, 16_380, 65_404):
            message = sealed(b"x" * length, topic)
            self.assertTrue(holds(message), length)
            self.assertLessEqual(len(message), 65_536)
        good = sealed(self.maker.cbor(self.maker.reading()), topic)
        at = good.index(b"ciphertext") + 11
        another_size = good[:at] + (527).to_bytes(2, "big") + good[at + 2:-1]
        for bad in (good[:-1], good + b"\0", b"\xa3" + good[1:], good.replace(b"\x61v\x01", b"\x61v\x02"), another_size):
            self.assertFalse(holds(bad), bad[:4])
        self.assertFalse(holds(self.maker.cbor(self.maker.reading())))
        self.assertFalse(self.cbor_holds(good))

    @needs("jsonschema", "cddl_verifier", "mosquitto_sub")
    def test_what_the_fleet_publishes_is_right(self):
        import jsonschema

        answers = json.loads((DOCS / "devices" / "answers.schema.json").read_text())
        messages = captured()
        self.assertGreater(len(messages), 10)
        for message in messages:
            payload = bytes.fromhex(message["hex"])
            if message["topic"].endswith("/state"):
                jsonschema.validate(json.loads(payload), answers | {"$ref": "#/$defs/state"})
            elif message["topic"].endswith("/cmd"):
                # On a slow machine the gateway asks for what is still on its way.
                jsonschema.validate(json.loads(payload), answers | {"$ref": "#/$defs/cmd"})
            else:
                self.assertTrue(self.cbor_holds(payload), payload.hex())

    @needs("jsonschema")
    def test_what_is_asked_and_answered_has_its_form(self):
        import jsonschema

        answers = json.loads((DOCS / "devices" / "answers.schema.json").read_text())

        def is_valid(kind, text):
            return jsonschema.Draft202012Validator(answers | {"$ref": f"#/$defs/{kind}"}).is_valid(json.loads(text))

        examples = re.findall(r"```\n(\{[^`]*\})\n```", (DOCS / "DEVICES.md").read_text())
        asked, lost = [text.replace('"8-.."', '"8-00c0ffee00c0ffee"') for text in examples if '"ranges"' in text]
        self.assertTrue(is_valid("cmd", asked) and is_valid("state", lost))
        self.assertTrue(is_valid("cmd", '{"a command of a later version": 1}'))
        for kind, wrong in (("cmd", asked.replace("[42, 43]", "[0, 43]")), ("cmd", asked.replace("[[42, 43], [50, 50]]", "[]")),
                            ("state", '{"online": true, "up_ms": 5}'), ("state", lost.replace("[43, 43]", "[43]"))):
            self.assertFalse(is_valid(kind, wrong), wrong)

    @needs("jsonschema")
    def test_what_the_kit_signs_by_hand_is_right(self):
        key = device("scale")["key_file"]
        ended = firmware_sim("sign", "--key", key, "--device", "scale-1", "--code", "29463-7", "--value", "71.40", "--unit", "kg")
        self.assertEqual(ended.returncode, 0, ended.stderr.decode())
        self.assertEqual([e.message for e in self.schema.iter_errors(json.loads(ended.stdout))], [])


@functools.cache
def captured(seconds=6):
    """What devices of each kind publish, as their own user hears it."""
    gateway = REPORT["gateway"]
    broker = urllib.parse.urlsplit(gateway["mqtt"])
    listeners = []
    for of in REPORT["devices"][:7]:
        command = ["mosquitto_sub", "-V", "5", "-q", "1", "-h", broker.hostname, "-p", str(broker.port), "--cafile", gateway["ca_file"]]
        command += ["-u", of["user"], "-P", pathlib.Path(of["password_file"]).read_text(), "-t", of["topic"].rsplit("/", 1)[0] + "/#"]
        command += ["-W", str(seconds), "-F", '{"topic":"%t","hex":"%x","qos":%q,"retain":%r}']
        listeners.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
    lines = [line for listener in listeners for line in listener.communicate(timeout=seconds + 30)[0].splitlines()]
    return [json.loads(line) for line in lines]


class Conformance(unittest.TestCase):
    """`firmware-sim check` says of a message what the gateway says."""

    def check(self, messages, *flags):
        """Exit code, and the rules that each line breaks."""
        with tempfile.NamedTemporaryFile("w", suffix=".ndjson") as file:
            file.write("".join(json.dumps(message) + "\n" for message in messages))
            file.flush()
            enrolment = pathlib.Path(REPORT["gateway"]["data_dir"]).parent / "enrolment.json"
            ended = firmware_sim("check", file.name, "--gateway", gateway_name(), "--enrolment", enrolment, *flags)
        self.assertIn(ended.returncode, (0, 1), ended.stderr.decode())
        rules, at = {}, 0
        for line in ended.stdout.decode().splitlines():
            if found := re.match(r"line (\d+):", line):
                at = int(found[1])
            elif found := re.match(r"  FAULT ([a-z-]+):", line):
                rules.setdefault(at, []).append(found[1])
        return ended.returncode, rules, ended.stdout.decode()

    @needs("paho", "cddl_verifier")
    def test_the_kit_and_the_gateway_agree_on_every_message(self):
        maker, other = Maker(device("thermometer")), Maker(device("oximeter"))
        seq, cases = 0, []
        readings = {what: (fields, "") for what, fields in GOOD.items()} | WRONG_FORM | WRONG_SENSE
        for what, (fields, reason) in readings.items():
            for form in (maker.cbor, maker.json):
                seq += 1
                cases.append((what, reason, form(changed(maker.reading(seq), fields)), maker.of["topic"]))
        seq += 1
        good = maker.reading(seq)
        cases += [
            ("another key", "wrong-signature", other.json(good), maker.of["topic"]),
            ("a changed digit", "wrong-signature", maker.json(good).replace(b'"seq": ', b'"seq":  '), maker.of["topic"]),
            ("another device's topic", "wrong-topic", maker.json(good), other.of["topic"]),
            ("another gateway's topic", "wrong-topic", maker.json(good), f"vitalfog/v1/elsewhere/{maker.of['id']}/reading"),
            ("no channel", "wrong-topic", maker.json(good), maker.of["topic"] + "s"),
            ("nobody's device", "unknown-device", maker.json(good | {"device": "nobody"}), maker.of["topic"]),
            ("noise", "malformed", b"\x00\xffnoise", maker.of["topic"]),
            ("too many bytes", "too-large", b"{" * 70_000, maker.of["topic"]),
            ("a giant state", "too-large", b'{"online": true, "note": "' + b"x" * 5_000 + b'"}', maker.of["topic"].replace("reading", "state")),
            ("the good one", "", maker.json(good), maker.of["topic"]),
            ("the good one again", "", maker.json(good), maker.of["topic"]),
            ("its number for another", "equivocation", maker.json(good | {"up_ms": 1}), maker.of["topic"]),
        ]
        seq += 1
        good, own = maker.reading(seq), maker.of["topic"]
        in_cbor, event = sealed(maker.cbor(good), own), own.replace("reading", "event")
        cases += [
            ("sealed", "", in_cbor, own),
            ("sealed anew", "", sealed(maker.cbor(good), own), own),
            ("not sealed after all", "", maker.cbor(good), own),
            ("sealed in JSON", "", sealed(maker.json(maker.reading(seq + 1)), event), event),
            ("sealed for another channel", "not-opened", sealed(maker.cbor(good), event), own),
            ("sealed for another device", "not-opened", sealed(maker.cbor(good), other.of["topic"]), own),
            ("sealed and changed", "not-opened", in_cbor[:-1] + bytes([in_cbor[-1] ^ 1]), own),
            ("sealed and cut off", "malformed", in_cbor[:-1], own),
            ("sealed twice", "malformed", sealed(in_cbor, own), own),
            ("sealed by a stranger", "wrong-signature", sealed(other.json(good), own), own),
            ("its number for another, sealed", "equivocation", sealed(maker.json(good | {"up_ms": 1}), own), own),
        ]
        publisher = Publisher()
        try:
            told = [publisher.publish(topic, payload) for _, _, payload, topic in cases]
        finally:
            publisher.close()
        lines = [{"topic": topic, "hex": payload.hex(), "qos": 1, "retain": False} for _, _, payload, topic in cases]
        code, rules, said = self.check(lines, *opening())
        self.assertEqual(code, 1)
        self.assertNotIn("Ada", said, "nothing foreign is repeated")
        for at, ((what, reason, _, _), (_, word)) in enumerate(zip(cases, told), start=1):
            self.assertEqual(word, reason, f"the gateway of {what}")
            self.assertEqual(rules.get(at, [""])[0], reason, f"the kit of {what}")
        for answer in publisher.errors:
            self.is_error(answer)
        self.assertGreaterEqual(len(publisher.errors), 20)

    def is_error(self, answer):
        if not importable("jsonschema"):
            return
        import jsonschema

        schema = json.loads((DOCS / "devices" / "answers.schema.json").read_text())
        jsonschema.validate(answer, schema | {"$ref": "#/$defs/error"})

    @needs("mosquitto_sub")
    def test_the_fleet_conforms(self):
        code, rules, said = self.check(captured(), "--from-the-middle")
        self.assertEqual((code, rules), (0, {}), said)

    @needs("cryptography")
    def test_a_running_device_is_judged_as_it_speaks(self):
        maker, key = Maker(device("scale")), signing_key(device("scale")).public_key().public_bytes_raw().hex()
        name = maker.of["id"]
        program = pathlib.Path(REPORT["data_dir"]) / "bin" / "firmware-sim"
        command = [program, "check", "-", "--gateway", gateway_name(), "--device", f"{name}={key}"]
        judge = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for seq, verdict in ((1, b": good"), (3, b"advice order")):
            message = {"topic": maker.of["topic"], "text": maker.json(maker.reading(seq)).decode(), "qos": 1, "retain": 0}
            judge.stdin.write(json.dumps(message).encode() + b"\n")
            judge.stdin.flush()
            # It answers while the device may still speak.
            said = judge.stdout.readline() + (b"" if verdict == b": good" else judge.stdout.readline())
            self.assertIn(verdict, said)
        rest, _ = judge.communicate(timeout=20)
        self.assertIn(b"FAULT gap", rest)
        self.assertEqual(judge.returncode, 1)

    @needs("cddl_verifier")
    def test_the_table_in_the_document_is_the_programs(self):
        document, lines = (DOCS / "DEVICES.md").read_text(), firmware_sim("codes").stdout.decode().splitlines()
        self.assertGreater(len(lines), 20)
        for line in lines:
            self.assertIn(line, document)


class Kit(unittest.TestCase):
    """A fleet with every fault, in the place of the sandbox's own, which stands still meanwhile."""

    FAULTS = {f: 0.05 for f in ("drops", "repeats", "replays", "reorder", "wrong_clock", "wrong_unit", "wrong_key", "giants",
                               "misdirected", "truncated", "flipped")}
    REASONS = ("wrong-unit", "wrong-signature", "too-large", "not-opened", "malformed")

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.pid = REPORT["fleet"]["pid"]
        os.kill(self.pid, signal.SIGSTOP)

    def tearDown(self):
        os.kill(self.pid, signal.SIGCONT)
        self.folder.cleanup()

    def run_fleet(self, name, seconds, settings, sections=""):
        """Runs the devices of the sandbox with other habits; returns exit code, folder of the account, and its status."""
        data = pathlib.Path(self.folder.name) / name
        devices = pathlib.Path(REPORT["fleet"]["data_dir"]).parent / "devices.json"
        broker = urllib.parse.urlsplit(REPORT["gateway"]["mqtt"])
        lines = [f'gateway = "{gateway_name()}"', f'data_dir = "{data}"', f'devices = "{devices}"', "speed = 4.0", *settings]
        lines += ["[mqtt]", f'address = "{broker.hostname}:{broker.port}"', f'ca = "{REPORT["gateway"]["ca_file"]}"', sections]
        config = pathlib.Path(self.folder.name) / f"{name}.toml"
        config.write_text("\n".join(lines))
        ended = firmware_sim("run", "--config", config, "--for", f"{seconds}s", env=os.environ | {"RUST_LOG": "error"})
        self.assertIn(ended.returncode, (0, 1), ended.stderr.decode())
        return ended.returncode, data, json.loads((data / "status.json").read_text())

    def account(self, data, name):
        return [json.loads(line) for line in (data / name).read_text().splitlines()]

    @needs("curl")
    def test_every_fault_has_its_outcome_and_every_gap_is_known(self):
        fault = "\n".join(["[fault]", *(f"{name} = {part}" for name, part in self.FAULTS.items())])
        profiles = '[profile.bedside]\nfraction = 0.3\nclock = "none"\nstored_steps = 50\nevents = 0.2'
        seal = f'[seal]\nnetwork = "{REPORT["network"]}"\nreading_key = "{REPORT["gateway"]["reading_key"]}"'
        before = {reason: clients.quarantined(reason) for reason in self.REASONS}
        code, data, status = self.run_fleet("faulty", 6, ["capture = true"], f"{seal}\n{fault}\n{profiles}")
        self.assertEqual((code, status["unexpected"]), (0, 0), status)
        self.assertEqual(status["published"], status["acknowledged"] + status["refused"])
        self.assertGreater(min(status["refused"], status["unkept"], status["replayed"]), 5, status)
        refused = self.account(data, "refused.ndjson")
        self.assertTrue(all(line["expected"] for line in refused))
        counted = sum(clients.quarantined(reason) - of for reason, of in before.items())
        self.assertEqual(counted, len(refused), "each refusal is in quarantine, under its reason")
        self.are_the_gaps(self.account(data, "missing.ndjson"), self.account(data, "acknowledged.ndjson"))
        self.judged(data / "capture.ndjson", refused)
        self.replayed(data / "capture.ndjson", status)

    @needs("curl")
    def test_what_a_fleet_forgets_comes_when_the_gateway_asks(self):
        code, data, status = self.run_fleet("forgetful", 40, ["keep_acknowledged_s = 60"], "[fault]\nforgets = 0.1")
        self.assertEqual((code, status["unexpected"]), (0, 0), status)
        high, late = {}, 0
        for line in self.account(data, "acknowledged.ndjson"):
            which = line["device"], line["boot"]
            late += line["seq"] + 1 < high.get(which, 0)
            high[which] = max(high.get(which, 0), line["seq"])
        self.assertGreater(late, 10, "forgotten ones came")
        missing = self.account(data, "missing.ndjson")
        self.assertEqual({line["why"] for line in missing} - {"not-asked"}, set())
        # Only what was forgotten in the end, too late to be asked for, is still missing.
        self.are_the_gaps(missing, self.account(data, "acknowledged.ndjson"), 0)

    def are_the_gaps(self, missing, acknowledged, at_least=10):
        """The gateway misses the numbers that the account says, and no others."""
        boots = {line["boot"] for line in acknowledged}
        known = {(g["device"], g["boot"]): g["missing"] for g in clients.gateway_status()["gaps"] if g["boot"] in boots}
        told = {(*which, n) for which, ranges in known.items() for a, b in ranges for n in range(a, b + 1)}
        high = {}
        for line in acknowledged:
            which = line["device"], line["boot"]
            high[which] = max(high.get(which, 0), line["seq"])
        lost = {(m["device"], m["boot"], n) for m in missing for n in range(m["from"], m["to"] + 1)}
        # After the last number that came nobody can know of a gap; a refused one with a number may be the last.
        within = lambda numbers: {(d, b, n) for d, b, n in numbers if n < high.get((d, b), 0)}
        self.assertEqual(within(told), within(lost))
        self.assertGreaterEqual(len(told), at_least)

    def judged(self, capture, refused):
        """`check` finds in the capture what the gateway refused, and the gaps."""
        enrolment = pathlib.Path(REPORT["gateway"]["data_dir"]).parent / "enrolment.json"
        ended = firmware_sim("check", capture, "--gateway", gateway_name(), "--enrolment", enrolment, "--quiet", *opening())
        self.assertEqual(ended.returncode, 1)
        rules = re.findall(r"  FAULT ([a-z-]+):", ended.stdout.decode())
        self.assertEqual(set(rules), {*self.REASONS, "gap"})
        self.assertEqual(len([rule for rule in rules if rule != "gap"]), len(refused))

    def replayed(self, capture, first):
        """The whole capture once more: what was taken is known, what was refused is refused, and nothing is new."""
        before = clients.gateway_status()
        # Those with a waveform measure on; that is what the account has besides.
        settings = [f'replay = "{capture}"', "cadence_ms = 3600000"]
        _, _, status = self.run_fleet("replay", 8, settings)
        after = clients.gateway_status()
        self.assertGreaterEqual(status["replayed"], first["published"])
        self.assertGreaterEqual(after["duplicates"] - before["duplicates"], first["acknowledged"])
        new = after["acknowledged"] - before["acknowledged"] - status["acknowledged"]
        self.assertEqual(new, 0, "a replay adds nothing")


class Examples(unittest.TestCase):
    """The devices in 80 lines: a reading is taken, and an absurd one refused with its sentence."""

    def run_example(self, command, env=None, seal_to=()):
        of, gateway = device("thermometer"), REPORT["gateway"]
        broker = urllib.parse.urlsplit(gateway["mqtt"])
        arguments = [broker.hostname, str(broker.port), gateway["ca_file"], gateway["mqtt_user"], gateway["mqtt_password_file"]]
        arguments += [gateway_name(), of["id"], of["key_file"]]
        boot, value = f"7-{secrets.token_hex(8)}", f"{random.randint(350, 399) / 10}{random.randint(1, 9)}"
        # The same number twice is a repetition only if nothing is changed; here it is another reading.
        attempts = [("1", value, "0x00"), ("2", "366", "0x99 implausible: Body temperature"), ("1", "36.6", "0x99 equivocation")]
        for seq, celsius, answer in attempts:
            ended = subprocess.run([*command, *arguments, boot, seq, celsius, *seal_to], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, env=env)
            self.assertTrue(ended.stdout.decode().startswith(answer), ended.stdout.decode())
            self.assertEqual(ended.returncode, EXAMPLES[answer[:4]])
        self.served(of, boot, value)

    def served(self, of, boot, value):
        query = urllib.parse.urlencode({"patient": of["patient"], "code": "8310-5", "_count": 50})

        def look():
            _, bundle = clients.hospital(f"Observation?{query}")
            found = clients.matches(bundle)
            return [o for o in found if o["identifier"][0]["value"] == f"{of['id']}/{boot}/1"]

        found = clients.eventually(look, f"{boot}/1 is served")
        self.assertEqual([o["valueQuantity"]["value"] for o in found], [value])

    @needs("paho", "cryptography", "curl")
    def test_python(self):
        command = [sys.executable, "-B", DOCS / "examples" / "publish.py"]
        self.run_example(command)
        self.run_example(command, seal_to=[REPORT["network"], REPORT["gateway"]["reading_key"]])

    @needs("node", "curl")
    def test_javascript(self):
        if not (NODE_PATH / "mqtt").is_dir():
            if os.environ.get("CI") == "true":
                self.fail("in CI the npm package mqtt must be there")
            self.skipTest("not run: the npm package mqtt is not installed")
        command, env = ["node", DOCS / "examples" / "publish.js"], os.environ | {"NODE_PATH": str(NODE_PATH)}
        self.run_example(command, env)
        self.run_example(command, env, seal_to=[REPORT["network"], REPORT["gateway"]["reading_key"]])

    @needs("cc", "curl")
    def test_c(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "publish"
            command = ["cc", "-Wall", "-Wextra", "-Werror", "-o", program, DOCS / "examples" / "publish.c", "-lmosquitto", "-lcrypto"]
            built = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if b"mosquitto.h" in built.stdout and os.environ.get("CI") != "true":
                self.skipTest("not run: libmosquitto-dev is not installed")
            self.assertEqual(built.returncode, 0, built.stdout.decode())
            self.run_example([program])

    def test_each_is_short(self):
        for file in filter(pathlib.Path.is_file, (DOCS / "examples").iterdir()):
            self.assertLessEqual(len(file.read_text().splitlines()), 80, file.name)


if __name__ == "__main__":
    sys.exit(clients.main(sys.modules[__name__]))
