// What the browser test stands on: perch as a child, the browser, and checks that wait.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";

const require = createRequire(path.join(process.env.TOOLS, "/"));
export const { chromium } = require("playwright-core");
const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const PATIENCE = 20_000;
export const work = fs.mkdtempSync(path.join(os.tmpdir(), "perch-browser-"));
const children = [];

export function cleanUp() {
  for (const child of children) child.kill("SIGKILL");
  fs.rmSync(work, { recursive: true, force: true });
}

/** Waits until `condition` gives something, and gives that. */
export async function until(what, condition) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${PATIENCE / 1000} s: ${what}`);
    await new Promise((wake) => setTimeout(wake, 50));
  }
}

/** Starts perch and gives the child with what it has printed so far. */
export function perch(...args) {
  const child = spawn(process.env.PERCH, args, { stdio: ["ignore", "pipe", "pipe"] });
  child.said = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => { child.said += data; });
  children.push(child);
  return child;
}

/** `perch demo`: {admin, https}. */
export async function demo(...args) {
  const child = perch("demo", "--port", "0", "--admin-port", "0", ...args);
  await until("the demo serves", () => /\/metrics\n/.test(child.said) || (child.exitCode !== null && Promise.reject(new Error(child.said))));
  return { child, admin: child.said.match(/http:\/\/127\.0\.0\.1:\d+/)[0], https: child.said.match(/https:\/\/127\.0\.0\.1:\d+/)[0] };
}

/** `perch serve` of a configuration: its addresses. */
export async function serve(config) {
  const [file, announce] = [path.join(work, `perch-${children.length}.yaml`), path.join(work, `announce-${children.length}.json`)];
  fs.writeFileSync(file, config);
  const child = perch("serve", "--config", file, "--announce", announce);
  await until("perch serves", () => fs.existsSync(announce) || (child.exitCode !== null && Promise.reject(new Error(child.said))));
  const { admin, listeners } = JSON.parse(fs.readFileSync(announce, "utf8"));
  return { child, file, admin: `http://${admin}`, listeners };
}

/** Runs perch to its end. */
export async function run(...args) {
  const child = perch(...args);
  const code = await new Promise((done) => child.on("exit", done));
  if (code !== 0) throw new Error(`perch ${args.join(" ")} ended with ${code}: ${child.said}`);
  return child.said;
}

export function ask(url, body) {
  return new Promise((done, failed) => {
    const options = body ? { method: "POST", headers: { "content-type": "application/json" } } : {};
    const request = http.request(url, options, (answer) => {
      let text = "";
      answer.on("data", (data) => { text += data; });
      answer.on("end", () => done({ status: answer.statusCode, headers: answer.headers, text, json: () => JSON.parse(text) }));
    });
    request.on("error", failed);
    request.end(body ? JSON.stringify(body) : undefined);
  });
}

/** A page whose console and requests are watched: `page.wrong` collects what should not be. */
export async function open(browser, admin, { scheme = "light", width = 1280, height = 900, status = null, may = () => false } = {}) {
  const context = await browser.newContext({ colorScheme: scheme, viewport: { width, height }, reducedMotion: "reduce" });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.wrong = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !may(message.text())) page.wrong.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => page.wrong.push(`script: ${error.message}`));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol !== "data:" && url.origin !== admin) page.wrong.push(`request to ${url}`);
  });
  if (status) {
    const text = Object.entries(status).map(([event, data]) => `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`).join("");
    await page.route("**/api/v1/events", (route) => route.fulfill({ contentType: "text/event-stream", body: text }));
  }
  await page.goto(`${admin}/`);
  await page.waitForSelector(".versions tbody tr");
  return page;
}

/** axe-core's findings, as text. The script runs outside of the page's policy, as a debugger's does. */
export async function accessibility(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  return violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => `${n.target} ${n.any[0]?.message ?? ""}`).join(" | ")}`);
}

export const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
