#!/usr/bin/env python3
"""Foreign clients against a running sandbox: curl, openssl, mosquitto_pub, paho-mqtt, fhirclient, fhir.resources.

    clients.py REPORT

REPORT is what the sandbox writes as soon as it is ready. What is sent by hand here is counted by it as `by_hand`.
"""

import json
import os
import pathlib
import random
import shutil
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse

from hand import Hand

REPORT = {}
# How long a reading may take until the hospital sees it, in seconds, on a machine that does something else as well.
VISIBLE_SECONDS_MAX = 90


def needs(*programs):
    """Skips a test where a foreign program is absent; in CI its absence is a failure."""
    missing = [p for p in programs if not (shutil.which(p) or importable(p))]

    def wrap(test):
        if not missing:
            return test
        if os.environ.get("CI") == "true":

            def fails(self):
                self.fail(f"in CI {', '.join(missing)} must be there")

            return fails
        return unittest.skip(f"not run: {', '.join(missing)} is not installed")(test)

    return wrap


def importable(module):
    try:
        __import__(module)
        return True
    except ImportError:
        return False


def curl(url, token=None, headers=(), ca_file=None):
    """Status, headers (lower case) and body of a GET."""
    with tempfile.NamedTemporaryFile("r") as head:
        command = ["curl", "--silent", "--show-error", "--max-time", "20", "--dump-header", head.name, "--cacert", ca_file or REPORT["hospital"]["ca_file"]]
        for header in [f"Authorization: Bearer {token}"] * (token is not None) + list(headers):
            command += ["--header", header]
        body = subprocess.run([*command, url], check=True, stdout=subprocess.PIPE).stdout
        status, *lines = head.read().strip().splitlines()
    fields = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
    return int(status.split()[1]), fields, body


def fhir(path, token=None, **kwargs):
    """Status and decoded JSON of a FHIR request; numbers stay text, so that no digit is lost."""
    status, headers, body = curl(f"{REPORT['hospital']['fhir']}/{path}", token, **kwargs)
    assert headers["content-type"].startswith("application/fhir+json"), headers["content-type"]
    return status, json.loads(body, parse_float=str, parse_int=str)


def hospital(path):
    return fhir(path, REPORT["hospital"]["token"])


def gateway_status():
    _, _, body = curl(f"{REPORT['gateway']['http']}/status")
    return json.loads(body)


def quarantined(reason):
    return gateway_status()["quarantined"]["by_reason"].get(reason, 0)


def device(prefix):
    return next(d for d in REPORT["devices"] if d["id"].startswith(prefix))


def eventually(look, what):
    """The first true answer, within the time a reading may take."""
    deadline = time.monotonic() + VISIBLE_SECONDS_MAX
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"within {VISIBLE_SECONDS_MAX} s: {what}")


def personal(value, mantissa):
    """What no ledger may hold, in the forms that programs write: who is measured, and what was."""
    ids = [patient["id"] for patient in REPORT["patients"]]
    names = [name for patient in REPORT["patients"] for name in (patient["name"], patient["name"].split()[1])]
    numbers = [value.encode(), str(mantissa).encode(), mantissa.to_bytes(8, "big")[2:], mantissa.to_bytes(8, "little")[:6]]
    floats = [struct.pack(order + "d", float(value)) for order in "<>"]
    return [text.encode() for text in ids + names] + [bytes.fromhex(i.replace("-", "")) for i in ids] + numbers + floats


def held(text, secrets):
    """The secrets that stand in these bytes."""
    return [secret for secret in secrets if secret in text]


def ledger():
    """The last blocks and the first ones, and the receipts of what they commit to: what each is, and its bytes."""
    node = REPORT["nodes"][0]["http"]
    height = json.loads(curl(f"{node}/api/v1/chain/head")[2])["height"]
    for at in sorted({*range(max(1, height - 20), height + 1), *range(1, min(height, 20) + 1)}):
        _, _, block = curl(f"{node}/api/v1/chain/blocks/{at}")
        yield f"block {at}", block
        for bundle in [t["bundle"] for t in json.loads(block)["transactions"] if "bundle" in t]:
            status, _, receipt = curl(f"{node}/api/v1/receipts/{bundle}?wait_ms=10000")
            assert status == 200, f"receipt of {bundle}: {status}"
            yield f"receipt of {bundle}", receipt


