// The page of `fewbit serve` in Chromium: a conversation, a stop, cancelling a request, models and devices, a plot, prompts
// next to each other, the audit log, approving a call, what a key without /admin sees, dark mode.
//
// `cargo xtask page` makes the environment, starts the server, and runs this with FEWBIT_URL, FEWBIT_ADMIN_KEY, FEWBIT_KEY
// (a key without /admin), FEWBIT_NOTES (the file of the tool) and FEWBIT_SCREENSHOTS (a folder) set.

import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";

const require = createRequire(path.join(process.env.FEWBIT_NODE_FOLDER, "package.json"));
const { chromium } = require("playwright-core");

const URL = process.env.FEWBIT_URL;
const ADMIN = process.env.FEWBIT_ADMIN_KEY;
const KEY = process.env.FEWBIT_KEY;
const picture = (name) => path.join(process.env.FEWBIT_SCREENSHOTS, `${name}.png`);

let context;
let page;
/** What the browser should not have done: requests to other hosts, errors, violations of the policy. */
const wrong = [];

before(async () => {
  context = await chromium.launchPersistentContext(mkdtempSync(path.join(tmpdir(), "fewbit-page-")), {
    executablePath: process.env.FEWBIT_CHROMIUM,
    headless: true,
    viewport: { width: 1100, height: 800 },
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
    ],
  });
  context.setDefaultTimeout(60_000);
});
after(() => context?.close());

/** Opens the page in a new tab, and enters the key. */
async function open(key) {
  const tab = await context.newPage();
  tab.on("request", (request) => request.url().startsWith(URL) || wrong.push(`asked ${request.url()}`));
  tab.on("pageerror", (error) => wrong.push(`error: ${error}`));
  // A refused request (a wrong key, a scope) is logged by the browser itself.
  tab.on("console", (line) => {
    const isOurs = line.type() === "error" && !line.text().startsWith("Failed to load resource");
    if (isOurs) wrong.push(`console: ${line.text()}`);
  });
  const response = await tab.goto(URL);
  const policy = response.headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe|\*/);
  if (key) {
    await tab.getByText("This server asks for a key").waitFor();
    await tab.keyboard.type(key);
    await tab.keyboard.press("Enter");
    await tab.locator("#model option").first().waitFor({ state: "attached" });
  }
  return tab;
}

const say = async (tab, text) => {
  await tab.locator("#message").fill(text);
  await tab.keyboard.press("Enter");
};
const isIdle = (tab) => tab.locator("#send").waitFor();
const answers = (tab) => tab.locator(".message.assistant .text:not(.reasoning)");

test("a conversation, with edit and retry", async () => {
  page = await open(ADMIN);
  assert.equal(await page.locator("#notice").isVisible(), false);
  await page.locator("#settings summary").click();
  await page.locator("#max-tokens").fill("12");
  await page.locator("#seed").fill("7");
  await say(page, "Why is the sky blue?");
  await isIdle(page);
  const first = await answers(page).first().textContent();
  assert.ok(first.length > 10, first);
  await page.getByText("12 tokens").waitFor();
  // The same seed gives the same answer, and another one another.
  await page.getByRole("button", { name: "Retry" }).click();
  await isIdle(page);
  assert.equal(await answers(page).first().textContent(), first);
  await page.locator("#seed").fill("8");
  await page.getByRole("button", { name: "Retry" }).click();
  await isIdle(page);
  assert.notEqual(await answers(page).first().textContent(), first);
  await say(page, "And at night?");
  await isIdle(page);
  assert.equal(await answers(page).count(), 2);
  // Editing the first message takes away what came after it. Text is shown as text.
  await page.getByRole("button", { name: "Edit" }).first().click();
  const text = "<img src=x onerror=document.title='bad'><b>Hello</b>";
  await page.getByLabel("Edit the message").fill(text);
  await page.keyboard.press("Enter");
  await isIdle(page);
  assert.equal(await page.locator(".message").count(), 2);
  assert.equal(await page.locator(".message.user .text").textContent(), text);
  assert.equal(await page.locator("#messages img, #messages b").count(), 0);
  assert.equal(await page.title(), "fewbit");
});

