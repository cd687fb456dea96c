// The view of usage and cost: a plot of days and a table, by key, prompt, feature or model.

import { allOrOwn, attempt, draw, find, make, table } from "/page/base.js";

let usage = [];

export async function showUsage() {
  usage = await allOrOwn("usage", find("usage-scope"));
  drawUsage();
}

const VALUES = {
  cost: (row) => row.cost,
  tokens: (row) => row.prompt_tokens + row.completion_tokens,
  answers: (row) => row.answers,
};
/** What the usage can be by: the heads of the table. */
const GROUPS = { key: "Key", prompt: "Prompt", feature: "Feature", model: "Model" };
/** The name of what has no prompt or no feature. No prompt and no feature can be called so. */
const NONE = "(none)";
const group = (row, by) => row[by] ?? NONE;
const N_SERIES = 8;
const N_DAYS = 30;

function drawUsage() {
  const what = find("usage-what").value;
  const by = find("usage-by").value;
  const value = VALUES[what];
  const sums = new Map();
  for (const row of usage) {
    const sum = sums.get(group(row, by)) ?? { value: 0, cost: 0, answers: 0, refused: 0, prompt: 0, cached: 0, completion: 0 };
    sum.value += value(row);
    sum.cost += row.cost;
    sum.answers += row.answers;
    sum.refused += row.refused;
    sum.prompt += row.prompt_tokens;
    sum.cached += row.cached_tokens;
    sum.completion += row.completion_tokens;
    sums.set(group(row, by), sum);
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
  const heads = [GROUPS[by], "Answers", "Refused", "Prompt tokens", "From the cache", "Answer tokens", "Cost"];
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
  const of = (day, name) => usage.filter((row) => row.day === day && group(row, by) === name).reduce((sum, row) => sum + value(row), 0);
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

find("usage-what").onchange = drawUsage;
find("usage-by").onchange = drawUsage;
find("usage-refresh").onclick = () => attempt(showUsage);
