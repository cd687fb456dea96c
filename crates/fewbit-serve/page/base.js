// What all views share: making elements, asking the server, showing what went wrong. All text of models and requests is set
// as text, never as HTML, and nothing but this server is asked for anything.

export const find = (id) => document.getElementById(id);

/** Creates an element with these properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Creates an SVG element with these attributes. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A table. A row is a list of texts or elements; numbers are shown with separators. */
export function table(heads, rows, empty) {
  if (rows.length === 0) return make("p", { className: "empty" }, empty);
  const cell = (tag, value) => {
    const isNumber = typeof value === "number";
    return make(tag, { className: isNumber ? "number" : "" }, isNumber ? value.toLocaleString("en", { maximumFractionDigits: 4 }) : value);
  };
  const isNumber = heads.map((_, i) => typeof rows[0][i] === "number");
  const head = heads.map((text, i) => make("th", { scope: "col", className: isNumber[i] ? "number" : "" }, text));
  const body = rows.map((row) => make("tr", {}, ...row.map((value) => cell("td", value))));
  return make("div", { className: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
}

// ---- the server ----

export const STORED_KEY = "fewbit-key";

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(STORED_KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(path, {
    method,
    headers,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "omit",
    cache: "no-store",
    redirect: "error",
  });
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Failure(response.status, answer.error?.message ?? `status ${response.status}`);
}

export const json = async (path, options) => (await ask(path, options)).json();

/** Asks for what all keys do, or for what this key does if it may not see others. */
export async function allOrOwn(what, scope) {
  try {
    const list = await json(`/admin/${what}`);
    scope.textContent = "Of all keys.";
    return list.data;
  } catch (error) {
    if (error.status !== 403) throw error;
  }
  const list = await json(`/v1/${what}`);
  scope.textContent = "Of your key. A key whose scopes name /admin sees all.";
  return list.data;
}

export function notice(error) {
  const place = find("notice");
  place.hidden = !error;
  if (!error) return;
  if (error.status === 401) {
    place.textContent = "This server asks for a key: enter it at the top.";
    find("key").focus();
  } else {
    place.textContent = error.message;
  }
}

/** Runs something, and shows its error if it fails. */
export async function attempt(does) {
  try {
    await does();
    notice(null);
  } catch (error) {
    if (error.name !== "AbortError") notice(error);
  }
}

/** The data of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Failure(0, "The answer broke off.");
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

/**
 * Asks for an answer to a chat, and puts it into a message as it comes: `content`, `reasoning`, and `failure` if it is not
 * whole. Calls `show` after each change. Returns what it took: `usage`, `backend`, `seconds`.
 */
export async function answerInto(message, body, signal, show) {
  const start = performance.now();
  let usage = null;
  let backend = "";
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      body: { ...body, stream: true, stream_options: { include_usage: true }, metadata: { feature: "page" } },
      signal,
    });
    backend = response.headers.get("x-fewbit-backend") ?? "";
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Failure(0, chunk.error.message);
      usage = chunk.usage ?? usage;
      const delta = chunk.choices?.[0]?.delta ?? {};
      message.content += delta.content ?? "";
      message.reasoning += delta.reasoning_content ?? "";
      if (chunk.choices?.[0]?.finish_reason === "length") message.failure = "The answer was cut off at the token limit.";
      show();
    }
    notice(null);
  } catch (error) {
    if (error.name === "AbortError") {
      message.failure = "Stopped.";
    } else {
      message.failure = error.message;
      notice(error);
    }
  }
  return { usage, backend, seconds: (performance.now() - start) / 1000 };
}

/** What an answer took, as a text. */
export function took({ usage, backend, seconds }) {
  const counted = usage ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ` : "";
  return `${counted}${seconds.toFixed(1)} s${backend ? `, ${backend}` : ""}`;
}

/** The fields of a request that these inputs set, by the names of the fields. Those that are empty set nothing. */
export function numbers(inputs) {
  const fields = {};
  for (const [field, id] of Object.entries(inputs)) {
    const value = find(id).valueAsNumber;
    if (!Number.isNaN(value)) fields[field] = value;
  }
  return fields;
}
