"""A hand-made device: signs readings with openssl and publishes them with somebody else's MQTT client."""

import base64
import json
import pathlib
import secrets
import subprocess
import tempfile
import time
import urllib.parse


class Hand:
    """A device of the sandbox, worked by hand beside the fleet: its own boot id, sequence numbers from 1."""

    def __init__(self, report, device):
        self.report, self.device = report, device
        self.boot = f"9-{secrets.token_hex(8)}"
        self.seq = 0

    def reading(self, code, value, unit, **fields):
        """The text of the next reading; `value` is text, so that its digits stay as they are."""
        self.seq += 1
        head = {"v": 1, "device": self.device["id"], "boot": self.boot, "seq": self.seq, "up_ms": 1000 * self.seq}
        head |= {"wall": int(time.time() * 1000), "time_quality": "synced"} | fields
        text = json.dumps(head)[:-1]
        return f'{text}, "observations": [{{"code": "{code}", "value": {value}, "unit": "{unit}", "state": "valid"}}]}}'

    def signed(self, reading, key_file=None):
        """The message: the signature is over the domain, a line feed and exactly the bytes of the reading."""
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "to-sign"
            file.write_text(f"vitalfog/reading/v1\n{reading}")
            command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key_file or self.device["key_file"], "-in", file]
            signature = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        return f'{{"reading":{reading},"signature":"{base64.b64encode(signature).decode()}"}}'.encode()

    def mosquitto(self, message, version, topic=None, user=None, password=None):
        """Publishes with mosquitto_pub at QoS 1; returns how it ended."""
        gateway = self.report["gateway"]
        broker = urllib.parse.urlsplit(gateway["mqtt"])
        command = ["mosquitto_pub", "-h", broker.hostname, "-p", str(broker.port), "-V", version, "-q", "1", "-d", "-s"]
        command += ["--cafile", gateway["ca_file"], "-u", user or gateway["mqtt_user"]]
        command += ["-P", pathlib.Path(gateway["mqtt_password_file"]).read_text() if password is None else password]
        command += ["-t", topic or self.device["topic"]]
        return subprocess.run(command, input=message, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
