"""A bucket of Google Cloud Storage on the loopback network, as far as gcsfs and TensorStore ask of one.

`Bucket().environment()` makes both of them use it. `fault` makes it fail: "forbidden", "unavailable" or "silent".
"""

import http.server
import json
import re
import threading
import time
import urllib.parse

NAME = "a-bucket"


class Bucket:
    """The server and what it holds.

    Attributes:
      objects: name to (content, generation).
      fault: how every request fails, None for not at all.
      requests: (method, path) of every request.
    """

    def __init__(self):
        self.objects, self.fault, self.requests = {}, None, []
        self.sessions, self.generation, self.lock = {}, 0, threading.Lock()
        handler = type("Handler", (_Handler,), {"bucket": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self):
        """Return the variables that lead both clients here, and keep them from looking for a machine of Google's."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCE_METADATA_ROOT": self.url.removeprefix("http://"),
            "NO_GCE_CHECK": "true",
        }

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def names(self):
        with self.lock:
            return sorted(self.objects)

    def text(self, name):
        return self.objects[name][0].decode()

    def put(self, name, content, if_generation=None):
        """Store an object and return its metadata, None where it has another generation (0 for none) than said."""
        with self.lock:
            if if_generation is not None and self.objects.get(name, (b"", 0))[1] != int(if_generation):
                return None
            self.generation += 1
            self.objects[name] = (content, self.generation)
            return self.metadata(name)

    def metadata(self, name):
        content, generation = self.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": NAME,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self):
        self.answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def answer(self):
        split = urllib.parse.urlsplit(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(split.query).items()}
        body = self.body()
        self.bucket.requests.append((self.command, self.path))
        if split.path.startswith("/computeMetadata"):
            return self.send(404)
        if self.bucket.fault == "silent":
            time.sleep(60)
            self.close_connection = True
            return None
        if self.bucket.fault:
            code = {"forbidden": 403, "unavailable": 503}[self.bucket.fault]
            return self.send(code, {"error": {"code": code, "message": f"the bucket is {self.bucket.fault}"}})
        path = split.path.removeprefix("/download").removeprefix("/storage/v1")
        if split.path == f"/upload/storage/v1/b/{NAME}/o":
            return self.upload(query, body)
        if path == f"/b/{NAME}":
            return self.send(200, {"kind": "storage#bucket", "name": NAME})
        if path == f"/b/{NAME}/o":
            return self.send(200, self.listing(query))
        if found := re.fullmatch(rf"/b/{NAME}/o/([^/]+)/(?:rewriteTo|copyTo)/b/{NAME}/o/([^/]+)", path):
            source, target = map(urllib.parse.unquote, found.groups())
            if source not in self.bucket.objects:
                return self.send(404)
            copied = self.bucket.put(target, self.bucket.objects[source][0])
            return self.send(200, {"done": True, "resource": copied})
        if found := re.fullmatch(rf"/b/{NAME}/o/([^/]+)", path):
            return self.one(urllib.parse.unquote(found[1]), query)
        return self.send(404)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def one(self, name, query):
        with self.bucket.lock:
            if name not in self.bucket.objects:
                return self.send(404)
            content, generation = self.bucket.objects[name]
            if self.command == "DELETE" and query.get("ifGenerationMatch", str(generation)) != str(generation):
                return self.send(412, {"error": {"code": 412, "message": "generation"}})
            if self.command == "DELETE":
                del self.bucket.objects[name]
                return self.send(204)
            metadata = self.bucket.metadata(name)
        if query.get("alt") != "media":
            return self.send(200, metadata)
        headers = {"x-goog-generation": str(generation), "x-goog-stored-content-length": str(len(content))}
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(wanted[1]) if wanted[1] else max(0, len(content) - int(wanted[2]))
            last = min(int(wanted[2]), len(content) - 1) if wanted[1] and wanted[2] else len(content) - 1
            if first >= len(content):
                return self.send(416)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send(206, content[first : last + 1], headers)
        return self.send(200, content, headers)

    def upload(self, query, body):
        kind = query["uploadType"]
        if kind == "resumable" and "upload_id" not in query:
            session = str(len(self.bucket.sessions))
            self.bucket.sessions[session] = (query.get("name") or json.loads(body)["name"], b"", query)
            place = f"{self.bucket.url}/upload/storage/v1/b/{NAME}/o?uploadType=resumable&upload_id={session}"
            return self.send(200, {}, {"Location": place})
        if kind == "resumable":
            name, before, first = self.bucket.sessions[query["upload_id"]]
            content = before + body
            if self.headers.get("Content-Range", "").endswith("/*"):
                self.bucket.sessions[query["upload_id"]] = (name, content, first)
                return self.send(308, b"", {"Range": f"bytes=0-{len(content) - 1}"})
            stored = self.bucket.put(name, content, first.get("ifGenerationMatch"))
        elif kind == "multipart":
            edge = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            described, content = body.split(b"--" + edge)[1:3]
            name = json.loads(described[described.index(b"{") : described.rindex(b"}") + 1])["name"]
            content = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]
            stored = self.bucket.put(name, re.sub(rb"\r?\n\Z", b"", content), query.get("ifGenerationMatch"))
        else:
            stored = self.bucket.put(query["name"], body, query.get("ifGenerationMatch"))
        return self.send(200, stored) if stored else self.send(412, {"error": {"code": 412, "message": "generation"}})

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names = [name for name in self.bucket.names() if name.startswith(prefix)]
        if "startOffset" in query:
            names = [name for name in names if name >= query["startOffset"]]
        if "endOffset" in query:
            names = [name for name in names if name < query["endOffset"]]
        prefixes = set()
        if delimiter:
            deeper = [name for name in names if delimiter in name[len(prefix) :]]
            prefixes = {prefix + name[len(prefix) :].partition(delimiter)[0] + delimiter for name in deeper}
            names = [name for name in names if name not in deeper]
        with self.bucket.lock:
            items = [self.bucket.metadata(name) for name in names if name in self.bucket.objects]
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def send(self, code, content=b"", headers=None):
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code != 204:
            self.wfile.write(content)
