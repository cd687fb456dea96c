"""A collector in OpenTelemetry's own types, against `fewbit serve` with the feature `otel`.

`cargo xtask telemetry` makes the environment and runs this with FEWBIT_PROGRAM set.
"""

import http.server
import json
import os
import re
import subprocess
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MODEL = "smollm2-135m-instruct"
SECRET = "a text that must stay here"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

spans, metrics, bodies, upstream_headers = [], {}, [], []


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(v) for v in any_value.array_value.values]
    return getattr(any_value, kind)


def attributes(things):
    return {pair.key: value(pair.value) for pair in things}


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = b""
        if self.path in ("/v1/traces", "/v1/metrics"):
            bodies.append(body)
        if self.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    spans.extend((service, span) for span in scope.spans)
        elif self.path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    metrics.update({metric.name: metric for metric in scope.metrics})
        else:  # another server, to which a route leads
            upstream_headers.append(dict(self.headers))
            answer = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if answer else "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Telemetry(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
        threading.Thread(target=cls.collector.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{cls.collector.server_port}"
        cls.folder = tempfile.TemporaryDirectory()
        config = os.path.join(cls.folder.name, "fewbit.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f'[[models]]\nmodel = "{MODEL}"\nname = "small"\n')
            file.write(f'[[upstreams]]\nname = "other"\nurl = "{url}/v1"\n')
            file.write('[[upstreams]]\nname = "gone"\nurl = "http://127.0.0.1:1/v1"\n')
            file.write('[[routes]]\nname = "dead"\nretries = 0\nto = [{ upstream = "gone", model = "theirs" }]\n')
            file.write('[[routes]]\nname = "away"\nto = [{ upstream = "other", model = "theirs" }]\n')
        cls.server = subprocess.Popen(
            [os.environ["FEWBIT_PROGRAM"], "serve", "--config", config, "--listen", "127.0.0.1:0"],
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "test"},
            stdout=subprocess.PIPE,
            text=True,
        )
        cls.url = re.match("listening on (.*)", cls.server.stdout.readline()).group(1)
        traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        say = [{"role": "user", "content": SECRET}]
        cls.post("/v1/chat/completions", {"model": "small", "messages": say, "max_tokens": 8, "temperature": 0.5}, traced)
        cls.post("/v1/chat/completions", {"model": "small", "messages": say, "max_tokens": 8, "stream": True})
        cls.post("/v1/chat/completions", {"model": "away", "messages": say}, traced)
        cls.post("/v1/embeddings", {"model": "small", "input": SECRET})
        cls.post("/v1/completions", {"model": "dead", "prompt": SECRET})
        # A server that stops sends what is left.
        cls.server.terminate()
        cls.server.wait(60)
        cls.server.stdout.close()

    @classmethod
    def tearDownClass(cls):
        cls.collector.shutdown()
        cls.collector.server_close()
        cls.folder.cleanup()

    @classmethod
    def post(cls, path, body, headers={}):
        headers = {"content-type": "application/json", **headers}
        request = urllib.request.Request(cls.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            error.close()

    def named(self, name):
        found = [span for _, span in spans if span.name == name]
        self.assertTrue(found, f"no span is called {name}: {[span.name for _, span in spans]}")
        return found

    def test_requests_are_spans_that_continue_their_clients_trace(self):
        self.assertEqual({service for service, _ in spans}, {"test"})
        requests = self.named("POST /v1/chat/completions")
        self.assertEqual(len(requests), 3)
        traced = [span for span in requests if span.trace_id.hex() == TRACE]
        self.assertEqual([span.parent_span_id.hex() for span in traced], [PARENT, PARENT])
        for span in requests:
            self.assertEqual(span.kind, 2)  # server
            found = attributes(span.attributes)
            self.assertEqual(found["http.request.method"], "POST")
            self.assertEqual(found["http.route"], "/v1/chat/completions")
            self.assertEqual(found["http.response.status_code"], 200)
            self.assertGreater(span.end_time_unix_nano, span.start_time_unix_nano)
        (failed,) = self.named("POST /v1/completions")
        self.assertEqual(attributes(failed.attributes)["http.response.status_code"], 502)
        self.assertEqual(failed.status.code, 2)  # error

    def test_answers_are_spans_with_their_tokens(self):
        requests = {span.span_id: span for span in self.named("POST /v1/chat/completions")}
        answers = self.named("chat small")
        self.assertEqual(len(answers), 2)
        for answer in answers:
            self.assertEqual(answer.trace_id, requests[answer.parent_span_id].trace_id)
            found = attributes(answer.attributes)
            self.assertEqual(found["gen_ai.operation.name"], "chat")
            self.assertEqual(found["gen_ai.provider.name"], "fewbit")
            self.assertEqual(found["gen_ai.request.model"], "small")
            self.assertEqual(found["gen_ai.request.max_tokens"], 8)
            self.assertEqual(found["gen_ai.usage.output_tokens"], 8)
            self.assertGreater(found["gen_ai.usage.input_tokens"], 8)
            self.assertEqual(found["gen_ai.response.finish_reasons"], ["length"])
            self.assertNotIn("error.type", found)
        self.assertEqual([attributes(a.attributes).get("gen_ai.request.temperature") for a in answers], [0.5, None])
        (embedded,) = self.named("embeddings small")
        self.assertGreater(attributes(embedded.attributes)["gen_ai.usage.input_tokens"], 3)
        (failed,) = self.named("text_completion dead")
        self.assertEqual(attributes(failed.attributes)["error.type"], "upstream_error")
        self.assertEqual(failed.status.code, 2)

    def test_other_servers_continue_the_trace(self):
        (answer,) = self.named("chat away")
        self.assertEqual(attributes(answer.attributes)["gen_ai.response.model"], "other/theirs")
        (headers,) = upstream_headers
        sent = {name.lower(): value for name, value in headers.items()}["traceparent"]
        self.assertEqual(sent, f"00-{TRACE}-{answer.span_id.hex()}-01")

    def test_metrics_count_answers_and_tokens(self):
        duration = metrics["gen_ai.server.request.duration"]
        self.assertEqual(duration.unit, "s")
        counts = {
            (found["gen_ai.operation.name"], found["gen_ai.request.model"], found.get("error.type")): point.count
            for point in duration.histogram.data_points
            for found in [attributes(point.attributes)]
        }
        self.assertEqual(counts[("chat", "small", None)], 2)
        self.assertEqual(counts[("embeddings", "small", None)], 1)
        self.assertEqual(counts[("text_completion", "dead", "upstream_error")], 1)
        tokens = {
            attributes(point.attributes)["gen_ai.token.type"]: point.sum
            for point in metrics["gen_ai.client.token.usage"].histogram.data_points
            if attributes(point.attributes)["gen_ai.request.model"] == "small"
            and attributes(point.attributes)["gen_ai.operation.name"] == "chat"
        }
        self.assertEqual(tokens["output"], 16)
        for name in ("gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token"):
            (point,) = [
                point
                for point in metrics[name].histogram.data_points
                if attributes(point.attributes)["gen_ai.request.model"] == "small"
            ]
            self.assertEqual(point.count, 2)
            self.assertGreater(point.sum, 0)

    def test_no_text_is_exported(self):
        self.assertTrue(bodies)
        for body in bodies:
            self.assertNotIn(SECRET.encode(), body)


if __name__ == "__main__":
    unittest.main()
