"""The core of Kubo over a block of ours: core.py LIBRARY FOLDER, the block on standard input.

Puts the block, and another one with a byte altered, into the files of a new repository, and asks Kubo to pin each under the
identifier that the vault computes. Kubo hashes what it reads. Prints a line of JSON. The node has no addresses and no peers.
"""

import ctypes
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
    block = sys.stdin.buffer.read()
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


main()
