"""Anthropic's official Python client against `fewbit serve smollm2-135m-instruct`.

`cargo xtask clients` makes the environment, starts the server and runs this with FEWBIT_URL and FEWBIT_KEY set.
"""

import os
import unittest

import anthropic

URL = os.environ["FEWBIT_URL"]
KEY = os.environ["FEWBIT_KEY"]
MODEL = "smollm2-135m-instruct"
SKY = dict(model=MODEL, system="Be brief.", messages=[{"role": "user", "content": "Why is the sky blue?"}])
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def messages(**more):
    return anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=120, **more).messages


class Messages(unittest.TestCase):
    def test_answer_stream_and_count_are_the_same(self):
        options = dict(**SKY, max_tokens=24, extra_body={"seed": 7, "temperature": 0.8})
        whole = messages().create(**options)
        self.assertEqual((whole.stop_reason, whole.usage.output_tokens), ("max_tokens", 24))
        read = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
        self.assertEqual(messages().count_tokens(**SKY).input_tokens, read)
        with messages().stream(**options) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.content[0].text, text)
        self.assertEqual((final.stop_reason, final.usage.output_tokens), ("max_tokens", 24))
        events = [event.type for event in messages().create(stream=True, **options)]
        self.assertEqual((events[0], events[-2:]), ("message_start", ["message_delta", "message_stop"]))

    def test_stop_sequences(self):
        answer = messages().create(**SKY, max_tokens=60, extra_body={"temperature": 0}, stop_sequences=["zzz", "."])
        self.assertEqual((answer.stop_reason, answer.stop_sequence), ("stop_sequence", "."))
        self.assertNotIn(".", answer.content[0].text)

    def test_tools(self):
        turns = [{"role": "user", "content": "What is the weather in Paris?"}]
        options = dict(model=MODEL, max_tokens=80, tools=[WEATHER], extra_body={"seed": 2})
        # With more than one call allowed, a model this small may go on with calls until its tokens are used up.
        for choice in [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather"}]:
            answer = messages().create(messages=turns, tool_choice=choice, **options)
            self.assertEqual(answer.stop_reason, "tool_use")
            [call] = [block for block in answer.content if block.type == "tool_use"]
            self.assertIn(call.input["city"], ["Paris", "Rome"])
            with messages().stream(messages=turns, tool_choice=choice, **options) as stream:
                streamed = next(block for block in stream.get_final_message().content if block.type == "tool_use")
            self.assertEqual(streamed.input, call.input)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 25 degrees."}
        turns += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        answer = messages().create(messages=turns, tool_choice={"type": "none"}, **options)
        self.assertEqual(answer.content[0].type, "text")

    def test_thinking(self):
        question = {"role": "user", "content": "Why is the sky blue?"}
        options = dict(model="thinker", max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})
        thought, said = "Light is scattered by the air.", "Because of scattering. Earlier thoughts: []"
        whole = messages().create(messages=[question], **options)
        self.assertEqual([block.type for block in whole.content], ["thinking", "text"])
        self.assertEqual((whole.content[0].thinking, whole.content[1].text), (thought, said))
        self.assertEqual((whole.stop_reason, whole.usage.output_tokens), ("end_turn", 6))
        with messages().stream(messages=[question], **options) as stream:
            events = list(stream)
            final = stream.get_final_message()
        thoughts = [event.thinking for event in events if event.type == "thinking"]
        self.assertEqual((len(thoughts), "".join(thoughts)), (3, thought))
        texts = [event.text for event in events if event.type == "text"]
        self.assertEqual((len(texts), "".join(texts)), (3, said))
        self.assertEqual([block.type for block in final.content], ["thinking", "text"])
        self.assertEqual((final.content[0].thinking, final.content[1].text), (thought, said))
        # The reasoning is a block of its own, which ends before the text begins.
        blocks = [(event.type, event.index) for event in events if event.type in ["content_block_start", "content_block_stop"]]
        start, stop = "content_block_start", "content_block_stop"
        self.assertEqual(blocks, [(start, 0), (stop, 0), (start, 1), (stop, 1)])
        deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
        self.assertEqual(deltas, ["thinking_delta"] * 3 + ["signature_delta"] + ["text_delta"] * 3)
        # Back in, as the client has it: the model gets its earlier reasoning.
        turns = [question, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "And at night?"}]
        again = messages().create(messages=turns, **options)
        self.assertEqual(again.content[1].text, f'Because of scattering. Earlier thoughts: ["{thought}"]')
        # Without `thinking`, models do not reason, if their template can turn it off.
        for more in [{}, {"thinking": {"type": "disabled"}}]:
            plain = messages().create(model="thinker", max_tokens=99, messages=[question], **more)
            self.assertEqual([block.type for block in plain.content], ["text"])

    def test_errors_have_their_types(self):
        with self.assertRaises(anthropic.AuthenticationError):
            anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0).messages.create(**SKY, max_tokens=1)
        with self.assertRaises(anthropic.NotFoundError) as caught:
            messages().create(**{**SKY, "model": "claude"}, max_tokens=1)
        self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")
        self.assertTrue(caught.exception.request_id.startswith("req_"))
        with self.assertRaises(anthropic.BadRequestError) as caught:
            messages().create(**SKY, max_tokens=1, extra_body={"temperature": "hot"})
        self.assertIn("`temperature`", caught.exception.body["error"]["message"])
        with self.assertRaises(anthropic.BadRequestError):
            messages().create(model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "word " * 20000}])
        with self.assertRaises(anthropic.APITimeoutError):
            anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=0.05).messages.create(**SKY, max_tokens=2000)


if __name__ == "__main__":
    unittest.main()
