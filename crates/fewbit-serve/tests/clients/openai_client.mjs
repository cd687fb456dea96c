// The official Node client against `fewbit serve smollm2-135m-instruct`.
//
// `cargo xtask clients` makes the environment, starts the server and runs this with FEWBIT_URL and FEWBIT_KEY set.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createRequire } from "node:module";

// From the environment, which is not in a parent folder of this file.
const { OpenAI, NotFoundError, BadRequestError } = createRequire(process.env.FEWBIT_NODE_FOLDER + "/")("openai");

const model = "smollm2-135m-instruct";
const client = new OpenAI({ baseURL: process.env.FEWBIT_URL + "/v1", apiKey: process.env.FEWBIT_KEY, maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "Why is the sky blue?" }];

test("an answer and its stream are the same", async () => {
  const options = { model, messages, max_completion_tokens: 24, seed: 7 };
  const whole = await client.chat.completions.create(options);
  let text = "";
  let usage;
  for await (const chunk of await client.chat.completions.create({ ...options, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, 24);
});

test("a call that must be", async () => {
  const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false };
  const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
  const options = { model, messages, tools, tool_choice: "required", seed: 2 };
  const answer = await client.chat.completions.create(options);
  const call = answer.choices[0].message.tool_calls[0];
  assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));
  const final = await client.chat.completions.stream(options).finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
});

test("responses", async () => {
  const options = { model, input: "Why is the sky blue?", max_output_tokens: 24, seed: 7 };
  const whole = await client.responses.create(options);
  assert.equal(whole.status, "incomplete");
  let text = "";
  let last;
  for await (const event of await client.responses.create({ ...options, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(last.type, "response.incomplete");
  assert.equal(text, whole.output_text);
  assert.ok((await client.embeddings.create({ model, input: "a cat" })).data[0].embedding.length > 0);
});

test("errors have their types", async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-4", messages }), NotFoundError);
  await assert.rejects(client.chat.completions.create({ model, messages, temperature: "hot" }), BadRequestError);
});

test("a stream can be given up", async () => {
  const stream = await client.chat.completions.create({ model, messages, stream: true, logit_bias: { 2: -100 } });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
});