def identifier(hand):
    return f"{hand.device['id']}/{hand.boot}/{hand.seq}"


def matches(bundle):
    """The observations of an answer, without remarks on the search."""
    return [e["resource"] for e in bundle.get("entry", []) if e["search"]["mode"] == "match"]


class Case(unittest.TestCase):
    def served(self, hand, code):
        """The observation made of the hand's last reading, as the hospital sees it."""
        query = urllib.parse.urlencode({"patient": hand.device["patient"], "code": code, "_count": 50})

        def look():
            status, bundle = hospital(f"Observation?{query}")
            self.assertEqual(status, 200)
            found = matches(bundle)
            return [o for o in found if o["identifier"][0]["value"] == identifier(hand)]

        found = eventually(look, f"{identifier(hand)} is served")
        self.assertEqual(len(found), 1)
        return found[0]

    def is_outcome(self, resource, severity="error"):
        self.assertEqual(resource["resourceType"], "OperationOutcome")
        self.assertEqual(resource["issue"][0]["severity"], severity)
        self.assertTrue(resource["issue"][0]["diagnostics"])


class HandMadeReadings(Case):
    """What a person with openssl and an MQTT client can do."""

    def publish_and_compare(self, version):
        hand, value = Hand(REPORT, device("thermometer")), f"{random.randint(340, 399) / 10:.1f}{random.randint(1, 9)}"
        ended = hand.mosquitto(hand.signed(hand.reading("8310-5", value, "Cel")), version)
        self.assertEqual(ended.returncode, 0, ended.stdout.decode())
        observation = self.served(hand, "8310-5")
        self.assertEqual(observation["valueQuantity"]["value"], value)
        self.assertEqual(observation["valueQuantity"]["code"], "Cel")
        self.assertEqual(observation["subject"]["reference"], f"Patient/{hand.device['patient']}")

    @needs("mosquitto_pub", "openssl", "curl")
    def test_mosquitto_pub_over_mqtt_5(self):
        self.publish_and_compare("5")

    @needs("mosquitto_pub", "openssl", "curl")
    def test_mosquitto_pub_over_mqtt_3_1_1(self):
        self.publish_and_compare("311")

    @needs("mosquitto_pub", "openssl", "curl")
    def test_the_same_message_twice_is_one_observation(self):
        hand = Hand(REPORT, device("scale"))
        message = hand.signed(hand.reading("29463-7", "71.5", "kg"))
        for _ in range(2):
            self.assertEqual(hand.mosquitto(message, "5").returncode, 0)
        self.served(hand, "29463-7")
        time.sleep(2)
        self.served(hand, "29463-7")

    @needs("paho", "openssl", "curl")
    def test_paho_publishes_a_panel(self):
        import paho.mqtt.client as mqtt
        import paho.mqtt.properties as properties

        gateway, hand = REPORT["gateway"], Hand(REPORT, device("cuff"))
        broker = urllib.parse.urlsplit(gateway["mqtt"])
        reading = json.loads(hand.reading("8480-6", "131", "mm[Hg]"))
        reading["observations"].append({"code": "8462-4", "value": 84, "unit": "mm[Hg]", "state": "valid"})
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"paho-{hand.boot}", protocol=mqtt.MQTTv5)
        client.username_pw_set(gateway["mqtt_user"], pathlib.Path(gateway["mqtt_password_file"]).read_text())
        client.tls_set(ca_certs=gateway["ca_file"], cert_reqs=ssl.CERT_REQUIRED)
        client.connect(broker.hostname, broker.port)
        client.loop_start()
        about = properties.Properties(properties.PacketTypes.PUBLISH)
        about.ContentType = "application/json"
        sent = client.publish(hand.device["topic"], hand.signed(json.dumps(reading)), qos=1, properties=about)
        sent.wait_for_publish(timeout=10)
        self.assertTrue(sent.is_published())
        client.disconnect()
        client.loop_stop()
        parts = self.served(hand, "85354-9")["component"]
        self.assertEqual([p["valueQuantity"]["value"] for p in parts], ["131", "84"])


