"""Details of the official Python client's interface: parallel tool calls in a stream, strict schemas, log probabilities,
cancelled requests.

`cargo xtask clients` makes the environment, starts the server and runs this with FEWBIT_URL and FEWBIT_KEY set.
"""

import asyncio
import json
import math
import os
import time
import unittest
import urllib.request

import openai

URL = os.environ["FEWBIT_URL"]
KEY = os.environ["FEWBIT_KEY"]
MODEL = "smollm2-135m-instruct"
SKY = [{"role": "user", "content": "Why is the sky blue?"}]


def client(**more):
    return openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=120, **more)


def function(name, key, values):
    parameters = {"type": "object", "properties": {key: {"type": "string", "enum": values}}, "required": [key], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "Does.", "strict": True, "parameters": parameters}}


TOOLS = [function("paint", "colour", ["red", "blue"]), function("dress", "cloth", ["wool", "silk"])]


def metric(name):
    request = urllib.request.Request(URL + "/metrics", headers={"Authorization": "Bearer " + KEY})
    lines = urllib.request.urlopen(request).read().decode().splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


class Tools(unittest.TestCase):
    def test_parallel_calls_are_the_same_in_a_stream(self):
        options = dict(model=MODEL, messages=[{"role": "user", "content": "Paint and dress."}], tools=TOOLS, tool_choice="required", max_tokens=300)
        for seed in range(4):
            answer = client().chat.completions.create(seed=seed, **options)
            calls = answer.choices[0].message.tool_calls
            if answer.choices[0].finish_reason == "length":
                continue
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            self.assertEqual(len({call.id for call in calls}), len(calls))
            streamed = {}
            for chunk in client().chat.completions.create(seed=seed, stream=True, **options):
                for delta in chunk.choices[0].delta.tool_calls or []:
                    self.assertIsInstance(delta.index, int)
                    call = streamed.setdefault(delta.index, {"name": None, "arguments": ""})
                    call["name"] = delta.function.name or call["name"]
                    call["arguments"] += delta.function.arguments or ""
            self.assertEqual(sorted(streamed), list(range(len(calls))))
            for index, call in enumerate(calls):
                self.assertEqual(streamed[index]["name"], call.function.name)
                self.assertEqual(json.loads(streamed[index]["arguments"]), json.loads(call.function.arguments))
                key, values = {"paint": ("colour", ["red", "blue"]), "dress": ("cloth", ["wool", "silk"])}[call.function.name]
                self.assertIn(json.loads(call.function.arguments)[key], values)

    def test_auto_and_none_are_answers(self):
        for choice in ["auto", "none"]:
            answer = client().chat.completions.create(model=MODEL, messages=SKY, tools=TOOLS, tool_choice=choice, max_tokens=20, seed=1)
            self.assertIn(answer.choices[0].finish_reason, ["length", "stop", "tool_calls"])
            if choice == "none":
                self.assertIsNone(answer.choices[0].message.tool_calls)
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(model=MODEL, messages=SKY, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "fly"}})
        self.assertEqual(caught.exception.param, "tool_choice")


class Schemas(unittest.TestCase):
    def test_a_strict_schema_holds_however_hot(self):
        schema = {
            "type": "object",
            "properties": {
                "kind": {"type": "string", "enum": ["cat", "dog"]},
                "legs": {"type": "integer", "minimum": 1, "maximum": 4},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
                "owner": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["age"], "additionalProperties": False}]},
            },
            "required": ["kind", "legs", "tags", "owner"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "pet", "strict": True, "schema": schema}}
        for seed in range(6):
            options = dict(model=MODEL, messages=[{"role": "user", "content": "A pet."}], response_format=form, temperature=1.5, seed=seed, max_tokens=200)
            answer = client().chat.completions.create(**options).choices[0]
            self.assertEqual(answer.finish_reason, "stop")
            pet = json.loads(answer.message.content)
            self.assertEqual(sorted(pet), ["kind", "legs", "owner", "tags"])
            self.assertIn(pet["kind"], ["cat", "dog"])
            self.assertIn(pet["legs"], range(1, 5))
            self.assertTrue(len(pet["tags"]) <= 2 and all(len(tag) <= 5 for tag in pet["tags"]))
            self.assertTrue(pet["owner"] is None or 0 <= pet["owner"]["age"] <= 99)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in client().chat.completions.create(stream=True, **options))
            self.assertEqual(text, answer.message.content)


class Logprobs(unittest.TestCase):
    def test_they_are_those_of_the_stream_and_of_an_echo(self):
        options = dict(model=MODEL, messages=SKY, max_tokens=12, seed=3, logprobs=True, top_logprobs=5)
        content = client().chat.completions.create(**options).choices[0].logprobs.content
        streamed = []
        for chunk in client().chat.completions.create(stream=True, **options):
            if chunk.choices[0].logprobs:
                streamed += chunk.choices[0].logprobs.content
        self.assertEqual([(token.token, token.logprob) for token in streamed], [(token.token, token.logprob) for token in content])
        for token in content:
            self.assertLessEqual(sum(math.exp(other.logprob) for other in token.top_logprobs), 1.0001)
            best = [other.logprob for other in token.top_logprobs]
            self.assertEqual(best, sorted(best, reverse=True))
            self.assertEqual(bytes(token.bytes).decode(errors="replace"), token.token)
        # A text that was generated has the same log probabilities when it is a prompt.
        create = client().completions.create
        made = create(model=MODEL, prompt="Once upon a time", max_tokens=10, temperature=0, logprobs=1, echo=True).choices[0]
        scored = create(model=MODEL, prompt=made.text, max_tokens=0, logprobs=1, echo=True).choices[0]
        if scored.logprobs.tokens == made.logprobs.tokens:
            self.assertEqual(scored.logprobs.token_logprobs, made.logprobs.token_logprobs)


class Cancelling(unittest.TestCase):
    def test_a_request_that_is_not_streamed_ends_with_its_task(self):
        before = metric("fewbit_requests_cancelled_total")

        async def cancelled():
            ask = openai.AsyncOpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
            task = asyncio.create_task(ask.chat.completions.create(model=MODEL, messages=SKY, logit_bias={"2": -100}))
            running = metric("fewbit_requests_running")
            for _ in range(600):
                await asyncio.sleep(0.05)
                if metric("fewbit_requests_running") > running:
                    break
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        for _ in range(600):
            if metric("fewbit_requests_cancelled_total") > before:
                break
            time.sleep(0.05)
        self.assertGreater(metric("fewbit_requests_cancelled_total"), before)


if __name__ == "__main__":
    unittest.main()
