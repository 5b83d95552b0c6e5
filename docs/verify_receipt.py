#!/usr/bin/env python3
"""Checks a receipt from docs/RECEIPTS.md alone: standard library, and `cryptography` for ed25519.

usage: verify_receipt.py RECEIPT VALIDATORS      exit code 0 if it holds, 1 with the reason if not, 64 for wrong usage
"""

import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

RECEIPT_BYTES_MAX = 1_048_576
DESCENT_MAX = 256
RECEIPT = ["bundle", "transaction", "path", "headers", "finalization"]
PATH = ["index", "leaves", "siblings"]
HEADER = ["version", "network", "epoch", "view", "leader", "parent_view", "height", "parent", "timestamp_ms",
          "transactions_root", "policy", "next_validators", "nonce"]
HANDOVER = ["header", "finalization", "validators"]
VOTE = ["validator", "signature"]
# The points of small order of edwards25519: a signature by or with one of them proves nothing.
SMALL_ORDER = {bytes.fromhex(point) for point in (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)}


class Forged(Exception):
    """The receipt proves nothing; the text says which part does not hold."""


def demand(holds, why):
    if not holds:
        raise Forged(why)


def digest(domain, *parts):
    """Algorithm 1: SHA-256 over the length of the domain, the domain, and the parts."""
    name = domain.encode()
    return hashlib.sha256(bytes([len(name)]) + name + b"".join(parts)).digest()


def unhex(text, length=None):
    demand(isinstance(text, str) and text == text.lower(), "not the exact text of a receipt: hex is lower-case")
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise Forged("not the exact text of a receipt: not hex") from None
    demand(value.hex() == text and length in (None, len(value)), "not the exact text of a receipt: a length is wrong")
    return value


def multihash(text):
    """A digest's 34 bytes: the prefix of SHA-256 and the digest."""
    value = unhex(text, 34)
    demand(value[:2] == b"\x12\x20", "not the exact text of a receipt: a digest is not SHA-256")
    return value


def raw(text):
    return multihash(text)[2:]


def whole(value, bits):
    demand(type(value) is int and 0 <= value < 1 << bits, "not the exact text of a receipt: a number is not whole")
    return value


def fields(value, names):
    demand(isinstance(value, dict) and list(value) == names, "not the exact text of a receipt: other fields")
    return value


def head(major, number):
    """The first bytes of a CBOR item, as short as possible."""
    if number < 24:
        return bytes([major << 5 | number])
    size = next(size for size in (1, 2, 4, 8) if number < 1 << 8 * size)
    return bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[size]]) + number.to_bytes(size, "big")


def cbor(value):
    """Whole numbers, byte strings and lists as DAG-CBOR."""
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    return head(4, len(value)) + b"".join(map(cbor, value))


def read(data, at=0, depth=0):
    """The DAG-CBOR item at a position, and the position after it."""
    demand(at < len(data) and depth < 16, "the transaction is not DAG-CBOR")
    major, small = data[at] >> 5, data[at] & 31
    size = {24: 1, 25: 2, 26: 4, 27: 8}.get(small, 0)
    demand(small < 28 and at + size < len(data) + (small < 24), "the transaction is not DAG-CBOR")
    number, at = (small if small < 24 else int.from_bytes(data[at + 1:at + 1 + size], "big")), at + 1 + size
    if major in (0, 1):
        return (number if major == 0 else -1 - number), at
    if major in (2, 3):
        demand(at + number <= len(data), "the transaction is not DAG-CBOR")
        text = data[at:at + number]
        return (text if major == 2 else text.decode("utf-8", "strict")), at + number
    if major == 6:
        return read(data, at, depth + 1)
    demand(major in (4, 5) and number <= len(data), "the transaction is not DAG-CBOR")
    items = []
    for _ in range(number * (2 if major == 5 else 1)):
        item, at = read(data, at, depth + 1)
        items.append(item)
    return (items if major == 4 else dict(zip(items[::2], items[1::2]))), at


def committed(transaction):
    """The identifier of the bundle or document that a signed transaction commits to: a multihash."""
    try:
        signed, end = read(transaction)
        body, _ = read(signed["body"])
        demand(end == len(transaction), "the transaction is not DAG-CBOR")
        action = body["action"]
        if "commit-document" not in action:
            return action["commit"]["bundle"]
        link = action["commit-document"]["cid"]
        demand(len(action) == 1 and isinstance(link, bytes) and link[:1] == b"\0", "the transaction is no commitment")
        return b"\x12\x20" + digest("vitalfog/document/v1", link[1:])
    except (KeyError, TypeError, ValueError, UnicodeDecodeError):
        raise Forged("the transaction is no commitment") from None


def root(path, leaf):
    """Where the path leads to from a leaf."""
    at, width, node, siblings = path["index"], path["leaves"], leaf, [raw(sibling) for sibling in path["siblings"]]
    demand(at < width, "the Merkle path is not of the one possible shape")
    while width > 1:
        if at % 2 == 1 or at + 1 < width:
            demand(siblings, "the Merkle path is too short")
            pair = (siblings.pop(0), node) if at % 2 else (node, siblings.pop(0))
            node = digest("vitalfog/merkle-node/v1", b"\x01", *pair)
        at, width = at // 2, (width + 1) // 2
    demand(not siblings, "the Merkle path is too long")
    return digest("vitalfog/merkle-node/v1", b"\x02", path["leaves"].to_bytes(8, "big"), node)


