"""A home's Home Assistant, played: a broker of its own with the least rights, and a client that hears and says what it does.

Home Assistant itself is not run. What it needs of a discovery message is written down here from its documentation of MQTT
discovery, of MQTT sensors, and of the units that a sensor of each device class may have.
"""

import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import tempfile
import time

import paho.mqtt.client as mqtt

from device import GATEWAY, PATIENCE_S

OWN = f"homeassistant/sensor/vitalfog_{GATEWAY}/"
# The rights that docs/OPERATIONS.md asks for, and no others.
ACL = f"""user vitalfog
topic readwrite {OWN}#
topic readwrite homeassistant/vitalfog_{GATEWAY}/echo
topic read homeassistant/status
user bridge
topic read statestream/#
user homeassistant
topic readwrite #
"""
# Units of a sensor of each class (the integration's `DEVICE_CLASS_UNITS`), as far as a body has such a sign.
UNITS_OF_CLASS = {
    "temperature": {"°C", "°F", "K"},
    "weight": {"kg", "g", "mg", "µg", "oz", "lb", "st"},
    "pressure": {"Pa", "hPa", "kPa", "bar", "cbar", "mbar", "mmHg", "inHg", "psi"},
    "blood_glucose_concentration": {"mg/dL", "mmol/L"},
}
# What an MQTT sensor may have in its discovery message; it refuses what it does not know.
KEYS = {
    "name", "unique_id", "state_topic", "value_template", "json_attributes_topic", "state_class", "device_class",
    "unit_of_measurement", "availability", "availability_mode", "qos", "device", "origin",
}
DEVICE_KEYS = {"identifiers", "name", "manufacturer", "model"}
TOPIC = re.compile(r"homeassistant/(?P<component>[a-z_]+)/(?P<node>[a-zA-Z0-9_-]+)/(?P<object>[a-zA-Z0-9_-]+)/config")


def checked(topic, config):
    """Fails for a discovery message that Home Assistant would not take."""
    found = TOPIC.fullmatch(topic)
    assert found and found["component"] == "sensor", topic
    assert set(config) <= KEYS and {"unique_id", "state_topic", "device", "origin"} <= set(config), config
    assert set(config["device"]) <= DEVICE_KEYS and config["device"]["identifiers"], config
    assert config["origin"]["name"], config
    assert config["state_class"] == "measurement"
    if "device_class" in config:
        assert config["unit_of_measurement"] in UNITS_OF_CLASS[config["device_class"]], config
    assert all(set(one) == {"topic"} for one in config["availability"])
    return config


class HomeAssistant:
    """Broker and client; `heard` has every message, `stands` what is retained."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vitalfog-homeassistant-"))
        self.folder.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.passwords = {"vitalfog": "values leave here", "bridge": "values come from here", "homeassistant": "all of it"}
        self.certificates()
        self.process = self.broker()
        self.heard = []
        self.client = self.connected()

    def openssl(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def certificates(self):
        ca, ca_key, leaf, key, request = [self.folder / name for name in ("ca.crt", "ca.key", "broker.crt", "broker.key", "request")]
        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        self.openssl("req", "-x509", *new, "-keyout", ca_key, "-out", ca, "-days", 2, "-subj", "/CN=home")
        self.openssl("req", *new, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
        self.openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", leaf, "-days", 2,
                     "-extfile", self.folder / "names")
        self.ca = ca

    def broker(self):
        (self.folder / "acl").write_text(ACL)
        passwords = self.folder / "passwords"
        passwords.touch()
        for name, password in self.passwords.items():
            subprocess.run(["mosquitto_passwd", "-b", passwords, name, password], check=True, capture_output=True)
            file = self.folder / f"{name}.password"
            file.write_text(password)
            file.chmod(0o600)
        user = "root" if os.geteuid() == 0 else "mosquitto"
        (self.folder / "mosquitto.conf").write_text("\n".join([
            f"user {user}", f"listener {self.port} 127.0.0.1", f"certfile {self.folder}/broker.crt", f"keyfile {self.folder}/broker.key",
            "allow_anonymous false", f"password_file {passwords}", f"acl_file {self.folder}/acl", ""]))
        return subprocess.Popen(["mosquitto", "-c", self.folder / "mosquitto.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def connected(self):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="homeassistant", protocol=mqtt.MQTTv5)
        client.username_pw_set("homeassistant", self.passwords["homeassistant"])
        client.tls_set(ca_certs=str(self.ca), cert_reqs=ssl.CERT_REQUIRED)
        client.on_connect = lambda client, *_: client.subscribe("homeassistant/#", qos=1)
        client.on_message = lambda _c, _d, message: self.heard.append((message.topic, message.payload.decode()))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                client.connect("127.0.0.1", self.port)
                break
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "the home's broker does not start"
                time.sleep(0.1)
        client.loop_start()
        return client

    def say(self, topic, text, retain=False):
        self.client.publish(topic, text, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def last(self, topic):
        """The last word under a topic; none if it was taken away, or there never was one."""
        return next((text for name, text in reversed(list(self.heard)) if name == topic), None) or None

    def sensors(self):
        """The discovery messages that hold now, by the object's name."""
        topics = {topic for topic, _ in list(self.heard) if topic.endswith("/config")}
        return {topic.split("/")[3]: checked(topic, json.loads(self.last(topic))) for topic in topics if self.last(topic)}

    def shown(self, thing):
        text = self.last(f"{OWN}{thing}/state")
        return json.loads(text) if text else {}

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()
        self.process.terminate()
        self.process.wait(10)
        subprocess.run(["rm", "-rf", self.folder], check=True)
