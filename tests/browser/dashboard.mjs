// The dashboard, driven as an operator would. Each step says a fact; the first that does not hold ends the run.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";

import { accessibility, ask, chromium, cleanUp, demo, open, overflow, run, serve, until } from "./support.mjs";
import { ramping, troubled } from "./pictures.mjs";
import { ramps } from "./ramp.mjs";

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const SHOTS = process.env.SHOTS;

const ok = (fact) => console.log(`ok: ${fact}`);
const text = (page, selector) => page.locator(selector).first().innerText();
const service = (name) => `#service-${name}`;
const row = (name, version) => `${service(name)} .versions tr:has(.name:text-is("${version}"))`;
const verb = (name, word) => `${service(name)} [data-verb="${word}"]`;

async function shot(page, name) {
  if (SHOTS) await page.screenshot({ path: path.join(SHOTS, `${name}.png`), fullPage: true });
}

async function wellBehaved(page, fact) {
  assert.deepEqual(page.wrong, [], fact);
  assert.deepEqual(await accessibility(page), [], fact);
  assert.equal(await overflow(page), 0, `${fact}: it scrolls sideways`);
  ok(fact);
}

/** The canary has this share: weights are kept in millionths. */
const has = async (admin, share) => {
  const { versions } = (await ask(`${admin}/api/v1/services/hello`)).json();
  assert.ok(Math.abs(versions[1].share - share) < 1e-6, `${versions[1].share} is not ${share}`);
};

/** The dialog shows what would happen and lets it happen. */
const previewed = (page) => page.waitForSelector("#change-go:not([disabled])");

async function watches({ browser, admin }) {
  const page = await open(browser, admin);
  await page.waitForSelector('#link[data-state="live"]');
  assert.match(await text(page, "#verdict-words"), /^All well: 2 services/);
  assert.equal(await page.locator("#verdict").getAttribute("data-level"), "good");
  assert.match(await text(page, `${row("hello", "canary")} .set`), /^25\s%/);
  const shown = Number((await text(page, `${row("hello", "canary")} .clients .value`)).replace(",", ""));
  const listed = (await ask(`${admin}/api/v1/services/hello`)).json().versions[1].clients;
  assert.equal(shown, listed);
  assert.match(await page.locator(`${row("hello", "canary")} .gauge`).getAttribute("aria-label"), /Set to 25.%; measured .* at 95 % confidence/);
  ok("the page is live and shows the split as set and as measured");
  await until("the charts have lines", async () => (await page.locator(`${service("hello")} .chart .line`).first().getAttribute("d"))?.length > 10);
  for (const summary of await page.locator(`${service("hello")} summary`).all()) if (await summary.isVisible()) await summary.click();
  await page.waitForSelector(`${service("hello")} .fold:has-text("Heaviest clients") tbody tr`);
  assert.match(await text(page, `${service("hello")} .fold:has-text("Heaviest clients") tbody th`), /^127\.\d+\.\d+\.\d+\/32$/);
  await page.waitForSelector(`${service("hello")} .endpoints li`);
  await page.waitForSelector(`${service("hello")} .numbers tbody tr`);
  await wellBehaved(page, "charts, endpoints and heavy clients are there; nothing foreign, nothing wrong, accessible");
  await page.context().close();
}

async function explains({ browser, admin }) {
  const page = await open(browser, admin);
  await page.fill('#explain [name="ip"]', "127.0.0.7");
  await page.press('#explain [name="ip"]', "Enter");
  await page.waitForSelector("#explained .headline");
  const said = (await ask(`${admin}/api/v1/explain?ip=127.0.0.7`)).json();
  assert.match(await text(page, "#explained .headline"), new RegExp(`127\\.0\\.0\\.7 gets ${said.version} of hello, by the split`));
  assert.equal(await page.locator("#explained .reasons li").count(), said.reasoning.length);
  await page.fill('#explain [name="ip"]', "<img src=x onerror=alert(1)>");
  await page.press('#explain [name="ip"]', "Enter");
  await page.waitForSelector("#explained .error:has-text('<img')");
  page.wrong = page.wrong.filter((w) => !/400 \(Bad Request\)/.test(w));
  await wellBehaved(page, "explain answers in words, and markup stays text");
  await page.context().close();
}

