#!/usr/bin/env python3
"""Signs one body temperature as JSON and publishes it: Python with paho-mqtt and cryptography.

publish.py HOST PORT CA_FILE USER PASSWORD_FILE GATEWAY DEVICE KEY_FILE BOOT SEQ CELSIUS [NETWORK READING_KEY]
Prints what the gateway answered; exits 0 if it has the reading, 1 if it refused it, 75 if it is to be sent again.
With NETWORK and READING_KEY it is sealed. A real device keeps BOOT, SEQ and what is unanswered, says `up_ms` on `state`, obeys `cmd` (docs/DEVICES.md).
"""

import base64
import json
import pathlib
import ssl
import sys
import threading
import time

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import seal

TAKEN, REFUSED = {0x00, 0x10}, {0x87, 0x90, 0x99}


def signed(key_file, device, boot, seq, celsius):
    """The message: what is signed is the domain, a line feed, and exactly the text that is sent."""
    reading = json.dumps({
        "v": 1, "device": device, "boot": boot, "seq": int(seq), "time_quality": "synced",
        "up_ms": time.monotonic_ns() // 1_000_000, "wall": time.time_ns() // 1_000_000,
        "observations": [{"code": "8310-5", "value": float(celsius), "unit": "Cel"}],
    })
    key = load_pem_private_key(pathlib.Path(key_file).read_bytes(), password=None)
    signature = key.sign(b"vitalfog/reading/v1\n" + reading.encode())
    return f'{{"reading":{reading},"signature":"{base64.b64encode(signature).decode()}"}}'


def publish(host, port, ca_file, user, password, topic, message):
    """The reason code of the PUBACK, and the sentence with it."""
    answer, answered = [], threading.Event()

    def on_connect(client, _data, _flags, reason, _properties):
        if reason.is_failure:
            answer.append((reason, ""))
            return answered.set()
        about = Properties(PacketTypes.PUBLISH)
        about.ContentType = "application/json" if message[0] == "{" else "application/cbor"
        client.publish(topic, message, qos=1, properties=about)

    def on_publish(_client, _data, _mid, reason, about):
        answer.append((reason, getattr(about, "ReasonString", "")))
        answered.set()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=user, protocol=mqtt.MQTTv5)
    client.on_connect, client.on_publish = on_connect, on_publish
    client.username_pw_set(user, password)
    client.tls_set(ca_certs=ca_file, cert_reqs=ssl.CERT_REQUIRED)
    client.connect(host, int(port), keepalive=30)
    client.loop_start()
    answered.wait(timeout=15)
    client.disconnect()
    client.loop_stop()
    return answer[0] if answer else (None, "")


def main():
    host, port, ca_file, user, password_file, gateway, device, key_file, boot, seq, celsius, *seal_to = sys.argv[1:]
    topic = f"vitalfog/v1/{gateway}/{device}/reading"
    password = pathlib.Path(password_file).read_text().strip()
    message = signed(key_file, device, boot, seq, celsius)
    message = seal.seal(*seal_to, topic, message.encode()) if seal_to else message
    reason, sentence = publish(host, port, ca_file, user, password, topic, message)
    print(f"{reason.value:#04x} {sentence or reason}" if reason is not None else "no answer")
    code = reason.value if reason is not None else None
    return 0 if code in TAKEN else 1 if code in REFUSED else 75


if __name__ == "__main__":
    sys.exit(main())