class Refusals(Case):
    """What is not believed is refused or quarantined with its reason, and the gateway lives."""

    def tearDown(self):
        status, _, _ = curl(f"{REPORT['gateway']['http']}/healthz")
        self.assertEqual(status, 200)

    def is_quarantined(self, reason, send):
        before = quarantined(reason)
        ended = send()
        # A 5.0 client is told the reason, a 3.1.1 client may be cut off: either way the status counts it.
        eventually(lambda: quarantined(reason) > before, f"{reason} is counted ({ended.stdout.decode()[-200:]})")

    @needs("mosquitto_pub", "openssl", "curl")
    def test_a_wrong_signature(self):
        hand, other = Hand(REPORT, device("thermometer")), device("oximeter")
        message = hand.signed(hand.reading("8310-5", "36.6", "Cel"), key_file=other["key_file"])
        for version in ("5", "311"):
            self.is_quarantined("wrong-signature", lambda: hand.mosquitto(message, version))

    @needs("mosquitto_pub", "openssl", "curl")
    def test_a_changed_value(self):
        hand = Hand(REPORT, device("thermometer"))
        message = hand.signed(hand.reading("8310-5", "36.6", "Cel")).replace(b"36.6", b"39.6")
        self.is_quarantined("wrong-signature", lambda: hand.mosquitto(message, "5"))

    @needs("mosquitto_pub", "openssl", "curl")
    def test_an_unknown_device(self):
        hand = Hand(REPORT, device("thermometer") | {"id": "thermometer-nobody"})
        topic = hand.device["topic"].replace(device("thermometer")["id"], "thermometer-nobody")
        message = hand.signed(hand.reading("8310-5", "36.6", "Cel"))
        self.is_quarantined("unknown-device", lambda: hand.mosquitto(message, "5", topic=topic))

    @needs("mosquitto_pub", "openssl", "curl")
    def test_an_absurd_value(self):
        hand = Hand(REPORT, device("thermometer"))
        message = hand.signed(hand.reading("8310-5", "366", "Cel"))
        self.is_quarantined("implausible", lambda: hand.mosquitto(message, "5"))

    @needs("mosquitto_pub", "openssl", "curl")
    def test_a_wrong_unit(self):
        hand = Hand(REPORT, device("thermometer"))
        message = hand.signed(hand.reading("8310-5", "309.8", "K"))
        self.is_quarantined("wrong-unit", lambda: hand.mosquitto(message, "5"))

    @needs("mosquitto_pub", "curl")
    def test_noise(self):
        hand = Hand(REPORT, device("thermometer"))
        self.is_quarantined("malformed", lambda: hand.mosquitto(b"\x00\xffnot a reading", "5"))

    @needs("mosquitto_pub", "curl")
    def test_a_megabyte(self):
        hand = Hand(REPORT, device("thermometer"))
        # 3.1.1: a 5.0 client is told the limit on connecting and does not even send.
        self.is_quarantined("too-large", lambda: hand.mosquitto(b"{" * 1_000_000, "311"))

    @needs("mosquitto_pub", "openssl", "curl")
    def test_one_sequence_number_for_two_readings(self):
        hand = Hand(REPORT, device("thermometer"))
        first, second = hand.reading("8310-5", "36.6", "Cel"), hand.reading("8310-5", "36.9", "Cel", seq=1)
        self.assertEqual(hand.mosquitto(hand.signed(first), "5").returncode, 0)
        self.is_quarantined("equivocation", lambda: hand.mosquitto(hand.signed(second), "5"))

    @needs("mosquitto_pub", "openssl", "curl")
    def test_the_broker_lets_no_stranger_in(self):
        hand = Hand(REPORT, device("thermometer"))
        message = hand.signed(hand.reading("8310-5", "36.6", "Cel"))
        self.assertNotEqual(hand.mosquitto(message, "5", password="guessed").returncode, 0)
        self.assertNotEqual(hand.mosquitto(message, "311", user="nobody", password="").returncode, 0)

    @needs("mosquitto_pub", "openssl", "curl")
    def test_a_device_cannot_publish_for_another(self):
        hand, other = Hand(REPORT, device("thermometer")), device("oximeter")
        password = pathlib.Path(other["password_file"]).read_text()
        message = hand.signed(hand.reading("8310-5", "36.6", "Cel"))
        ended = hand.mosquitto(message, "5", user=other["user"], password=password)
        self.assertTrue(ended.returncode != 0 or b"Not authorized" in ended.stdout, ended.stdout.decode())


