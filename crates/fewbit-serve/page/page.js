// The page of `fewbit serve`: its views, the chat, the models, the requests in progress, the audit log, the approvals.

import {
  STORED_KEY, allOrOwn, answerInto, ask, attempt, find, json, make, numbers, table, took,
} from "/page/base.js";
import { showPrompts, stopComparing } from "/page/prompts.js";
import { showUsage } from "/page/usage.js";

// ---- views ----

/** What each view does when it is shown, and every how many milliseconds again. */
const VIEWS = {
  chat: { title: "Chat", show: showModelChoice },
  models: { title: "Models", show: showModels, every: 2000 },
  requests: { title: "Requests", show: showRequests, every: 1000 },
  usage: { title: "Usage", show: showUsage },
  prompts: { title: "Prompts", show: showPrompts },
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
  stopComparing();
}

/** The body of a request for the next answer. */
function chatRequest() {
  const messages = conversation.map(({ role, content, reasoning }) =>
    (reasoning ? { role, content, reasoning_content: reasoning } : { role, content }));
  const system = find("system").value.trim();
  if (system) messages.unshift({ role: "system", content: system });
  const settings = numbers({ temperature: "temperature", max_completion_tokens: "max-tokens", seed: "seed" });
  return { model: find("model").value, messages, ...settings };
}

async function answer() {
  const body = chatRequest();
  const message = { role: "assistant", content: "", reasoning: "", model: body.model };
  conversation.push(message);
  abort = new AbortController();
  busy(true);
  const spent = await answerInto(message, body, abort.signal, showLast);
  abort = null;
  busy(false);
  find("status").textContent = took(spent);
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

// ---- models ----

const megabytes = (bytes) => `${Math.round(bytes / 1e6).toLocaleString("en")} MB`;

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

/** The state of a model of this server, in words. */
function stateOf({ state, requests, idle_s: idle, error }) {
  if (error) return make("span", { className: "bad", title: error }, "loading failed");
  if (state !== "loaded") return requests ? `${state}, ${requests} waiting` : state;
  return requests ? `in use by ${requests}` : `idle for ${Math.round(idle ?? 0)} s`;
}

/** Where the layers of a model are, in words. */
function placeOf({ devices, threads }) {
  const part = ({ device, is_cpu: isCpu, layers }) =>
    `${layers} on ${device}${isCpu ? `, ${threads} threads` : ""}`;
  return devices.filter(({ layers }) => layers > 0).map(part).join("; ") || "–";
}

/** What only a key with /admin may see of the models; `null` for others. */
async function modelStates() {
  try {
    return await json("/admin/models");
  } catch (error) {
    if (error.status !== 403) throw error;
    return null;
  }
}

async function showModels() {
  const [{ data }, states, metrics] = await Promise.all([json("/v1/models"), modelStates(), ask("/metrics")]);
  const of = samples(await metrics.text());
  const now = performance.now();
  const tokens = {};
  const rows = data.map(({ id, state, max_model_len: context }) => {
    const m = of[id] ?? {};
    tokens[id] = m.generated_tokens_total;
    const made = tokens[id] - before.tokens[id];
    const has = (name, shown) => (name in m ? shown(m[name]) : "–");
    const known = states?.data.find((status) => status.id === id);
    return [
      id,
      known ? stateOf(known) : (state ?? "–"),
      context || "–",
      ...(states ? [known ? placeOf(known) : "–"] : []),
      has("weight_bytes", megabytes),
      has("kv_bytes", (bytes) => `${megabytes(bytes)} of ${megabytes(m.kv_limit_bytes)}`),
      has("requests_running", String),
      has("requests_waiting", String),
      Number.isFinite(made) ? (made / ((now - before.time) / 1000)).toFixed(0) : "–",
      has("route_open_breakers", (n) => (n === 0 ? "all" : `${n} skipped after failures`)),
    ];
  });
  before = { time: now, tokens };
  const place = states ? ["Layers"] : [];
  const heads = [
    "Model or route", "State", "Context", ...place, "Weights", "Keys and values", "Running", "Waiting", "Tokens/s", "Targets",
  ];
  find("model-table").replaceChildren(table(heads, rows, "Your key may use no model."));
  find("device-state").hidden = !states;
  if (states) showDevices(states);
}

function showDevices({ devices, memory_bytes: bytes, memory_limit_bytes: limit }) {
  const reserved = limit === null ? megabytes(bytes) : `${megabytes(bytes)} of ${megabytes(limit)}`;
  find("model-memory").textContent = `With their keys and values, the loaded models can take ${reserved}.`;
  const rows = devices.map(({ name, description, is_software: isSoftware, unusable }) => [
    name,
    isSoftware ? `${description}, emulated on the CPU` : description,
    unusable ?? make("span", { className: "good" }, "usable"),
  ]);
  find("device-table").replaceChildren(table(["Device", "Hardware", "State"], rows, "There is none."));
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
find("verify").onclick = () => attempt(verify);
makeTabs();
open(location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "chat", false);
