"""A device worked by hand: it signs, logs in with its certificate, publishes with paho, and hears what the gateway says."""

import hashlib
import json
import pathlib
import queue
import ssl
import sys
import time
import urllib.parse

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

sys.path[:0] = [str(pathlib.Path(__file__).parents[1] / "peers"), str(pathlib.Path(__file__).parents[2] / "docs/examples")]
import seal  # noqa: E402
from hand import Hand  # noqa: E402

# What is waited for comes within this time on a machine that does something else as well, in seconds.
PATIENCE_S = 60
GATEWAY = "home-1"
CHANNELS = ("reading", "wave", "event")
# More cannot be sealed.
CONTENT_BYTES_MAX = 65_404


def topic_of(device, channel):
    return f"vitalfog/v1/{GATEWAY}/{device['id']}/{channel}"


class Refused(Exception):
    """The broker does not let a client in."""


class Device(Hand):
    """One connection at a time; what is heard is kept, also over reconnections. Behind a broker of somebody else's it seals
    what it signs, each time anew."""

    def __init__(self, report, device):
        super().__init__(report, device)
        self.client = None
        self.heard = []
        self.sent = {}
        self.seals = "broker" in report
        # Digests of what was published for a message.
        self.published = {}

    # --- the connection

    def connect(self, user=None, client_id=None, certificate_of=None, clean=True, expiry_s=0, will=None, receive_max=None):
        """Connects; by default as itself. Returns whether the broker remembers a session."""
        self.close()
        connacks = queue.Queue()
        own = certificate_of or self.device
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id or self.device["id"], protocol=mqtt.MQTTv5)
        self.client.username_pw_set(user or self.device["id"])
        self.client.tls_set(ca_certs=self.report["gateway"]["ca_file"], cert_reqs=ssl.CERT_REQUIRED,
                            certfile=own["certificate_file"], keyfile=own["private_key_file"])
        if will:
            self.client.will_set(*will, qos=1, retain=True)
        self.acks, self.subacks = {}, queue.Queue()
        self.client.on_connect = lambda _c, _u, flags, reason, _p: connacks.put((flags, reason))
        self.client.on_connect_fail = lambda *_: connacks.put((None, None))
        self.client.on_disconnect = lambda _c, _u, _f, reason, _p: connacks.put((None, reason))
        self.client.on_publish = lambda _c, _u, mid, reason, properties: self.acks.update({mid: (reason.value, properties)})
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: self.subacks.put([r.value for r in reasons])
        self.client.on_message = lambda _c, _u, message: self.heard.append((message.topic, message.payload, message.retain))
        about = Properties(PacketTypes.CONNECT)
        about.SessionExpiryInterval = expiry_s
        if receive_max:
            about.ReceiveMaximum = receive_max
        broker = urllib.parse.urlsplit(self.report["gateway"]["mqtt"])
        self.client.connect(broker.hostname, broker.port, clean_start=clean, properties=about)
        self.client.loop_start()
        flags, reason = connacks.get(timeout=PATIENCE_S)
        if flags is None or reason.is_failure:
            self.close()
            raise Refused(str(reason))
        return flags.session_present

    def close(self):
        if self.client:
            self.client.disconnect()
            self.client.loop_stop()
            self.client = None

    def vanish(self):
        """Ends as a power cut would: no goodbye."""
        self.client.loop_stop()
        self.client.socket().close()
        self.client = None

    # --- what it says

    def publish(self, message, channel="reading", of=None, retain=False):
        """Publishes with QoS 1; the reason code of the PUBACK, or None if the connection ended instead."""
        topic = topic_of(of or self.device, channel)
        if channel in CHANNELS and len(message) <= CONTENT_BYTES_MAX and self.seals:
            payload = self.sealed(message, topic)
            self.published.setdefault(message, set()).add(hashlib.sha256(payload).hexdigest())
            message = payload
        return self.publish_on(topic, message, retain)

    def sealed(self, message, topic=None):
        """The message, sealed for a topic of its gateway."""
        return seal.seal(self.report["network"], self.report["gateway"]["reading_key"], topic or self.device["topic"], message)

    def as_it_publishes(self, message):
        """What another client is to publish for it under its topic `reading`."""
        return self.sealed(message) if self.seals else message

    def publish_on(self, topic, payload, retain=False):
        """Publishes just these bytes."""
        sent = self.client.publish(topic, payload, qos=1, retain=retain)
        deadline = time.monotonic() + PATIENCE_S
        while sent.mid not in self.acks and self.client.is_connected() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.acks.get(sent.mid, (None, None))[0]

    def flood(self, messages):
        """Publishes all of these, by their number, as fast as the broker takes them; which of them it has not refused."""
        topic = topic_of(self.device, "reading")
        sent = {seq: self.client.publish(topic, self.as_it_publishes(message), qos=1).mid for seq, message in messages.items()}
        deadline = time.monotonic() + PATIENCE_S
        while not set(sent.values()) <= self.acks.keys() and self.client.is_connected() and time.monotonic() < deadline:
            time.sleep(0.05)
        return {seq for seq, mid in sent.items() if self.acks.get(mid, (None, None))[0] in (0, 0x10)}

    def message(self, value="36.6", seq=None):
        """The next reading, or the one of a number, signed."""
        if seq is not None:
            self.seq = seq - 1
        code, unit = {"thermometer": ("8310-5", "Cel"), "scale": ("29463-7", "kg"), "oximeter": ("59408-5", "%"),
                      "cuff": ("8867-4", "/min")}[self.device["id"].split("-")[0]]
        text = self.reading(code, value, unit)
        message = self.signed(text)
        self.sent[self.seq] = message
        return message

    # --- what it hears

    def subscribe(self, *filters):
        self.client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])
        return self.subacks.get(timeout=PATIENCE_S)

    def listen(self):
        return self.subscribe(topic_of(self.device, "ack"), topic_of(self.device, "error"))

    def told(self, channel):
        """All JSON heard on one of its topics, the latest last."""
        return [json.loads(payload) for topic, payload, _ in list(self.heard) if topic == topic_of(self.device, channel)]

    def notice(self, message):
        """What the error topic says of a message."""
        digests = self.published.get(message, set()) | {hashlib.sha256(message).hexdigest()}
        return next((notice for notice in self.told("error") if notice["message"] in digests), None)

    def progress(self):
        """The last cumulative acknowledgement of this start."""
        return next((said for said in reversed(self.told("ack")) if said["boot"] == self.boot), None)

    def is_acknowledged(self, seq):
        said = self.progress()
        missing = said and any(low <= seq <= high for low, high in said.get("missing", []))
        return bool(said) and (seq <= said["upto_seq"] or (seq <= said["high_seq"] and not missing))