test("a stop", async () => {
  await page.locator("#max-tokens").fill("");
  await page.locator("#clear").click();
  await say(page, "Tell me a very long story about a fox, a river and a mountain.");
  await page.waitForFunction(() => document.querySelector(".assistant .text:not(.reasoning)")?.textContent.length > 20);
  assert.equal(await page.locator("#send").isVisible(), false);
  await page.keyboard.press("Escape");
  await isIdle(page);
  await page.getByText("Stopped.").waitFor();
  const length = (await answers(page).first().textContent()).length;
  await page.waitForTimeout(300);
  assert.equal((await answers(page).first().textContent()).length, length);
});

/** Asks for an answer that takes long, from outside the page. */
const ask = (key) => fetch(`${URL}/v1/chat/completions`, {
  method: "POST",
  headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
  body: JSON.stringify({ stream: true, temperature: 0, messages: [{ role: "user", content: "Count to a million." }], logit_bias: { 2: -100, 0: -100 } }),
});

test("requests in progress, and cancelling one", async () => {
  await page.locator("h1").click();
  await page.keyboard.press("3");
  await page.getByText("No request is in progress.").waitFor();
  const response = await ask(KEY);
  const row = page.getByRole("row").filter({ hasText: "user" });
  await row.getByText("generating").waitFor();
  await row.getByRole("button", { name: /Cancel/ }).click();
  await page.getByText("No request is in progress.").waitFor();
  const text = await response.text();
  assert.match(text, /the request was cancelled on the server/);
  assert.doesNotMatch(text, /\[DONE\]/);
});

test("a key without /admin sees its own", async () => {
  const own = await open(KEY);
  await own.getByRole("tab", { name: "Requests" }).click();
  await own.getByText("Of your key").waitFor();
  const [mine, other] = await Promise.all([ask(KEY), ask(ADMIN)]);
  await own.getByText("generating").waitFor();
  assert.equal(await own.getByRole("button", { name: /Cancel/ }).count(), 1);
  await own.getByRole("button", { name: /Cancel/ }).click();
  assert.match(await mine.text(), /cancelled/);
  await other.body.cancel();
  await own.getByRole("tab", { name: "Audit log" }).click();
  await own.getByText("the key may not ask /admin/audit").waitFor();
  await own.close();
});

test("models", async () => {
  await page.getByRole("tab", { name: "Models" }).click();
  const row = page.getByRole("row").filter({ hasText: "small" });
  assert.match(await row.textContent(), /small(idle for \d+ s|in use by \d+)[\d,]+30 on cpu \([^)]+\), \d+ threads[\d,]+ MB[\d,]+ MB of [\d,]+ MB/);
  assert.match(await page.locator("#model-memory").textContent(), /take [\d,]+ MB\./);
  const cpu = page.locator("#device-table").getByRole("row").filter({ hasText: "the CPU (" });
  assert.match(await cpu.textContent(), /^cputhe CPU \([^)]+\)usable$/);
  await page.screenshot({ path: picture("models") });
  // A key without /admin sees the models, but not the machine.
  const own = await open(KEY);
  await own.getByRole("tab", { name: "Models" }).click();
  assert.match(await own.getByRole("row").filter({ hasText: "small" }).textContent(), /smallloaded/);
  assert.equal(await own.locator("#device-state").isVisible(), false);
  await own.close();
});

