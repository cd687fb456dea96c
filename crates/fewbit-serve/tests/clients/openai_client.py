"""The official Python client against `fewbit serve smollm2-135m-instruct`.

`cargo xtask clients` makes the environment, starts the server and runs this with FEWBIT_URL and FEWBIT_KEY set.
"""

import json
import os
import time
import unittest
import urllib.request

import openai
from pydantic import BaseModel

URL = os.environ["FEWBIT_URL"]
KEY = os.environ["FEWBIT_KEY"]
MODEL = "smollm2-135m-instruct"
SKY = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def client(**more):
    return openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=120, **more)


def metric(name):
    request = urllib.request.Request(URL + "/metrics", headers={"Authorization": "Bearer " + KEY})
    lines = urllib.request.urlopen(request).read().decode().splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


class Chat(unittest.TestCase):
    def test_answer_and_stream_are_the_same(self):
        options = dict(model=MODEL, messages=SKY, max_completion_tokens=24, seed=7, temperature=0.8)
        whole = client().chat.completions.create(**options)
        choice = whole.choices[0]
        self.assertEqual(choice.finish_reason, "length")
        self.assertEqual(whole.usage.completion_tokens, 24)
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + 24)
        chunks = list(client().chat.completions.create(stream=True, stream_options={"include_usage": True}, **options))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, choice.message.content)
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 24)
        self.assertEqual(chunks[-2].choices[0].finish_reason, "length")

    def test_several_answers_stop_and_logprobs(self):
        answer = client().chat.completions.create(
            model=MODEL, messages=SKY, n=3, seed=1, max_tokens=40, stop=[".", "!"], logprobs=True, top_logprobs=2,
            logit_bias={"28": 0}, presence_penalty=0.1, frequency_penalty=0.1, top_p=0.9, user="x",
        )
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        self.assertGreater(len({choice.message.content for choice in answer.choices}), 1)
        for choice in answer.choices:
            self.assertNotIn(".", choice.message.content)
            for token in choice.logprobs.content:
                self.assertLessEqual(token.logprob, 0)
                self.assertEqual(len(token.top_logprobs), 2)

    def test_a_type_as_the_form(self):
        class Fact(BaseModel):
            city: str
            population: int

        ask = client().chat.completions.parse
        answer = ask(model=MODEL, messages=[{"role": "user", "content": "Facts about Paris."}], response_format=Fact, max_tokens=300, seed=3)
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(answer.choices[0].message.parsed, Fact)
        answer = client().chat.completions.create(model=MODEL, messages=SKY, response_format={"type": "json_object"}, max_tokens=400, temperature=0)
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_tools(self):
        messages = [{"role": "user", "content": "What is the weather in Paris?"}]
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice in ["required", named]:
            options = dict(model=MODEL, messages=messages, tools=[WEATHER], tool_choice=choice, seed=2, parallel_tool_calls=False)
            answer = client().chat.completions.create(**options)
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            call = answer.choices[0].message.tool_calls[0]
            self.assertEqual(call.function.name, "get_weather")
            arguments = json.loads(call.function.arguments)
            self.assertIn(arguments["city"], ["Paris", "Rome"])
            self.assertIn(arguments["days"], range(1, 10))
            with client().chat.completions.stream(**options) as stream:
                final = stream.get_final_completion()
            streamed = final.choices[0].message.tool_calls[0]
            self.assertEqual(json.loads(streamed.function.arguments), arguments)
        # Back in: the answer as the client has it, and what the call gave.
        messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 25 degrees."}]
        answer = client().chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=30, seed=1)
        self.assertTrue(answer.choices[0].message.content)
        self.assertIsNone(answer.choices[0].message.tool_calls)

    def test_a_client_that_closes_ends_the_answer(self):
        before = metric("fewbit_requests_cancelled_total")
        stream = client().chat.completions.create(model=MODEL, messages=SKY, stream=True, logit_bias={"2": -100})
        next(iter(stream))
        stream.close()
        for _ in range(600):
            if metric("fewbit_requests_cancelled_total") > before:
                break
            time.sleep(0.05)
        self.assertGreater(metric("fewbit_requests_cancelled_total"), before)


