// The page of `fewbit serve`. All text of models and requests is set as text, never as HTML, and nothing but this server
// is asked for anything.
"use strict";

const find = (id) => document.getElementById(id);

/** Creates an element with these properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Creates an SVG element with these attributes. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A table. A row is a list of texts or elements; numbers are shown with separators. */
function table(heads, rows, empty) {
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

const STORED_KEY = "fewbit-key";

class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, { method = "GET", body, signal } = {}) {
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

const json = async (path, options) => (await ask(path, options)).json();

/** Asks for what all keys do, or for what this key does if it may not see others. */
async function allOrOwn(what, scope) {
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

function notice(error) {
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
async function attempt(does) {
  try {
    await does();
    notice(null);
  } catch (error) {
    if (error.name !== "AbortError") notice(error);
  }
}

// ---- views ----

/** What each view does when it is shown, and every how many milliseconds again. */
const VIEWS = {
  chat: { title: "Chat", show: showModelChoice },
  models: { title: "Models", show: showModels, every: 2000 },
  requests: { title: "Requests", show: showRequests, every: 1000 },
  usage: { title: "Usage", show: showUsage },
  log: { title: "Audit log", show: showLog, every: 5000 },
  approvals: { title: "Approvals", show: showApprovals, every: 1000 },
};

let current = null;
let timer = null;

function open(name, focus = true) {
  current = name;
  clearInterval(timer);
  for (const view of Object.keys(VIEWS)) {
    const isOpen = view === name;
    find(view).hidden = !isOpen;
    const tab = find(`tab-${view}`);
    tab.setAttribute("aria-selected", String(isOpen));
    tab.tabIndex = isOpen ? 0 : -1;
    if (isOpen && focus) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
  const { show, every } = VIEWS[name];
  attempt(show);
  if (every) timer = setInterval(() => document.hidden || attempt(show), every);
}

function makeTabs() {
  const names = Object.keys(VIEWS);
  for (const name of names) {
    const tab = make("button", { type: "button", id: `tab-${name}`, onclick: () => open(name) }, VIEWS[name].title);
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", name);
    find("tabs").append(tab);
  }
  find("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    open(names[(names.indexOf(current) + step + names.length) % names.length]);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
    const isTyping = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
    if (isTyping || event.ctrlKey || event.altKey || event.metaKey) return;
    const name = names[Number(event.key) - 1];
    if (name) open(name);
    if (event.key === "/") {
      event.preventDefault();
      open("chat", false);
      find("message").focus();
    }
  });
}

// ---- chat ----

/** The conversation: `{role, content, reasoning, failure}`. */
let conversation = [];
/** Aborts the answer in progress. */
let abort = null;

async function showModelChoice() {
  const { data } = await json("/v1/models");
  const choice = find("model");
  const before = choice.value;
  choice.replaceChildren(...data.map(({ id }) => make("option", { value: id }, id)));
  if (data.some(({ id }) => id === before)) choice.value = before;
}

function showConversation() {
  find("messages").replaceChildren(...conversation.map(shown));
}

function shown(message, i) {
  const isUser = message.role === "user";
  const act = (title, does) => make("button", { type: "button", onclick: does, disabled: abort !== null }, title);
  const actions = isUser ? [act("Edit", () => edit(i))] : [act("Retry", () => retry(i))];
  const who = make("span", { className: "who" }, isUser ? "You" : (message.model ?? "Model"));
  const parts = [make("header", {}, who, ...actions)];
  if (message.reasoning) parts.push(make("p", { className: "text reasoning" }, message.reasoning));
  parts.push(make("p", { className: "text" }, message.content));
  if (message.failure) parts.push(make("p", { className: "failed" }, message.failure));
  return make("article", { className: `message ${message.role}` }, ...parts);
}

/** Puts a message of the user into a field, and continues from there when it is sent. */
function edit(i) {
  const field = make("textarea", { value: conversation[i].content, rows: 3, ariaLabel: "Edit the message" });
  const form = make("form", {}, field, make("div", { className: "bar" },
    make("button", {}, "Send"),
    make("button", { type: "button", onclick: showConversation }, "Cancel")));
  form.onsubmit = (event) => {
    event.preventDefault();
    conversation = conversation.slice(0, i);
    say(field.value);
  };
  sendOnEnter(field, form);
  find("messages").children[i].replaceChildren(form);
  field.focus();
}

function retry(i) {
  conversation = conversation.slice(0, i);
  answer();
}

function sendOnEnter(field, form) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

function say(text) {
  if (text.trim() === "" || abort !== null) return;
  conversation.push({ role: "user", content: text });
  answer();
}

function stop() {
  abort?.abort();
}

/** The body of a request for the next answer. */
function chatRequest() {
  const messages = conversation.map(({ role, content, reasoning }) =>
    (reasoning ? { role, content, reasoning_content: reasoning } : { role, content }));
  const system = find("system").value.trim();
  if (system) messages.unshift({ role: "system", content: system });
  const body = { model: find("model").value, messages, stream: true, stream_options: { include_usage: true } };
  const settings = { temperature: "temperature", max_completion_tokens: "max-tokens", seed: "seed" };
  for (const [field, id] of Object.entries(settings)) {
    const value = find(id).valueAsNumber;
    if (!Number.isNaN(value)) body[field] = value;
  }
  return body;
}

async function answer() {
  const body = chatRequest();
  const message = { role: "assistant", content: "", reasoning: "", model: body.model };
  conversation.push(message);
  abort = new AbortController();
  busy(true);
  const start = performance.now();
  let usage = null;
  let backend = "";
  try {
    const response = await ask("/v1/chat/completions", { method: "POST", body, signal: abort.signal });
    backend = response.headers.get("x-fewbit-backend") ?? "";
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Failure(0, chunk.error.message);
      usage = chunk.usage ?? usage;
      const delta = chunk.choices?.[0]?.delta ?? {};
      message.content += delta.content ?? "";
      message.reasoning += delta.reasoning_content ?? "";
      if (chunk.choices?.[0]?.finish_reason === "length") message.failure = "The answer was cut off at the token limit.";
      showLast();
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
  const seconds = (performance.now() - start) / 1000;
  abort = null;
  busy(false);
  const counted = usage ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ` : "";
  find("status").textContent = `${counted}${seconds.toFixed(1)} s${backend ? `, ${backend}` : ""}`;
  find("message").focus();
}

function busy(is) {
  find("send").hidden = is;
  find("stop").hidden = !is;
  find("clear").disabled = is;
  if (is) find("status").textContent = "…";
  showConversation();
  showLast();
}

/** Shows what is new of the last message, without touching the others. */
function showLast() {
  const last = conversation.length - 1;
  const place = find("messages").children[last];
  if (!place) return;
  const isAtEnd = window.innerHeight + window.scrollY >= document.body.scrollHeight - 40;
  place.replaceWith(shown(conversation[last], last));
  if (isAtEnd) window.scrollTo(0, document.body.scrollHeight);
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

// ---- models ----

/** The time and the generated tokens by model when they were last shown, for the speed. */
let before = { time: 0, tokens: {} };

/** The samples of Prometheus's text: `{model: {name: value}}`. */
function samples(text) {
  const all = {};
  for (const line of text.split("\n")) {
    const found = /^fewbit_(\w+)\{model="((?:[^"\\]|\\.)*)"\} (\S+)$/.exec(line);
    if (found) (all[found[2]] ??= {})[found[1]] = Number(found[3]);
  }
  return all;
}

async function showModels() {
  const [{ data }, metrics] = await Promise.all([json("/v1/models"), ask("/metrics")]);
  const of = samples(await metrics.text());
  const now = performance.now();
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;
  const tokens = {};
  const rows = data.map(({ id, max_model_len: context }) => {
    const m = of[id] ?? {};
    tokens[id] = m.generated_tokens_total;
    const made = tokens[id] - before.tokens[id];
    const has = (name, shown) => (name in m ? shown(m[name]) : "–");
    return [
      id,
      context || "–",
      has("requests_running", String),
      has("requests_waiting", String),
      Number.isFinite(made) ? (made / ((now - before.time) / 1000)).toFixed(0) : "–",
      has("weight_bytes", megabytes),
      has("kv_bytes", (bytes) => `${megabytes(bytes)} of ${megabytes(m.kv_limit_bytes)}`),
      has("route_open_breakers", (n) => (n === 0 ? "all" : `${n} skipped after failures`)),
    ];
  });
  before = { time: now, tokens };
  const heads = ["Model or route", "Context", "Running", "Waiting", "Tokens/s", "Weights", "Keys and values", "Targets"];
  find("model-table").replaceChildren(table(heads, rows, "Your key may use no model."));
}

// ---- requests ----

async function showRequests() {
  const requests = await allOrOwn("requests", find("requests-scope"));
  const root = find("requests-scope").textContent === "Of all keys." ? "/admin" : "/v1";
  const rows = requests.map((request) => [
    request.key ?? "–",
    request.endpoint,
    request.model,
    request.state,
    request.prompt_tokens,
    request.completion_tokens,
    `${(request.elapsed_ms / 1000).toFixed(1)} s`,
    make("button", {
      type: "button",
      ariaLabel: `Cancel ${request.id}`,
      onclick: () => attempt(async () => {
        await ask(`${root}/requests/${encodeURIComponent(request.id)}`, { method: "DELETE" });
        await showRequests();
      }),
    }, "Cancel"),
  ]);
  const heads = ["Key", "Endpoint", "Model", "State", "Prompt", "Answer", "Time", ""];
  find("request-table").replaceChildren(table(heads, rows, "No request is in progress."));
}

// ---- usage ----

let usage = [];

async function showUsage() {
  usage = await allOrOwn("usage", find("usage-scope"));
  drawUsage();
}

const VALUES = {
  cost: (row) => row.cost,
  tokens: (row) => row.prompt_tokens + row.completion_tokens,
  answers: (row) => row.answers,
};
const N_SERIES = 8;
const N_DAYS = 30;

function drawUsage() {
  const what = find("usage-what").value;
  const by = find("usage-by").value;
  const value = VALUES[what];
  const sums = new Map();
  for (const row of usage) {
    const sum = sums.get(row[by]) ?? { value: 0, cost: 0, answers: 0, refused: 0, prompt: 0, cached: 0, completion: 0 };
    sum.value += value(row);
    sum.cost += row.cost;
    sum.answers += row.answers;
    sum.refused += row.refused;
    sum.prompt += row.prompt_tokens;
    sum.cached += row.cached_tokens;
    sum.completion += row.completion_tokens;
    sums.set(row[by], sum);
  }
  const names = [...sums.keys()].sort((a, b) => sums.get(b).value - sums.get(a).value);
  // The smallest ones share the last colour.
  const series = (name) => Math.min(names.indexOf(name), N_SERIES - 1);
  find("plot").replaceChildren(...(usage.length ? [plot(what, by, value, names, series)] : []));
  const shown = names.slice(0, N_SERIES - 1);
  const items = shown.map((name, i) => [name, i]);
  if (names.length > shown.length) items.push([names.length === N_SERIES ? names.at(-1) : "others", N_SERIES - 1]);
  const mark = (i) => draw("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, draw("rect", { width: 1, height: 1, class: `series-${i}` }));
  find("legend").replaceChildren(...items.map(([name, i]) => make("li", {}, mark(i), name)));
  const rows = names.map((name) => {
    const sum = sums.get(name);
    return [name, sum.answers, sum.refused, sum.prompt, sum.cached, sum.completion, sum.cost];
  });
  const heads = [by === "key" ? "Key" : "Model", "Answers", "Refused", "Prompt tokens", "From the cache", "Answer tokens", "Cost"];
  find("usage-table").replaceChildren(table(heads, rows, "Nothing was used yet."));
}

/** The days from the first one with usage to the last, as many as fit. */
function days() {
  const all = usage.map(({ day }) => day).sort();
  const last = Date.parse(all.at(-1));
  const first = Math.max(Date.parse(all[0]), last - (N_DAYS - 1) * 86_400_000);
  const list = [];
  for (let time = first; time <= last; time += 86_400_000) list.push(new Date(time).toISOString().slice(0, 10));
  return list;
}

/** A bar for each day, with a part for each name. */
function plot(what, by, value, names, series) {
  const [width, height, left, bottom, top] = [720, 240, 64, 28, 12];
  const list = days();
  const of = (day, name) => usage.filter((row) => row.day === day && row[by] === name).reduce((sum, row) => sum + value(row), 0);
  const totals = list.map((day) => names.reduce((sum, name) => sum + of(day, name), 0));
  const most = Math.max(...totals) || 1;
  const y = (amount) => height - bottom - (amount / most) * (height - bottom - top);
  const step = (width - left) / list.length;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${what} a day by ${by}` });
  for (const amount of [0, most / 2, most]) {
    const text = amount.toLocaleString("en", { maximumSignificantDigits: 3 });
    svg.append(
      draw("line", { x1: left, x2: width, y1: y(amount), y2: y(amount) }),
      draw("text", { x: left - 8, y: y(amount) + 4, "text-anchor": "end" }, text));
  }
  list.forEach((day, i) => {
    let below = 0;
    const bar = Math.min(step * 0.7, 60);
    const x = left + i * step + (step - bar) / 2;
    for (const name of names) {
      const amount = of(day, name);
      if (amount === 0) continue;
      const title = draw("title", {}, `${day}, ${name}: ${amount.toLocaleString("en", { maximumFractionDigits: 4 })}`);
      svg.append(draw("rect", {
        x, width: bar, y: y(below + amount), height: y(below) - y(below + amount), class: `series-${series(name)}`,
      }, title));
      below += amount;
    }
    if (i % Math.ceil(list.length / 8) === 0) {
      svg.append(draw("text", { x: x + bar / 2, y: height - 8, "text-anchor": "middle" }, day.slice(5)));
    }
  });
  return svg;
}

// ---- audit log ----

async function showLog() {
  const { lines, hash, is_complete: isComplete } = await json("/admin/audit");
  const entry = (name, ...value) => [make("dt", {}, name), make("dd", {}, ...value)];
  find("audit").replaceChildren(
    ...entry("Lines", lines.toLocaleString("en")),
    ...entry("Head", make("code", { id: "head" }, `${lines}:${hash}`)),
    ...entry("State", isComplete
      ? make("span", { className: "good" }, "everything is written")
      : make("span", { className: "bad" }, "it cannot be written: all requests are refused")));
}

async function verify() {
  const place = find("verified");
  place.className = "";
  place.textContent = "Reading every line…";
  const { is_intact: isIntact, lines, problem } = await json("/admin/audit/verify", { method: "POST" });
  place.className = isIntact ? "good" : "bad";
  place.textContent = isIntact ? `${lines.toLocaleString("en")} lines, unchanged` : `Changed after it was written: ${problem}`;
}

// ---- approvals ----

async function showApprovals() {
  const { data } = await json("/admin/approvals");
  const place = find("approval-list");
  // Calls that are shown already stay as they are, so that a button is not replaced while it is pressed.
  const ids = new Set(data.map(({ id }) => id));
  for (const old of [...place.children]) if (!ids.has(old.dataset.id)) old.remove();
  for (const call of data) {
    let card = [...place.children].find((child) => child.dataset.id === call.id);
    if (!card) {
      card = shownCall(call);
      place.append(card);
    }
    const left = Math.max(0, Math.round((call.expires_ms - Date.now()) / 1000));
    card.querySelector(".left").textContent = `${left} s left`;
  }
  if (data.length === 0) place.replaceChildren(make("p", { className: "empty" }, "No call waits."));
}

function shownCall(call) {
  const decide = (decision) => () => attempt(async () => {
    await ask(`/admin/approvals/${encodeURIComponent(call.id)}`, { method: "POST", body: { decision } });
    await showApprovals();
  });
  const card = make("article", { className: "message" },
    make("header", {},
      make("strong", { className: "who" }, call.tool),
      make("span", {}, `${call.key ?? "–"}, ${call.model}, ${call.request}`),
      make("span", { className: "left" })),
    make("pre", { className: "text" }, JSON.stringify(call.arguments, null, 2)),
    make("div", { className: "bar" },
      make("button", { type: "button", onclick: decide("approve") }, "Approve"),
      make("button", { type: "button", onclick: decide("deny") }, "Deny")));
  card.dataset.id = call.id;
  return card;
}

// ---- the beginning ----

find("key-form").onsubmit = (event) => {
  event.preventDefault();
  const key = find("key").value.trim();
  if (key) sessionStorage.setItem(STORED_KEY, key);
  else sessionStorage.removeItem(STORED_KEY);
  find("key").value = "";
  open(current);
};
find("send-form").onsubmit = (event) => {
  event.preventDefault();
  const text = find("message").value;
  if (abort !== null || text.trim() === "") return;
  find("message").value = "";
  say(text);
};
sendOnEnter(find("message"), find("send-form"));
find("stop").onclick = stop;
find("clear").onclick = () => {
  conversation = [];
  showConversation();
  find("status").textContent = "";
};
find("usage-what").onchange = drawUsage;
find("usage-by").onchange = drawUsage;
find("usage-refresh").onclick = () => attempt(showUsage);
find("verify").onclick = () => attempt(verify);
makeTabs();
open(location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "chat", false);
