"""Seals a signed message to its gateway's reading key (docs/DEVICES.md), with hashlib and cryptography.

HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. What is sealed opens at that gateway alone, and
under that topic alone; whoever carries it sees its size class, and for which key it is.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEM = b"KEM" + bytes.fromhex("0020")
SUITE = b"HPKE" + bytes.fromhex("002000010002")
KEY_DOMAIN, DOMAIN = b"vitalfog/reading-key/v1", b"vitalfog/sealed-reading/v1"
# A length of four bytes, the message, and zeros up to one of these sizes.
CLASSES = (512, 1024, 4096, 16384, 65408)


def extract(suite, salt, label, key):
    return hmac.digest(salt, b"HPKE-v1" + suite + label + key, "sha256")


def expand(suite, secret, label, info, length):
    """At most 32 bytes: one block of HKDF-Expand."""
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(secret, labeled + b"\x01", "sha256")[:length]


def hpke(public, info, aad, plaintext):
    """What is encapsulated, and the ciphertext with its tag."""
    ephemeral = X25519PrivateKey.generate()
    enc = ephemeral.public_key().public_bytes_raw()
    common = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    shared = expand(KEM, extract(KEM, b"", b"eae_prk", common), b"shared_secret", enc + public, 32)
    context = b"\x00" + extract(SUITE, b"", b"psk_id_hash", b"") + extract(SUITE, b"", b"info_hash", info)
    secret = extract(SUITE, shared, b"secret", b"")
    key, nonce = expand(SUITE, secret, b"key", context, 32), expand(SUITE, secret, b"base_nonce", context, 12)
    return enc, AESGCM(key).encrypt(nonce, plaintext, aad)


def key_id(network, gateway, public):
    """Of the key, the network and the gateway together."""
    parts = public + bytes.fromhex(network)[2:] + gateway.encode()
    return hashlib.sha256(bytes([len(KEY_DOMAIN)]) + KEY_DOMAIN + parts).digest()


def seal(network, reading_key, topic, message):
    """The bytes to publish under this topic: network and reading key as the gateway's /status or the printed code has them."""
    public, gateway = bytes.fromhex(reading_key), topic.split("/")[2]
    size = next(size for size in CLASSES if len(message) + 4 <= size)
    plaintext = (len(message).to_bytes(4, "big") + message).ljust(size, b"\x00")
    of = key_id(network, gateway, public)
    enc, ciphertext = hpke(public, DOMAIN + of, topic.encode(), plaintext)
    # A CBOR map of four: v, enc, key (a multihash), ciphertext.
    head = b"\xa4\x61v\x01\x63enc\x58\x20" + enc + b"\x63key\x58\x22\x12\x20" + of
    return head + b"\x6aciphertext\x59" + len(ciphertext).to_bytes(2, "big") + ciphertext