class Doors(Case):
    """Who may read, and what the others are told."""

    OBSERVATIONS = "Observation?code=8310-5"

    def setUp(self):
        self.patient = REPORT["patients"][0]["id"]

    @needs("curl")
    def test_no_token_is_401(self):
        for path in (self.OBSERVATIONS, f"Patient/{self.patient}", f"Observation?patient={self.patient}"):
            status, outcome = fhir(path)
            self.assertEqual(status, 401)
            self.is_outcome(outcome)

    @needs("curl")
    def test_a_changed_token_is_401(self):
        token = REPORT["hospital"]["token"]
        head, claims, signature = token.split(".")
        for forged in (f"{head}.{claims}.", f"{head}.{claims}.{signature[::-1]}", f"{head}.{REPORT['stranger']['token'].split('.')[1]}.{signature}", "x"):
            status, outcome = fhir(self.OBSERVATIONS, forged)
            self.assertEqual(status, 401)
            self.is_outcome(outcome)

    @needs("curl")
    def test_a_stranger_sees_nothing(self):
        token = REPORT["stranger"]["token"]
        for path in (f"Observation?patient={self.patient}", self.OBSERVATIONS, "Observation", "Patient"):
            status, answer = fhir(path, token)
            self.assertIn(status, (200, 403))
            resources = [e["resource"]["resourceType"] for e in answer.get("entry", [])]
            self.assertEqual(set(resources) - {"OperationOutcome"}, set(), f"{path}: {answer}")
        status, outcome = fhir(f"Patient/{self.patient}", token)
        self.assertIn(status, (403, 404))
        self.is_outcome(outcome)

    @needs("curl")
    def test_nonsense_is_an_outcome(self):
        for path, wanted in (("Observation?date=yesterday", 400), ("Observation/absent", 404), ("Basic/1", 404)):
            status, outcome = hospital(path)
            self.assertEqual(status, wanted, path)
            self.is_outcome(outcome)

    @needs("mosquitto_pub", "openssl", "curl")
    def test_the_ledger_is_open_and_names_nobody(self):
        # A value that nobody else measures, long enough that no form of it is met by chance.
        hand, digits = Hand(REPORT, device("thermometer")), f"36{random.randrange(10**8, 10**9)}"
        value = f"{digits[:2]}.{digits[2:]}"
        self.assertEqual(hand.mosquitto(hand.signed(hand.reading("8310-5", value, "Cel")), "5").returncode, 0)
        # What is served is final.
        self.assertEqual(self.served(hand, "8310-5")["valueQuantity"]["value"], value)
        secrets = personal(value, int(digits))
        kinds, transactions = set(), 0
        for about, text in ledger():
            self.assertEqual(held(text, secrets), [], about)
            for transaction in json.loads(text).get("transactions", []):
                kinds.add(transaction["kind"])
            if about.startswith("receipt"):
                receipt = json.loads(text)
                transaction = bytes.fromhex(receipt["transaction"])
                # The search finds what is there.
                self.assertEqual(held(transaction, [bytes.fromhex(receipt["bundle"])]), [bytes.fromhex(receipt["bundle"])])
                self.assertEqual(held(transaction, secrets), [], about)
                transactions += 1
        self.assertGreater(len(kinds), 1, f"only {kinds} were looked at")
        self.assertGreater(transactions, 2, "several commitments were looked at")
        # What is not served of it is on the disk of every node: keys, enrolments, votes.
        for node in REPORT["nodes"]:
            chain = (pathlib.Path(node["data_dir"]) / "chain.redb").read_bytes()
            self.assertIn(device("thermometer")["id"].encode(), chain, "the devices are on the chain")
            self.assertEqual(held(chain, secrets), [], node["name"])