async function changes({ browser, admin }) {
  const page = await open(browser, admin);
  const clients = (await ask(`${admin}/api/v1/services/hello`)).json().clients;
  await page.click(verb("hello", "weights"));
  await page.waitForSelector("#change[open]");
  await page.fill('#change [name="share"]', "50");
  await page.waitForSelector(`#change-preview:has-text("of ${clients} recently seen clients")`);
  await until("the preview is of 50 %", async () => /canary\s+25.%\s+50.%/.test(await text(page, "#change-preview")));
  assert.match(await text(page, "#change-preview .moves"), /^\d+ of \d+ recently seen clients move \(\d+ from stable to canary\)/);
  await has(admin, 0.25);
  await wellBehaved(page, "the dialog shows who would move, before anybody moves, and is accessible");
  if (SHOTS) await page.screenshot({ path: path.join(SHOTS, "dialog.png") });
  await page.fill("#change-reason", "the browser test");
  await previewed(page);
  await page.click("#change-go");
  await page.waitForSelector("#change:not([open])", { state: "attached" });
  await page.waitForSelector(`${row("hello", "canary")} .set:has-text("50")`);
  await has(admin, 0.5);
  const history = (await ask(`${admin}/api/v1/services/hello/history`)).json();
  assert.equal(history.find((r) => r.current).reason, "the browser test");
  ok("a weight is set, with its reason");

  await page.click(verb("hello", "weights"));
  await page.fill('#change [name="share"]', "60");
  await until("the preview is of 60 %", async () => /50.%\s+60.%/.test(await text(page, "#change-preview")));
  await previewed(page);
  await ask(`${admin}/api/v1/services/hello/weights`, { weights: { canary: "30%" } });
  await page.click("#change-go");
  await page.waitForSelector("#change-error:has-text('Now: stable 70')");
  await has(admin, 0.3);
  await previewed(page);
  assert.match(await text(page, "#change-preview"), /30.%\s+60.%/);
  await page.click("#change-go");
  await page.waitForSelector(`${row("hello", "canary")} .set:has-text("60")`);
  page.wrong = page.wrong.filter((w) => !/409 \(Conflict\)/.test(w));
  ok("who was too late is shown the current state and has to look again");

  await page.click(verb("hello", "pause"));
  await previewed(page);
  await page.click("#change-go");
  await page.waitForSelector(`${service("hello")} .badge:has-text("Paused")`);
  await page.click(verb("hello", "resume"));
  await previewed(page);
  await page.click("#change-go");
  await page.waitForSelector(`${service("hello")} .badge:has-text("Steady")`);
  ok("pause and resume");

  await page.click(verb("hello", "abort"));
  await previewed(page);
  assert.match(await text(page, "#change-preview"), /canary\s+60.%\s+0.%/);
  await page.click("#change-go");
  await page.waitForSelector(`${row("hello", "stable")} .set:has-text("100")`);
  await has(admin, 0);
  ok("abort");
  await page.click(verb("hello", "undo"));
  await previewed(page);
  await page.click("#change-go");
  await page.waitForSelector(`${row("hello", "canary")} .set:has-text("60")`);
  await wellBehaved(page, "undo; and nothing went wrong on the way");
  await page.context().close();
}

async function keyboard({ browser, admin }) {
  const page = await open(browser, admin);
  await page.waitForSelector(verb("hello", "weights"));
  const seen = [];
  const focused = () => page.evaluate(() => document.activeElement?.dataset.verb ?? document.activeElement?.textContent.trim().slice(0, 30));
  for (let n = 0; n < 40 && seen.at(-1) !== "weights"; n += 1) {
    await page.keyboard.press("Tab");
    seen.push(await focused());
  }
  assert.equal(seen[0], "Skip to the services");
  assert.equal(seen.at(-1), "weights", `Tab went to ${seen}`);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#change[open]");
  assert.equal(await page.evaluate(() => document.activeElement.name), "share");
  await page.keyboard.press("Control+a");
  await page.keyboard.type("35");
  await until("the preview follows the keys", async () => /35.%/.test(await text(page, "#change-preview")));
  await previewed(page);
  await page.keyboard.press("Enter");
  await page.waitForSelector(`${row("hello", "canary")} .set:has-text("35")`);
  assert.equal(await focused(), "weights");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#change[open]");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#change:not([open])", { state: "attached" });
  assert.equal(await focused(), "weights");
  ok("keyboard only: reach, change, cancel; focus comes back");
  await page.context().close();
}

