// The view of prompts under version: two versions next to each other, where each is used and what it took, how their texts
// differ, and the answers of both to the same variables.

import { answerInto, attempt, find, json, make, numbers, table, took } from "/page/base.js";

/** The prompts as the server has them, and what was used of each version. */
let prompts = [];
let usage = [];

/** Aborts the answers in progress. */
let comparing = null;

export function stopComparing() {
  comparing?.abort();
}

const prompt = () => prompts.find(({ name }) => name === find("prompt-name").value);
const SIDES = ["prompt-left", "prompt-right"];
/** The two versions that are shown. */
const sides = () => SIDES.map((id) => prompt().versions.find(({ version }) => String(version) === find(id).value));

/** Gives a choice these options, and keeps what was chosen, if it is still there. */
function setChoice(id, values, fallback) {
  const choice = find(id);
  const chosen = choice.value;
  choice.replaceChildren(...values.map((value) => make("option", { value }, value)));
  choice.value = values.includes(chosen) ? chosen : fallback;
}

export async function showPrompts() {
  const [list, used, models] = await Promise.all([json("/admin/prompts"), allUsage(), json("/v1/models")]);
  [prompts, usage] = [list.data, used];
  find("prompt-view").hidden = prompts.length === 0;
  find("no-prompt").hidden = prompts.length > 0;
  if (prompts.length === 0) return;
  setChoice("prompt-name", prompts.map(({ name }) => name), prompts[0].name);
  setChoice("compare-model", models.data.map(({ id }) => id), models.data[0]?.id);
  await showPrompt();
}

/** The usage by version, of all keys; none, if this key may not see it. */
async function allUsage() {
  try {
    return (await json("/admin/usage")).data;
  } catch (error) {
    if (error.status !== 403) throw error;
    return [];
  }
}

/** Shows the prompt that is chosen: its two newest versions, if it was not shown before. */
async function showPrompt() {
  const versions = prompt().versions.map(({ version }) => String(version));
  setChoice("prompt-left", versions, versions.at(-2) ?? versions[0]);
  setChoice("prompt-right", versions, versions.at(-1));
  find("prompt-problem").textContent = prompt().problem ?? "";
  await showVersions();
}

async function showVersions() {
  const [left, right] = sides();
  const query = new URLSearchParams({ from: left.id, to: right.id });
  const difference = await json(`/admin/prompts/difference?${query}`);
  find("prompt-figures").replaceChildren(figures(left, right));
  find("prompt-difference").replaceChildren(differenceTable(difference));
  showVariables(left, right);
}

// ---- where they are used, and what they took ----

/** Which requests that name no version get this one, in words. */
function share({ version }) {
  const { promoted, canary } = prompt();
  const ofCanary = canary?.percent ?? 0;
  const others = canary?.by_key ? "keys" : "requests";
  if (canary?.version === version && ofCanary > 0) return `canary: ${ofCanary} % of ${others}`;
  if (promoted === version) return ofCanary > 0 ? `promoted: ${100 - ofCanary} % of ${others}` : "promoted: all requests";
  return "only requests that name it";
}

function figures(left, right) {
  const mean = (sum, n, shown) => (n === 0 ? "–" : shown(sum / n));
  const number = (digits) => (value) => value.toLocaleString("en", { maximumFractionDigits: digits });
  const column = (version) => {
    const rows = usage.filter((row) => row.prompt === version.id);
    const sum = (of) => rows.reduce((all, row) => all + row[of], 0);
    const names = (of) => [...new Set(rows.map((row) => row[of]).filter(Boolean))].sort().join(", ") || "–";
    const answers = sum("answers");
    return {
      "Without a version": share(version),
      Description: version.description || "–",
      "Used by the keys": names("key"),
      "with the models": names("model"),
      "for the features": names("feature"),
      Answers: number(0)(answers),
      "that failed": number(0)(sum("failed")),
      Refused: number(0)(sum("refused")),
      "Prompt tokens per answer": mean(sum("prompt_tokens"), answers, number(1)),
      "Answer tokens per answer": mean(sum("completion_tokens"), answers, number(1)),
      "Seconds per answer": mean(sum("elapsed_ms") / 1000, answers, number(2)),
      "Cost per answer": mean(sum("cost"), answers, number(6)),
      Cost: number(4)(sum("cost")),
      "SHA-256": version.sha256.slice(0, 16),
    };
  };
  const [a, b] = [column(left), column(right)];
  return table(["", left.id, right.id], Object.keys(a).map((name) => [name, a[name], b[name]]), "");
}

// ---- how their texts differ ----

