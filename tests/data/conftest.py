"""A bucket of Google Cloud Storage, on the loopback network."""

import http.server
import json
import threading
import time
import urllib.parse

import pytest


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of the JSON API of Google Cloud Storage as reading takes."""

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        parts = [urllib.parse.unquote(part) for part in url.path.split("/") if part]
        root = self.server.root
        if self.server.silent:
            time.sleep(20)
        if parts[-1:] == ["o"] and "b" in parts:
            names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
            prefix = query.get("prefix", "")
            below = [name for name in sorted(names) if name.startswith(prefix)]
            items = [self.item(name) for name in below if "/" not in name[len(prefix) :]]
            prefixes = {prefix + name[len(prefix) :].partition("/")[0] + "/" for name in below}
            prefixes -= {f"{item['name']}/" for item in items}
            return self.answer(json.dumps({"items": items, "prefixes": sorted(prefixes)}).encode())
        name = parts[-1]
        if not (root / name).is_file():
            return self.answer(b"{}", 404)
        if query.get("alt") != "media" and "download" not in parts:
            return self.answer(json.dumps(self.item(name)).encode())
        data = (root / name).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return self.answer(data[int(first) : int(last or len(data)) + 1], 206)

    def item(self, name):
        size = (self.server.root / name).stat().st_size
        return {"name": name, "bucket": "pile", "size": str(size), "kind": "storage#object"}

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket on the loopback network, whose root is a directory."""
    gcsfs = pytest.importorskip("gcsfs")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.root, server.silent = tmp_path, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # No metadata server is looked for.
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield server
    server.shutdown()
    gcsfs.GCSFileSystem.clear_instance_cache()
