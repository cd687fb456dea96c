"""A server with the interface of OpenAI that always reasons, then answers, as scripted: SmolLM2 does not reason.

It prints its address, and answers until its standard input is closed. The answer tells what it was asked, so that tests see
what reached it. `cargo xtask clients` starts it, and `fewbit serve` has it as the target of the route `thinker`.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

THOUGHTS = ["Light is ", "scattered by ", "the air."]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        heard = [message.get("reasoning_content") for message in body["messages"]]
        words = ["Because of ", "scattering. ", f"Earlier thoughts: {json.dumps([text for text in heard if text])}"]
        deltas = [{"role": "assistant", "reasoning_content": text} for text in THOUGHTS]
        # A model that reasons only when it is asked to, as some templates have it.
        if body.get("chat_template_kwargs", {}).get("enable_thinking") is False:
            deltas = []
        deltas += [{"content": text} for text in words]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(deltas), "total_tokens": 9 + len(deltas)}})
        head = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
        data = "".join(f"data: {json.dumps({**head, **chunk})}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
sys.stdin.read()
