// Seals a signed message to its gateway's reading key (docs/DEVICES.md), with node:crypto alone.
//
// HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. What is sealed opens at that gateway alone,
// and under that topic alone; whoever carries it sees its size class, and for which key it is.
"use strict";

const { createCipheriv, createHash, createHmac, createPublicKey, diffieHellman, generateKeyPairSync } = require("node:crypto");

const KEM = Buffer.concat([Buffer.from("KEM"), Buffer.from("0020", "hex")]);
const SUITE = Buffer.concat([Buffer.from("HPKE"), Buffer.from("002000010002", "hex")]);
const KEY_DOMAIN = "vitalfog/reading-key/v1";
const DOMAIN = "vitalfog/sealed-reading/v1";
// A length of four bytes, the message, and zeros up to one of these sizes.
const CLASSES = [512, 1024, 4096, 16384, 65408];
const NOTHING = Buffer.alloc(0);

const bytes = (...parts) => Buffer.concat(parts.map((part) => Buffer.from(part)));
const hmac = (key, data) => createHmac("sha256", key).update(data).digest();
const extract = (suite, salt, label, key) => hmac(salt, bytes("HPKE-v1", suite, label, key));
// At most 32 bytes: one block of HKDF-Expand.
const expand = (suite, secret, label, info, length) =>
  hmac(secret, bytes([0, length], "HPKE-v1", suite, label, info, [1])).subarray(0, length);
const raw = (key) => Buffer.from(key.export({ format: "jwk" }).x, "base64url");

/** What is encapsulated, and the ciphertext with its tag. */
function hpke(to, info, aad, plaintext) {
  const publicKey = createPublicKey({ format: "jwk", key: { kty: "OKP", crv: "X25519", x: to.toString("base64url") } });
  const ephemeral = generateKeyPairSync("x25519");
  const enc = raw(ephemeral.publicKey);
  const common = diffieHellman({ privateKey: ephemeral.privateKey, publicKey });
  const shared = expand(KEM, extract(KEM, NOTHING, "eae_prk", common), "shared_secret", bytes(enc, to), 32);
  const context = bytes([0], extract(SUITE, NOTHING, "psk_id_hash", NOTHING), extract(SUITE, NOTHING, "info_hash", info));
  const secret = extract(SUITE, shared, "secret", NOTHING);
  const nonce = expand(SUITE, secret, "base_nonce", context, 12);
  const cipher = createCipheriv("aes-256-gcm", expand(SUITE, secret, "key", context, 32), nonce).setAAD(aad);
  return [enc, bytes(cipher.update(plaintext), cipher.final(), cipher.getAuthTag())];
}

/** The bytes to publish under this topic: network and reading key as the gateway's /status or the printed code has them. */
function seal(network, readingKey, topic, message) {
  const [to, signed, gateway] = [Buffer.from(readingKey, "hex"), Buffer.from(message), topic.split("/")[2]];
  const size = CLASSES.find((size) => signed.length + 4 <= size);
  if (size === undefined) throw new RangeError("too many bytes to be sealed");
  const plaintext = Buffer.alloc(size);
  plaintext.writeUInt32BE(signed.length);
  signed.copy(plaintext, 4);
  // Of the key, the network and the gateway together.
  const parts = bytes([KEY_DOMAIN.length], KEY_DOMAIN, to, Buffer.from(network, "hex").subarray(2), gateway);
  const id = createHash("sha256").update(parts).digest();
  const [enc, ciphertext] = hpke(to, bytes(DOMAIN, id), Buffer.from(topic), plaintext);
  // A CBOR map of four: v, enc, key (a multihash), ciphertext.
  const length = [ciphertext.length >> 8, ciphertext.length & 0xff];
  const head = bytes([0xa4, 0x61], "v", [1, 0x63], "enc", [0x58, 0x20], enc, [0x63], "key", [0x58, 0x22, 0x12, 0x20], id);
  return bytes(head, [0x6a], "ciphertext", [0x59], length, ciphertext);
}

module.exports = { seal };