class Responses(unittest.TestCase):
    def test_answer_stream_and_chat_are_the_same(self):
        options = dict(model=MODEL, instructions="Be brief.", input="Why is the sky blue?", max_output_tokens=24, temperature=0.8, extra_body={"seed": 7})
        whole = client().responses.create(**options)
        self.assertEqual((whole.status, whole.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        self.assertEqual(whole.usage.output_tokens, 24)
        chat = client().chat.completions.create(model=MODEL, messages=SKY, max_completion_tokens=24, seed=7, temperature=0.8)
        self.assertEqual(whole.output_text, chat.choices[0].message.content)
        events = list(client().responses.create(stream=True, **options))
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual((events[0].type, events[-1].type, text), ("response.created", "response.incomplete", whole.output_text))
        self.assertEqual(events[-1].response.output_text, text)

    def test_one_goes_on_from_another(self):
        first = client().responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=8)
        second = client().responses.create(model=MODEL, input="What is it?", previous_response_id=first.id, max_output_tokens=8)
        self.assertGreater(second.usage.input_tokens, first.usage.input_tokens)
        self.assertEqual(client().responses.retrieve(first.id).output_text, first.output_text)
        client().responses.delete(first.id)
        with self.assertRaises(openai.BadRequestError) as caught:
            client().responses.create(model=MODEL, input="So?", previous_response_id=first.id)
        self.assertEqual(caught.exception.code, "previous_response_not_found")

    def test_forms_and_tools(self):
        class Fact(BaseModel):
            city: str

        answer = client().responses.parse(model=MODEL, input="Facts about Paris.", text_format=Fact, max_output_tokens=200, temperature=0)
        if answer.status == "completed":
            self.assertIsInstance(answer.output_parsed, Fact)
        tool = {"type": "function", "strict": True, **WEATHER["function"]}
        options = dict(model=MODEL, input="What is the weather in Paris?", tools=[tool], tool_choice="required", extra_body={"seed": 2})
        call = client().responses.create(**options).output[0]
        self.assertIn(json.loads(call.arguments)["city"], ["Paris", "Rome"])
        with client().responses.stream(**options) as stream:
            self.assertEqual(stream.get_final_response().output[0].arguments, call.arguments)


class Others(unittest.TestCase):
    def test_completions(self):
        create = client().completions.create
        answer = create(model=MODEL, prompt="Once upon a time", max_tokens=8, echo=True, logprobs=2, seed=4)
        self.assertTrue(answer.choices[0].text.startswith("Once upon a time"))
        logprobs = answer.choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), len(logprobs.token_logprobs))
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertEqual("".join(logprobs.tokens), answer.choices[0].text)
        for token, offset in zip(logprobs.tokens, logprobs.text_offset):
            self.assertEqual(answer.choices[0].text[offset:offset + len(token)], token)
        several = create(model=MODEL, prompt=["One, two,", "A, B,"], n=2, max_tokens=4, seed=4)
        self.assertEqual([choice.index for choice in several.choices], [0, 1, 2, 3])
        chunks = create(model=MODEL, prompt=["One, two,", "A, B,"], n=2, max_tokens=4, seed=4, stream=True)
        texts = [""] * 4
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        self.assertEqual(texts, [choice.text for choice in several.choices])
        # Ids of tokens as a prompt.
        body = json.dumps({"model": MODEL, "content": "Once upon a time"}).encode()
        request = urllib.request.Request(URL + "/tokenize", body, {"Authorization": "Bearer " + KEY})
        tokens = json.load(urllib.request.urlopen(request))["tokens"]
        of_tokens = create(model=MODEL, prompt=tokens, max_tokens=8, seed=4)
        self.assertEqual("Once upon a time" + of_tokens.choices[0].text, answer.choices[0].text)

    def test_embeddings(self):
        create = client().embeddings.create
        # The client asks for base64 if nothing is said, and decodes it.
        packed = create(model=MODEL, input=["a cat", "a dog"])
        plain = create(model=MODEL, input=["a cat", "a dog"], encoding_format="float")
        self.assertEqual([item.index for item in plain.data], [0, 1])
        self.assertEqual(len(plain.data[0].embedding), 576)
        for one, other in zip(packed.data, plain.data):
            self.assertTrue(all(abs(a - b) < 1e-7 for a, b in zip(one.embedding, other.embedding)))

    def test_models(self):
        self.assertIn(MODEL, [model.id for model in client().models.list()])
        self.assertEqual(client().models.retrieve(MODEL).owned_by, "fewbit")

    def test_errors_have_their_types(self):
        with self.assertRaises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=URL + "/v1", api_key="wrong", max_retries=0).models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")
        with self.assertRaises(openai.NotFoundError) as caught:
            client().chat.completions.create(model="gpt-4", messages=SKY)
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(model=MODEL, messages=SKY, temperature="hot")
        self.assertEqual(caught.exception.param, "temperature")
        self.assertTrue(caught.exception.request_id.startswith("req_"))
        with self.assertRaises(openai.BadRequestError) as caught:
            client().completions.create(model=MODEL, prompt="word " * 20000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        schema = {"type": "object", "properties": {"a": {"type": "nothing"}}}
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(
                model=MODEL, messages=SKY, stream=True,
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            )
        self.assertEqual(caught.exception.param, "response_format.json_schema.schema")
        with self.assertRaises(openai.APIStatusError) as caught:
            client().completions.create(model=MODEL, prompt="x" * (17 << 20))
        self.assertEqual(caught.exception.status_code, 413)
        with self.assertRaises(openai.APITimeoutError):
            client().with_options(timeout=0.3).chat.completions.create(model=MODEL, messages=SKY, logit_bias={"2": -100})


if __name__ == "__main__":
    unittest.main()
