"""A .torrent of a model directory (BitTorrent v1), and the little that both clients need to know of it."""

import hashlib
import os
import sys


def encode(value):
    """The value as BitTorrent writes it."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l%se" % b"".join(map(encode, value))
    return b"d%se" % b"".join(encode(key) + encode(value[key]) for key in sorted(value))


def files(directory):
    """The paths of all files below, relative, in the order in which a torrent has them."""
    found = []
    for folder, folders, names in os.walk(directory):
        folders.sort()
        found += [os.path.relpath(os.path.join(folder, name), directory) for name in names]
    return sorted(found)


def write(directory, out, piece_bytes, tracker=None):
    """Writes the .torrent of that directory."""
    pieces, rest, entries = [], b"", []
    for path in files(directory):
        with open(os.path.join(directory, path), "rb") as file:
            entries.append({"length": os.fstat(file.fileno()).st_size, "path": path.split(os.sep)})
            while part := file.read(piece_bytes - len(rest)):
                rest += part
                if len(rest) == piece_bytes:
                    pieces.append(hashlib.sha1(rest).digest())
                    rest = b""
    if rest:
        pieces.append(hashlib.sha1(rest).digest())
    info = {"name": "model", "piece length": piece_bytes, "files": entries, "pieces": b"".join(pieces)}
    torrent = {"info": info, **({"announce": tracker} if tracker else {})}
    with open(out, "wb") as file:
        file.write(encode(torrent))
    return files(directory)


if __name__ == "__main__":
    # torrent.py DIR OUT PIECE_BYTES TRACKER: writes it and says which files are in it, in its order.
    print("\n".join(write(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