def header_digest(header):
    h = header
    number = lambda name: whole(h[name], 8 if name == "version" else 64)
    first = [number("version"), multihash(h["network"]), number("epoch"), number("view"), unhex(h["leader"], 32), number("parent_view")]
    second = [number("height"), multihash(h["parent"]), number("timestamp_ms"), multihash(h["transactions_root"]), multihash(h["policy"]),
              multihash(h["next_validators"])]
    return digest("vitalfog/header/v1", cbor([first, second]), number("nonce").to_bytes(8, "big"))


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
    if key in SMALL_ORDER or signature[:32] in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        return True
    except (InvalidSignature, ValueError):
        return False


def counted(votes, header, members):
    """How many of a committee voted for a header; `Forged` if a vote is wrong or there are too few."""
    demand(isinstance(votes, list), "votes: not a list")
    keys = [unhex(fields(vote, VOTE)["validator"], 32) for vote in votes]
    demand(all(a < b for a, b in zip(keys, keys[1:])), "votes: not ordered by validator, or one validator twice")
    message = vote_message(header)
    for key, vote in zip(keys, votes):
        demand(key in members, "votes: one is by a key that is no validator of this network")
        demand(is_signed(key, unhex(vote["signature"], 64), message), "votes: a signature is wrong")
    needed = len(members) - (len(members) - 1) // 3
    demand(members and len(votes) >= needed, f"votes: {len(votes)} of {len(members)}, {needed} are needed")
    return len(votes)


def committees(validators):
    """The first epoch and the keys of each committee, the newest first; `Forged` if one was not handed over to."""
    known = [(0, [unhex(key, 32) for key in validators["validators"]])]
    demand(0 < len(known[0][1]) <= 64 and known[0][1] == sorted(set(known[0][1])), "the founders are not in order")
    for handover in validators.get("handovers", []):
        header, keys = fields(fields(handover, HANDOVER)["header"], HEADER), [unhex(key, 32) for key in handover["validators"]]
        demand(header["network"] == validators["network"] and header["epoch"] + 1 > known[0][0], "the handovers are not in order")
        named = digest("vitalfog/committee/v1", cbor(keys)) == raw(header["next_validators"])
        demand(named and 0 < len(keys) <= 64 and keys == sorted(set(keys)), "a handover names another committee")
        demand(keys != known[0][1], "the handovers are not in order")
        counted(handover["finalization"], header, sitting(known, header["epoch"]))
        known.insert(0, (header["epoch"] + 1, keys))
    return known


def sitting(known, epoch):
    return next(keys for since, keys in known if since <= epoch)


def check(text, validators):
    """How many validators voted for the block that holds the bundle's commitment, and of how many; `Forged` if any part does not hold."""
    demand(len(text.encode()) <= RECEIPT_BYTES_MAX, "not a receipt: too long")
    try:
        receipt = json.loads(text)
    except (ValueError, RecursionError):
        raise Forged("not a receipt: not JSON") from None
    demand(json.dumps(receipt, separators=(",", ":"), ensure_ascii=False) == text, "not the exact text of a receipt")
    fields(receipt, RECEIPT)
    path, headers, votes = fields(receipt["path"], PATH), receipt["headers"], receipt["finalization"]
    demand(all(isinstance(each, list) for each in (path["siblings"], headers, votes)), "not the exact text of a receipt: other fields")
    whole(path["index"], 32), whole(path["leaves"], 32)
    transaction = unhex(receipt["transaction"])
    demand(committed(transaction) == multihash(receipt["bundle"]), "the commitment is about another bundle")
    demand(0 < len(headers) <= DESCENT_MAX, "the headers are not one chain of this network")
    digests = [header_digest(fields(header, HEADER)) for header in headers]
    same = all(header["network"] == validators["network"] for header in headers)
    linked = all(raw(child["parent"]) == parent for parent, child in zip(digests, headers[1:]))
    demand(same and linked, "the headers are not one chain of this network")
    leaf = digest("vitalfog/transaction/v1", transaction)
    demand(root(path, leaf) == raw(headers[0]["transactions_root"]), "the Merkle path does not lead to the block's root")
    members = sitting(committees(validators), headers[-1]["epoch"])
    return counted(votes, headers[-1], members), len(members)


def main(arguments):
    if len(arguments) != 2:
        print(__doc__.strip(), file=sys.stderr)
        return 64
    try:
        with open(arguments[0], encoding="utf-8", newline="") as file:
            text = file.read(RECEIPT_BYTES_MAX + 1)
        with open(arguments[1], encoding="utf-8") as file:
            validators = json.load(file)
        votes, of = check(text, validators)
    except (Forged, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    print(f"the receipt holds: {votes} of {of} validators voted for it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
