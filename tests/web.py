"""A web server on this machine that behaves, or misbehaves, as a test asks."""

import contextlib
import http.server
import threading
from urllib.parse import urlsplit


class Web:
    """`files` maps paths to content, or to a function that answers by itself, given the handler.

    `cut` bytes into an answer the connection breaks; `asked` lists the requests, and `headers` what
    came with the last.
    """

    def __init__(self, address):
        self.address, self.files, self.cut, self.asked, self.headers = address, {}, None, [], {}
        self.closing = threading.Event()  # for an answer that takes its time

    def put(self, name, content):
        self.files[f"/{name}"] = content
        return f"{self.address}/{name}"


@contextlib.contextmanager
def serving():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urlsplit(self.path).path
            web.asked.append(path)
            web.headers = dict(self.headers)
            content = web.files.get(path)
            if callable(content):
                self.close_connection = True
                with contextlib.suppress(OSError):  # the other side may give up
                    content(self)
                return
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: web.cut])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web = server.web = Web(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield web
    finally:
        web.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