test("a plot of usage", async () => {
  await page.getByRole("tab", { name: "Usage" }).click();
  await page.locator("#plot rect").first().waitFor();
  assert.equal(await page.locator("#plot rect").count(), 2);
  assert.deepEqual((await page.locator("#legend li").allTextContents()).sort(), ["admin", "user"]);
  const height = async (i) => Number(await page.locator("#plot rect").nth(i).getAttribute("height"));
  assert.ok((await height(0)) > 0 && (await height(1)) > 0);
  await page.locator("#usage-what").selectOption("answers");
  const titles = await page.locator("#plot title").allTextContents();
  assert.ok(titles.every((title) => /^\d{4}-\d\d-\d\d, (admin|user): \d+$/.test(title)), titles.join());
  await page.screenshot({ path: picture("usage") });
});

/** Asks for an answer by a version of a prompt, for a feature. */
const askByPrompt = async (version, feature) => {
  const response = await fetch(`${URL}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${KEY}`, "content-type": "application/json" },
    body: JSON.stringify({
      prompt: { id: "story", version, variables: { animal: "fox" } },
      max_tokens: 4,
      metadata: { feature },
    }),
  });
  assert.equal(response.status, 200, await response.text());
};

test("plots by prompt and by feature", async () => {
  await askByPrompt("1", "search");
  await askByPrompt("2", "mail");
  await askByPrompt("2", "mail");
  await page.getByRole("tab", { name: "Usage" }).click();
  await page.locator("#usage-what").selectOption("answers");
  const titles = async (by) => {
    await page.locator("#usage-by").selectOption(by);
    return (await page.locator("#plot title").allTextContents()).map((title) => title.split(", ")[1]).sort();
  };
  const byPrompt = await titles("prompt");
  assert.deepEqual([byPrompt.length, byPrompt[1], byPrompt[2]], [3, "story@1: 1", "story@2: 2"]);
  assert.match(byPrompt[0], /^\(none\): \d+$/);
  const byFeature = await titles("feature");
  // What the page itself asked has its own feature.
  assert.deepEqual(byFeature.slice(1, 2).concat(byFeature.slice(3)), ["mail: 2", "search: 1"]);
  assert.match(byFeature[2], /^page: \d+$/);
  await page.screenshot({ path: picture("usage-by-feature") });
});

test("two versions of a prompt next to each other", async () => {
  await page.locator("h1").click();
  await page.keyboard.press("5");
  const row = (name) => page.locator("#prompt-figures tr").filter({ has: page.getByRole("cell", { name, exact: true }) });
  const figures = async (name) => (await row(name).locator("td").allTextContents()).slice(1);
  await row("Answers").waitFor();
  assert.deepEqual(await figures("Without a version"), ["promoted: 75 % of requests", "canary: 25 % of requests"]);
  assert.deepEqual(await figures("Answers"), ["1", "2"]);
  assert.deepEqual(await figures("for the features"), ["search", "mail"]);
  assert.deepEqual(await figures("Used by the keys"), ["user", "user"]);
  assert.deepEqual(await page.locator("#prompt-difference .removed").allTextContents(), ["−Be brief."]);
  assert.deepEqual(await page.locator("#prompt-difference .added").allTextContents(), ["+Be brief, and kind."]);
  assert.equal(await page.locator("#prompt-difference tbody tr").count(), 7);
  // The same version on both sides has no differences.
  await page.locator("#prompt-right").selectOption("1");
  await page.waitForFunction(() => document.querySelectorAll("#prompt-difference .removed").length === 0);
  await page.locator("#prompt-right").selectOption("2");
  await page.locator("#prompt-difference .added").waitFor();

  // Both are asked with the same variables and the same seed, which is what the server's own answers are.
  await page.getByLabel("animal").fill("<b>fox</b>");
  assert.equal(await page.getByLabel("tone").getAttribute("placeholder"), "friendly");
  await page.locator("#compare-seed").fill("7");
  await page.locator("#compare-tokens").fill("12");
  await page.getByRole("button", { name: "Ask both" }).click();
  await page.waitForFunction(() => [...document.querySelectorAll("#compare-answers header")].filter((head) => head.textContent.includes("12 tokens")).length === 2);
  const shown = await page.locator("#compare-answers .text").allTextContents();
  for (const [i, version] of ["1", "2"].entries()) {
    const response = await fetch(`${URL}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${ADMIN}`, "content-type": "application/json" },
      body: JSON.stringify({
        prompt: { id: "story", version, variables: { animal: "<b>fox</b>" } },
        max_tokens: 12,
        seed: 7,
      }),
    });
    assert.equal(shown[i], (await response.json()).choices[0].message.content);
  }
  assert.equal(await page.locator("#compare-answers b").count(), 0);
  await page.screenshot({ path: picture("prompts"), fullPage: true });
  // Both can be stopped.
  await page.locator("#compare-tokens").fill("");
  await page.getByRole("button", { name: "Ask both" }).click();
  await page.getByRole("button", { name: "Stop", exact: true }).click();
  await page.locator("#compare").waitFor();
  // A key without /admin may not see them.
  const own = await open(KEY);
  await own.getByRole("tab", { name: "Prompts" }).click();
  await own.getByText("the key may not ask /admin/prompts").waitFor();
  await own.close();
});

