"""Files, batches and reranking with the official Python client, and models that are loaded on demand.

`cargo xtask clients` makes the environment, starts the server and runs this with FEWBIT_URL and FEWBIT_KEY set.
"""

import json
import math
import os
import time
import unittest
import urllib.error
import urllib.request

import openai

URL = os.environ["FEWBIT_URL"]
KEY = os.environ["FEWBIT_KEY"]
ADMIN_KEY = os.environ["FEWBIT_ADMIN_KEY"]
MODEL = "smollm2-135m-instruct"
# The same file under a name for which the server computes probabilities of yes and no.
RERANKER = "smollm2-reranker"


def client(key=KEY):
    return openai.OpenAI(base_url=URL + "/v1", api_key=key, max_retries=0, timeout=120)


def ask(path, body=None, key=KEY):
    data = None if body is None else json.dumps(body).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(URL + path, data, {"Authorization": "Bearer " + key})))


def line(name, **body):
    request = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": {"model": MODEL, "max_tokens": 12, **body}}
    return json.dumps(request) + "\n"


def user(text):
    return [{"role": "user", "content": text}]


def end(batch):
    for _ in range(1200):
        batch = client().batches.retrieve(batch.id)
        if batch.status in ["completed", "failed", "expired", "cancelled"]:
            return batch
        time.sleep(0.05)
    raise AssertionError(batch.status)


class Batches(unittest.TestCase):
    def test_a_file_is_answered_in_a_file(self):
        questions = ["Why is the sky blue?", "What is a cat?", "Who was Ada Lovelace?"]
        text = "".join(line(f"q{i}", messages=user(question)) for i, question in enumerate(questions))
        text += line("wrong", messages=user("Hi"), temperature="hot")
        file = client().files.create(file=("in.jsonl", text.encode()), purpose="batch")
        self.assertEqual((file.object, file.bytes, file.filename, file.purpose), ("file", len(text), "in.jsonl", "batch"))
        self.assertEqual(client().files.content(file.id).text, text)
        batch = client().batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "test"}
        )
        self.assertEqual(batch.status, "validating")
        batch = end(batch)
        self.assertEqual((batch.status, batch.metadata), ("completed", {"of": "test"}))
        counts = batch.request_counts
        self.assertEqual((counts.total, counts.completed, counts.failed), (4, 3, 1))
        answers = [json.loads(text) for text in client().files.content(batch.output_file_id).text.splitlines()]
        self.assertEqual([answer["custom_id"] for answer in answers], ["q0", "q1", "q2"])
        for answer, question in zip(answers, questions):
            # A line without a seed has the seed 0.
            alone = client().chat.completions.create(model=MODEL, max_tokens=12, messages=user(question), seed=0)
            self.assertEqual(answer["response"]["body"]["choices"][0]["message"]["content"], alone.choices[0].message.content)
        [error] = [json.loads(text) for text in client().files.content(batch.error_file_id).text.splitlines()]
        self.assertEqual((error["custom_id"], error["response"]["status_code"]), ("wrong", 400))
        again = end(client().batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"))
        self.assertEqual(client().files.content(again.output_file_id).text, client().files.content(batch.output_file_id).text)
        self.assertEqual([item.id for item in client().batches.list(limit=1)][:2], [again.id, batch.id])
        self.assertIn(file.id, [item.id for item in client().files.list(purpose="batch")])
        self.assertTrue(client().files.delete(file.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            client().files.retrieve(file.id)

    def test_a_batch_can_be_cancelled(self):
        text = "".join(line(str(i), messages=user("Count."), max_tokens=4000, logit_bias={"2": -100}) for i in range(40))
        file = client().files.create(file=("long.jsonl", text.encode()), purpose="batch")
        batch = client().batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        with self.assertRaises(openai.ConflictError):
            client().files.delete(file.id)
        self.assertEqual(client().batches.cancel(batch.id).status, "cancelling")
        self.assertEqual(end(batch).status, "cancelled")

    def test_errors_have_their_types(self):
        file = client().files.create(file=("no.jsonl", b"no JSON\n"), purpose="batch")
        batch = end(client().batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"))
        self.assertEqual((batch.status, batch.errors.data[0].line), ("failed", 1))
        with self.assertRaises(openai.BadRequestError) as caught:
            client().files.create(file=("x", b"x"), purpose="fine-tune")
        self.assertEqual(caught.exception.param, "purpose")
        with self.assertRaises(openai.BadRequestError) as caught:
            client().batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
        self.assertEqual(caught.exception.param, "input_file_id")
        # What belongs to another key is not there.
        other = client(ADMIN_KEY)
        with self.assertRaises(openai.NotFoundError):
            other.files.retrieve(file.id)
        with self.assertRaises(openai.NotFoundError):
            other.batches.retrieve(batch.id)
        self.assertEqual(list(other.files.list()), [])


class OnDemand(unittest.TestCase):
    def test_a_model_is_loaded_when_it_is_asked(self):
        def state():
            return {model.id: getattr(model, "state", None) for model in client().models.list()}[RERANKER]

        ask("/admin/models/unload", {"model": RERANKER}, ADMIN_KEY)
        self.assertEqual(state(), "unloaded")
        options = dict(messages=user("Why is the sky blue?"), max_tokens=12, seed=1)
        text = client().chat.completions.create(model=RERANKER, **options).choices[0].message.content
        self.assertEqual(text, client().chat.completions.create(model=MODEL, **options).choices[0].message.content)
        self.assertEqual(state(), "loaded")
        self.assertEqual(ask("/admin/models/unload", {"model": RERANKER}, ADMIN_KEY)["state"], "unloaded")
        with self.assertRaises(urllib.error.HTTPError) as caught:
            ask("/admin/models/unload", {"model": RERANKER})
        self.assertEqual(caught.exception.code, 403)

    def test_reranking_is_the_probability_of_yes(self):
        query, documents = "Why is the sky blue?", ["Because light is scattered.", "Cats sleep a lot."]
        answer = ask("/v1/rerank", {"model": RERANKER, "query": query, "documents": documents, "return_documents": True})
        scores = [result["relevance_score"] for result in answer["results"]]
        self.assertEqual(scores, sorted(scores, reverse=True))

        def tokens(text, **more):
            return ask("/tokenize", {"model": MODEL, "content": text, **more})["tokens"]

        before = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        )
        after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        instruct = "Given a web search query, retrieve relevant passages that answer the query"

        def logprob(document, word):
            text = f"<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}"
            prompt = tokens(before, parse_special=True) + tokens(text) + tokens(after, parse_special=True) + tokens(word)
            echoed = client().completions.create(model=MODEL, prompt=prompt, max_tokens=0, echo=True, logprobs=0)
            return echoed.choices[0].logprobs.token_logprobs[-1]

        for result in answer["results"]:
            self.assertEqual(result["document"]["text"], documents[result["index"]])
            yes, no = (logprob(documents[result["index"]], word) for word in ["yes", "no"])
            self.assertAlmostEqual(result["relevance_score"], 1 / (1 + math.exp(no - yes)), places=4)
        info = ask("/tokenizer_info?model=" + MODEL)
        self.assertEqual((info["eos_token"], info["vocab_size"]), ("<|im_end|>", 49152))


if __name__ == "__main__":
    unittest.main()