async function looks({ browser, admin }) {
  const status = (await ask(`${admin}/api/v1/services`)).json();
  const recent = { stepSeconds: 5, services: {} };
  for (const [scheme, width, name] of [["light", 1280, "light"], ["dark", 1280, "dark"], ["light", 360, "phone"], ["dark", 360, "phone-dark"], ["light", 800, "tablet"]]) {
    const page = await open(browser, admin, { scheme, width, height: width < 500 ? 740 : 900 });
    await page.waitForSelector('#link[data-state="live"]');
    await shot(page, name);
    await wellBehaved(page, `${name}: no sideways scrolling, accessible`);
    await page.context().close();
    for (const [state, picture] of [["ramp", ramping(status)], ["trouble", troubled(status)]]) {
      const page = await open(browser, admin, { scheme, width, status: { status: picture, recent } });
      if (state === "ramp") {
        assert.match(await text(page, `${service("hello")} .badge`), /Ramp, step 2 of 5/);
        assert.equal(await page.locator(".steps li[aria-current=step] .share").innerText(), "5\u202f%");
      } else {
        assert.equal(await page.locator("#verdict").getAttribute("data-level"), "bad");
        assert.match(await page.title(), /^\(\d\) perch: trouble$/);
        for (const words of ["changed version without a reason", "configuration was refused", "replicas disagree", "ramp was aborted", "stable has none of its 1 endpoint ready", "of the requests fail"]) {
          assert.ok((await text(page, "#verdict-list")).includes(words), words);
        }
        assert.match(await page.locator("#alarm").textContent(), /aborted/);
      }
      await shot(page, `${name}-${state}`);
      await wellBehaved(page, `${name}, ${state}: seen at once, accessible`);
      await page.context().close();
    }
  }
}

async function guards({ browser }) {
  const { child, file, admin } = await serve(`
admin: {address: '127.0.0.1:0', token: s3cret}
accessLog: {format: off}
listeners: [{name: http, address: '127.0.0.1:0'}]
routes: [{service: hello}]
services:
- name: hello
  versions:
  - {name: stable, weight: 90, endpoints: ['127.0.0.1:1']}
  - {name: canary, weight: 10, endpoints: ['127.0.0.1:2']}
`);
  const page = await open(browser, admin, { may: (said) => /40[13] \(|ERR_|Failed to load/.test(said) });
  assert.match(await text(page, "#access"), /Read-only/);
  assert.equal(await page.locator(verb("hello", "weights")).isVisible(), false);
  ok("without the token the page is read-only");
  const enter = async (token) => {
    await page.click("#access-button");
    await page.fill("#token-value", token);
    await page.keyboard.press("Enter");
  };
  await enter("guess");
  await page.click(verb("hello", "abort"));
  await page.waitForSelector("#change-error:has-text('not the token')");
  assert.equal(await page.locator("#change-go").isDisabled(), true);
  await page.click("#change-cancel");
  await page.click("#access-button");
  await enter("s3cret");
  await page.click(verb("hello", "abort"));
  await previewed(page);
  await page.click("#change-go");
  await page.waitForSelector(`${row("hello", "stable")} .set:has-text("100")`);
  assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie]), [0, ""]);
  ok("a wrong token is told, the right one opens the verbs, and neither leaves the tab");

  fs.writeFileSync(file, fs.readFileSync(file, "utf8").replace("weight: 10", "weight: -3"));
  await page.waitForSelector('#verdict[data-level="bad"] :text("-3 is negative")');
  ok("a refused reload is seen at once");
  child.kill("SIGKILL");
  await page.waitForSelector('#link[data-state="stale"]');
  assert.match(await text(page, "#link"), /Disconnected: as of/);
  ok("a perch that is gone is seen, and the old picture is marked as old");
  assert.deepEqual(page.wrong, []);
  await page.context().close();
}

async function policy({ admin }) {
  const { headers, text } = await ask(`${admin}/`);
  assert.match(headers["content-type"], /^text\/plain/);
  assert.match(text, /^perch admin/);
  ok("who is no browser gets text");
}

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS, headless: true });
try {
  const { child, admin, https } = await demo("--canary", "25");
  await run("load", `${https}/version`, "--insecure", "--quiet", "--clients", "200", "--requests", "3");
  for (const step of [policy, watches, explains, changes, keyboard, looks, guards, ramps]) await step({ browser, admin, child });
  console.log("ok: all of it");
} catch (problem) {
  console.error(`FAILED: ${problem.stack}`);
  process.exitCode = 1;
} finally {
  await browser.close();
  cleanUp();
}