test("the audit log", async () => {
  await page.getByRole("tab", { name: "Audit log" }).click();
  assert.match(await page.locator("#head").textContent(), /^\d+:[0-9a-f]{64}$/);
  await page.getByRole("button", { name: "Verify every line" }).click();
  await page.getByText(/lines, unchanged/).waitFor();
});

/** Asks for an answer that calls the tool of the MCP server. */
const askForCall = (key) => fetch(`${URL}/v1/chat/completions`, {
  method: "POST",
  headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
  body: JSON.stringify({
    messages: [{ role: "user", content: "Write hello." }],
    max_tokens: 200,
    temperature: 0,
    tool_choice: { type: "function", function: { name: "notes__write" } },
  }),
});

test("approving and denying a call", async () => {
  await page.getByRole("tab", { name: "Approvals" }).click();
  await page.getByText("No call waits.").waitFor();
  for (const name of ["Approve", "Deny"]) {
    const asked = askForCall(KEY);
    await page.locator("#approval-list article").waitFor();
    assert.match(await page.locator("#approval-list article").textContent(), /notes__write.*user, small.*"text":/s);
    if (name === "Approve") await page.screenshot({ path: picture("approval") });
    assert.equal(existsSync(process.env.FEWBIT_NOTES), name === "Deny");
    await page.getByRole("button", { name }).click();
    await page.getByText("No call waits.").waitFor();
    assert.equal((await asked).status, 200);
    assert.equal(readFileSync(process.env.FEWBIT_NOTES, "utf8").length > 0, true);
  }
});

test("the keyboard alone, and dark mode", async () => {
  await page.locator("#tab-approvals").focus();
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.locator("#tab-chat").getAttribute("aria-selected"), "true");
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.emulateMedia({ colorScheme: "light" });
  const light = await background();
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await background();
  assert.notEqual(dark, light);
  await page.screenshot({ path: picture("dark") });
  await page.getByRole("tab", { name: "Usage" }).click();
  await page.locator("#plot rect").first().waitFor();
  await page.screenshot({ path: picture("dark-usage") });
  await page.getByRole("tab", { name: "Prompts" }).click();
  await page.locator("#prompt-difference .added").waitFor();
  await page.screenshot({ path: picture("dark-prompts"), fullPage: true });
});

test("the key is only in this tab, and nothing else was asked", async () => {
  const kept = await page.evaluate(() => [localStorage.length, document.cookie, sessionStorage.length]);
  assert.deepEqual(kept, [0, "", 1]);
  const other = await open(null);
  await other.getByText("This server asks for a key").waitFor();
  assert.equal(await other.evaluate(() => sessionStorage.length), 0);
  assert.deepEqual(wrong, []);
});
