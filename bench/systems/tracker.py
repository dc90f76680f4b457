"""A tracker that knows all clients beforehand: whoever asks is told every address but its own.

Usage: tracker.py ADDRESS PORT CLIENT_PORT CLIENT…
"""

import http.server
import socket
import sys

sys.dont_write_bytecode = True

import torrent


class Tracker(http.server.BaseHTTPRequestHandler):
    """Answers an announce, and everything else alike."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        others = [client for client in CLIENTS if client != self.client_address[0]]
        peers = b"".join(socket.inet_aton(client) + CLIENT_PORT.to_bytes(2, "big") for client in others)
        answer = torrent.encode({"interval": 60, "peers": peers})
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Nobody reads a log."""


class Server(http.server.ThreadingHTTPServer):
    """All clients ask at the same moment."""

    request_queue_size = 256


ADDRESS, PORT, CLIENT_PORT, CLIENTS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
server = Server((ADDRESS, PORT), Tracker)
print("listening", flush=True)
server.serve_forever()
