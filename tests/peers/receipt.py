"""Checks a receipt without a line of the product's code: from the receipt and the validators' public keys alone.

This is what a third party does that trusts neither the gateway nor any fog node: the signed commitment is in the block
(Merkle path), the block is below the header that was voted on, more than two thirds of the validators voted for it.
"""

import hashlib
import json

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Forged(Exception):
    """The receipt proves nothing; the text says which part does not hold."""


def digest(domain, *parts):
    """Algorithm 1: SHA-256 over the length of the domain, the domain, and the parts."""
    name = domain.encode()
    return hashlib.sha256(bytes([len(name)]) + name + b"".join(parts)).digest()


def raw(multihash):
    """The 32 bytes of a SHA-256 multihash in hex."""
    if not multihash.startswith("1220") or len(multihash) != 68:
        raise Forged("a digest is not a SHA-256 multihash")
    return bytes.fromhex(multihash[4:])


def merkle_root(path, leaf):
    """Where the path leads to from a leaf."""
    at, width, node, siblings = path["index"], path["leaves"], leaf, [raw(s) for s in path["siblings"]]
    while width > 1:
        if at % 2 == 1:
            node = digest("vitalfog/merkle-node/v1", b"\x01", siblings.pop(0), node)
        elif at + 1 < width:
            node = digest("vitalfog/merkle-node/v1", b"\x01", node, siblings.pop(0))
        at, width = at // 2, (width + 1) // 2
    if siblings:
        raise Forged("the Merkle path is too long")
    return digest("vitalfog/merkle-node/v1", b"\x02", path["leaves"].to_bytes(8, "big"), node)


def header_digest(header):
    """The digest of a header: its fields in two lists, then the nonce."""
    tagged = lambda name: bytes.fromhex(header[name])
    fields = [
        [header["version"], tagged("network"), header["epoch"], header["view"], tagged("leader"), header["parent_view"]],
        [header["height"], tagged("parent"), header["timestamp_ms"], tagged("transactions_root"), tagged("policy")],
    ]
    return digest("vitalfog/header/v1", cbor2.dumps(fields, canonical=True), header["nonce"].to_bytes(8, "big"))


def varint(number):
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def vote_message(header):
    """The exact bytes of a vote to finalize this header."""
    namespace = f"vitalfog/{header['network']}_FINALIZE".encode()
    rounds = b"".join(varint(header[name]) for name in ("epoch", "view", "parent_view"))
    return varint(len(namespace)) + namespace + rounds + header_digest(header)


def is_signed(key, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), message)
        return True
    except InvalidSignature:
        return False


def check(text, validators):
    """The commitment that is final and how many voted for it; `Forged` if any part does not hold."""
    receipt = json.loads(text)
    transaction = bytes.fromhex(receipt["transaction"])
    body = cbor2.loads(cbor2.loads(transaction)["body"])
    commitment = body["action"]["commit"]
    if commitment["bundle"] != bytes.fromhex(receipt["bundle"]):
        raise Forged("the commitment is about another bundle")
    headers = receipt["headers"]
    if any(header["network"] != validators["network"] for header in headers):
        raise Forged("a header of another network")
    if any(raw(child["parent"]) != header_digest(parent) for parent, child in zip(headers, headers[1:])):
        raise Forged("the headers are not a chain")
    leaf = digest("vitalfog/transaction/v1", transaction)
    if merkle_root(receipt["path"], leaf) != raw(headers[0]["transactions_root"]):
        raise Forged("the commitment is not in the block")
    message = vote_message(headers[-1])
    voters = {vote["validator"] for vote in receipt["finalization"] if is_signed(vote["validator"], vote["signature"], message)}
    voters &= set(validators["validators"])
    if 3 * len(voters) <= 2 * len(validators["validators"]):
        raise Forged(f"{len(voters)} of {len(validators['validators'])} voted for it")
    return commitment, len(voters)