/** The lines of both versions in two columns. Lines that replace each other stand in one row. */
function differenceTable({ from, to, lines }) {
  const rows = [];
  let [removed, added] = [[], []];
  const flush = () => {
    for (let i = 0; i < Math.max(removed.length, added.length); i += 1) rows.push([removed[i], added[i]]);
    [removed, added] = [[], []];
  };
  for (const { change, line } of lines) {
    if (change === "-") removed.push(line);
    else if (change === "+") added.push(line);
    else {
      flush();
      rows.push([line, line]);
    }
  }
  flush();
  const cell = (line, other, name, sign) => {
    if (line === undefined) return make("td", { className: "nothing" });
    if (line === other) return make("td", {}, line);
    // Not by colour alone.
    const mark = make("span", { className: "sign" }, sign);
    mark.setAttribute("aria-label", name);
    return make("td", { className: name }, mark, line);
  };
  const body = rows.map(([a, b]) => make("tr", {}, cell(a, b, "removed", "−"), cell(b, a, "added", "+")));
  const head = make("tr", {}, ...[from, to].map((id) => make("th", { scope: "col" }, id)));
  return make("div", { className: "wide" }, make("table", { className: "pair" }, make("thead", {}, head), make("tbody", {}, ...body)));
}

// ---- the answers of both ----

/** Makes a field for each variable of the two versions. What was written into fields of the same names stays. */
function showVariables(left, right) {
  const place = find("compare-variables");
  const written = {};
  for (const field of place.querySelectorAll("textarea")) written[field.dataset.name] = field.value;
  const variables = new Map([...left.variables, ...right.variables].map((variable) => [variable.name, variable]));
  const fields = [...variables.values()].map(({ name, type, description, default: value }) => {
    const shown = typeof value === "string" ? value : JSON.stringify(value);
    const field = make("textarea", {
      rows: type === "text" ? 2 : 1,
      value: written[name] ?? "",
      placeholder: value === null ? "" : shown,
      required: value === null,
    });
    field.dataset.name = name;
    field.dataset.type = type;
    return make("label", { title: description }, `${name}${type === "text" ? "" : ` (${type})`} `, field);
  });
  place.replaceChildren(...fields);
}

/** The variables that are written into the fields, of those that a version has. */
function variablesOf(version) {
  const values = {};
  for (const { dataset: { name, type }, value } of find("compare-variables").querySelectorAll("textarea")) {
    if (value === "" || !version.variables.some((variable) => variable.name === name)) continue;
    try {
      values[name] = type === "text" ? value : JSON.parse(value);
    } catch {
      throw new Error(`The variable ${name} must be ${type}, written as JSON.`);
    }
  }
  return values;
}

/** Asks for the answers of both versions, at the same time and with the same seed. */
async function compare() {
  const text = find("compare-message").value.trim();
  const settings = numbers({ seed: "compare-seed", max_completion_tokens: "compare-tokens", temperature: "compare-temperature" });
  // Both draw from the same random numbers.
  settings.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  const requests = sides().map((version) => ({
    version,
    body: {
      model: find("compare-model").value,
      prompt: { id: prompt().name, version: String(version.version), variables: variablesOf(version) },
      messages: text === "" ? [] : [{ role: "user", content: text }],
      ...settings,
    },
  }));
  comparing = new AbortController();
  const { signal } = comparing;
  busy(true);
  const places = requests.map(({ version }) => {
    const parts = { head: make("span", { className: "who" }, version.id), spent: make("span", {}, "…"), text: make("p", { className: "text" }) };
    return { ...parts, card: make("article", { className: "message" }, make("header", {}, parts.head, parts.spent), parts.text) };
  });
  find("compare-answers").replaceChildren(...places.map(({ card }) => card));
  await Promise.all(requests.map(async ({ body }, i) => {
    const message = { content: "", reasoning: "" };
    const { card, spent, text: place } = places[i];
    const show = () => {
      place.textContent = message.content;
    };
    spent.textContent = took(await answerInto(message, body, signal, show));
    if (message.reasoning) place.before(make("p", { className: "text reasoning" }, message.reasoning));
    if (message.failure) card.append(make("p", { className: "failed" }, message.failure));
  }));
  comparing = null;
  busy(false);
}

function busy(is) {
  find("compare").hidden = is;
  find("compare-stop").hidden = !is;
}

find("prompt-name").onchange = () => {
  // Versions of another prompt are others, even with the same numbers.
  for (const id of SIDES) find(id).replaceChildren();
  attempt(showPrompt);
};
for (const id of SIDES) find(id).onchange = () => attempt(showVersions);
find("prompt-refresh").onclick = () => attempt(showPrompts);
find("compare-form").onsubmit = (event) => {
  event.preventDefault();
  if (comparing === null) attempt(compare);
};
find("compare-stop").onclick = stopComparing;