class Receipts(Case):
    """Finality, checked by somebody who trusts no node."""

    def receipt(self):
        node = REPORT["nodes"][0]["http"]
        height = json.loads(curl(f"{node}/api/v1/chain/head")[2])["height"]
        for at in range(height, 0, -1):
            block = json.loads(curl(f"{node}/api/v1/chain/blocks/{at}")[2])
            bundles = [t["bundle"] for t in block["transactions"] if "bundle" in t]
            if bundles:
                status, _, body = curl(f"{node}/api/v1/receipts/{bundles[0]}?wait_ms=10000")
                self.assertEqual(status, 200)
                return body
        self.fail("no block holds a bundle")

    def verdicts(self, content):
        """What our program and the independent script say of a receipt: exit codes and reasons."""
        ours = pathlib.Path(REPORT["data_dir"]) / "bin" / "fog-node"
        theirs = pathlib.Path(__file__).resolve().parents[2] / "docs" / "verify_receipt.py"
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "receipt.json"
            file.write_bytes(content)
            commands = [[ours, "verify-receipt", file, "--validators", REPORT["validators_file"]],
                        [sys.executable, theirs, file, REPORT["validators_file"]]]
            return [subprocess.run(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for c in commands]

    @needs("curl", "cryptography")
    def test_a_receipt_holds_for_foreign_code(self):
        for ended in self.verdicts(self.receipt()):
            self.assertEqual(ended.returncode, 0, ended.stdout.decode())

    @needs("curl", "cryptography")
    def test_verify_receipt_refuses_any_changed_byte(self):
        body = self.receipt()
        for at in random.sample(range(len(body)), 40):
            forged = bytearray(body)
            forged[at] ^= 1 << random.randrange(7)
            for ended in self.verdicts(bytes(forged)):
                self.assertEqual(ended.returncode, 1, f"byte {at} of {len(body)}: {ended.stdout.decode()}")
                self.assertTrue(ended.stdout.strip(), "the reason is said")

    @needs("curl", "cryptography")
    def test_both_verifiers_refuse_the_same_forgeries(self):
        receipt = json.loads(self.receipt())
        text = lambda document: json.dumps(document, separators=(",", ":")).encode()
        votes = receipt["finalization"]
        forgeries = {
            "too few votes": receipt | {"finalization": votes[:2]},
            "a vote twice": receipt | {"finalization": votes[:2] + [votes[1]]},
            "votes in another order": receipt | {"finalization": votes[::-1]},
            "no header": receipt | {"headers": []},
            "another field": receipt | {"comment": "genuine"},
            "a path that is too long": receipt | {"path": receipt["path"] | {"siblings": receipt["path"]["siblings"] + [receipt["bundle"]]}},
            "another bundle": receipt | {"bundle": receipt["headers"][0]["parent"]},
        }
        for what, forged in forgeries.items():
            self.assertEqual([e.returncode for e in self.verdicts(text(forged))], [1, 1], what)
        for what, content in {"a line feed": text(receipt) + b"\n", "white space": json.dumps(receipt).encode(), "nothing": b""}.items():
            self.assertEqual([e.returncode for e in self.verdicts(content)], [1, 1], what)


class Models(Case):
    """What we answer, read by other people's models of FHIR R4."""

    @classmethod
    def setUpClass(cls):
        if not importable("fhirclient"):
            return
        os.environ["REQUESTS_CA_BUNDLE"] = REPORT["hospital"]["ca_file"]
        from fhirclient import client

        smart = client.FHIRClient(settings={"app_id": "peers", "api_base": REPORT["hospital"]["fhir"]})
        smart.server.session.headers["Authorization"] = f"Bearer {REPORT['hospital']['token']}"
        cls.server = smart.server

    @needs("fhirclient")
    def test_fhirclient_reads_a_patient(self):
        from fhirclient.models.patient import Patient

        known = REPORT["patients"][0]
        patient = Patient.read(known["id"], self.server)
        name = patient.name[0]
        self.assertEqual(f"{name.given[0]} {name.family}", known["name"])

    @needs("fhirclient")
    def test_fhirclient_is_told_404(self):
        from fhirclient.models.patient import Patient
        from fhirclient.server import FHIRNotFoundException

        with self.assertRaises(FHIRNotFoundException):
            Patient.read("00000000-0000-4000-8000-000000000000", self.server)

    @needs("fhirclient")
    def test_fhirclient_pages_through_observations_once_each(self):
        from fhirclient.models.observation import Observation

        oximeter = device("oximeter")
        search = Observation.where({"patient": oximeter["patient"], "_count": "5"})
        found = search.perform_resources_iter(self.server)
        ids = [o.id for o, _ in zip(found, range(40)) if o.resource_type == "Observation"]
        self.assertGreater(len(ids), 5, "more than one page")
        self.assertEqual(len(ids), len(set(ids)), "none twice")

    @needs("fhirclient")
    def test_fhirclient_accepts_the_capabilities(self):
        from fhirclient.models.capabilitystatement import CapabilityStatement

        statement = CapabilityStatement.read_from("metadata", self.server)
        self.assertEqual(statement.fhirVersion, "4.0.1")

    def model(self, name):
        import importlib

        return getattr(importlib.import_module(f"fhir.resources.R4B.{name.lower()}"), name)

    @needs("fhir.resources", "curl")
    def test_every_resource_is_valid(self):
        patient = REPORT["patients"][0]["id"]
        token = REPORT["hospital"]["token"]
        answers = {
            "CapabilityStatement": ("metadata", None),
            "OperationOutcome": ("Patient", None),
            "Patient": (f"Patient/{patient}", token),
            "Bundle": ("Observation?_count=200", token),
        }
        for name, (path, token) in answers.items():
            _, _, body = curl(f"{REPORT['hospital']['fhir']}/{path}", token)
            self.model(name).model_validate_json(body)

    @needs("fhir.resources", "curl")
    def test_every_kind_of_observation_is_valid(self):
        seen = set()
        for code in ("8867-4", "2708-6", "85354-9", "8310-5", "99504-3", "29463-7", "11524-6", "150452"):
            _, _, body = curl(f"{REPORT['hospital']['fhir']}/Observation?code={code}&_count=5", REPORT["hospital"]["token"])
            for observation in matches(json.loads(body)):
                self.model("Observation").model_validate(observation)
                seen.add(code)
        self.assertGreaterEqual(len(seen), 5, f"only {seen} were measured so far")

    @needs("fhir.resources", "mosquitto_pub", "openssl", "curl")
    def test_what_is_missing_is_a_valid_outcome_and_no_match(self):
        hand = Hand(REPORT, device("thermometer"))
        hand.seq = 4
        ended = hand.mosquitto(hand.signed(hand.reading("8310-5", "36.6", "Cel")), "5")
        self.assertEqual(ended.returncode, 0, ended.stdout.decode())
        query = f"Observation?patient={hand.device['patient']}&_count=1"

        def look():
            status, bundle = hospital(query)
            self.assertEqual(status, 200)
            outcomes = [e["resource"] for e in bundle["entry"] if e["search"]["mode"] == "outcome"]
            found = [o for o in outcomes if any(hand.boot in issue["diagnostics"] for issue in o["issue"])]
            return [(bundle, outcome) for outcome in found]

        bundle, outcome = eventually(look, "the gap is named")[0]
        self.is_outcome(outcome, "warning")
        self.model("OperationOutcome").model_validate(outcome)
        told = [issue["diagnostics"] for issue in outcome["issue"] if hand.boot in issue["diagnostics"]]
        self.assertRegex(told[0], r"numbers 1-4 are missing of those up to 5; reported by gateway")
        self.assertEqual(len(matches(bundle)), 1)
        _, counted = hospital(f"{query}&_summary=count")
        self.assertNotIn("entry", counted)


def main(tests):
    REPORT.update(json.loads(pathlib.Path(sys.argv[1]).read_text()))
    if not REPORT["ready"]:
        raise SystemExit("the report does not say that the sandbox is ready")
    suite = unittest.defaultTestLoader.loadTestsFromModule(tests)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    # A test whose tearDown fails as well stands there twice.
    failed = len({test.id() for test, _ in result.failures + result.errors})
    skipped = len(result.skipped)
    print(f"peers: {result.testsRun - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
