"""The core of Kubo over what is ours: core.py LIBRARY FOLDER [ROOT], a block or an archive of a large record on standard input.

Puts the block, and another one with a byte altered, into the files of a new repository, and asks Kubo to pin each under the
identifier that the vault computes. Kubo hashes what it reads. Of an archive it pins the root and reads the file that it is. Prints
a line of JSON. The node has no addresses and no peers.
"""

import ctypes
import hashlib
import json
import os
import pathlib
import sys

os.environ["LIBP2P_FORCE_PNET"] = "1"
from daemon import cid_of, file_of  # noqa: E402

KEY = "/key/swarm/psk/1.0.0/\n/base16/\n" + "5a" * 32 + "\n"


def main():
    library, folder = ctypes.CDLL(sys.argv[1]), pathlib.Path(sys.argv[2]) / "repository"
    library.ListPins.restype = ctypes.c_char_p
    path = str(folder).encode()
    folder.mkdir()
    assert library.CreateRepo(path) == 1, "no repository"
    settings = json.loads((folder / "config").read_text())
    settings["Bootstrap"], settings["Addresses"]["Swarm"] = [], []
    settings["Routing"] = {"Type": "none"}
    settings["Discovery"]["MDNS"]["Enabled"] = False
    settings["Datastore"]["HashOnRead"] = True
    (folder / "config").write_text(json.dumps(settings))
    (folder / "swarm.key").write_text(KEY)

    assert library.RunNode(path) == 1, "the node does not run"

    if len(sys.argv) > 3:
        print(json.dumps(file_of_archive(library, folder, sys.argv[3])), flush=True)
        os._exit(0)
    block = sys.stdin.buffer.read()
    another = block[:-1] + bytes([block[-1] ^ 1])
    for named, stored in ((block, block), (another, another[:-2] + bytes([another[-2] ^ 1]) + another[-1:])):
        file = file_of(folder / "blocks", named)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(stored)

    def pins():
        # It has some of its own from the start.
        return [pin for pin in json.loads(library.ListPins(path) or b"[]") if pin.startswith("bafyrei")]

    pinned = library.PinCID(path, cid_of(block).encode())
    refused = library.PinCID(path, cid_of(another).encode())
    held = pins()
    library.UnpinCID(path, cid_of(block).encode())
    print(json.dumps({"pinned": held, "altered_refused": pinned == 0 and refused != 0, "unpinned": pins() == []}), flush=True)
    # Its threads need no farewell.
    os._exit(0)


def file_of_archive(library, folder, root):
    """What Kubo makes of the blocks of an archive: whether it pins their root, and the file that it reads from them."""
    for block in blocks_of(sys.stdin.buffer.read()):
        file = file_of(folder / "blocks", block)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(block)
    path, to = str(folder).encode(), folder.parent / "file"
    pinned = library.PinCID(path, root.encode()) == 0
    library.Download(path, root.encode(), str(to).encode())
    data = to.read_bytes()
    return {"pinned": pinned, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def blocks_of(archive):
    """The blocks of a CAR stream: after its head, each after its length and 36 bytes of identifier."""
    def length(at):
        number, shift = 0, 0
        while True:
            byte = archive[at]
            number |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return number, at

    head, at = length(0)
    at += head
    while at < len(archive):
        frame, at = length(at)
        yield archive[at + 36:at + frame]
        at += frame


main()
