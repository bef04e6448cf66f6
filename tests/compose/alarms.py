"""A webhook receiver for Alertmanager: prints each alert as a line of JSON."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer


class Alarms(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for alarm in body["alerts"]:
            print(json.dumps(alarm), flush=True)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


HTTPServer(("0.0.0.0", 9000), Alarms).serve_forever()
