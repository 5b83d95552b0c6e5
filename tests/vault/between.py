"""What stands between a client and the server it asks: one that remembers the requests, and one that alters what is served."""

import http.client
import http.server
import threading
import urllib.parse

ANSWER_MAX_S = 60


class Between:
    """A server on loopback, as long as the `with` lasts."""

    def __init__(self, handler):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    """Says nothing of what it is asked."""

    def log_message(self, *_):
        pass


class Recorder(Between):
    """Stands between a client and the daemon, and remembers what was asked: for each command a list of arguments."""

    def __init__(self, daemon):
        asked = self.asked = {}

        class Handler(Quiet):
            def do_POST(self):
                url = urllib.parse.urlsplit(self.path)
                command = url.path.removeprefix("/api/v0/")
                asked.setdefault(command, []).append(dict(urllib.parse.parse_qsl(url.query)))
                body = chunks(self.rfile) if self.headers.get("transfer-encoding") == "chunked" else \
                    self.rfile.read(int(self.headers.get("content-length") or 0))
                connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=ANSWER_MAX_S)
                kind = self.headers.get("content-type")
                connection.request("POST", self.path, body, {"content-type": kind} if kind else {})
                answer = connection.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                for name in ("content-type", "trailer", "x-stream-output", "x-chunked-output"):
                    if value := answer.getheader(name):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)


def chunks(file):
    """A body whose length nobody says before."""
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        file.readline()
    return body


class Tampering(Between):
    """A gateway that serves one block with a byte altered."""

    def __init__(self, block):
        altered = bytes([block[0]]) + bytes([block[1] ^ 1]) + block[2:]

        class Handler(Quiet):
            def do_GET(self):
                self.send_response(200)
                self.send_header("content-type", "application/vnd.ipld.raw")
                self.send_header("content-length", str(len(altered)))
                self.end_headers()
                self.wfile.write(altered)

        super().__init__(Handler)
