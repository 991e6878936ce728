// A guarded ramp under load, watched on the page: step by step, and aborted by itself once the canary gets worse. With
// SHOTS it takes five minutes more, so that the charts are full, and gives the pictures of the documentation.

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";

import { ask, open, perch, run, serve, until } from "./support.mjs";

const SHOTS = process.env.SHOTS;
const PACE = SHOTS ? { holds: [100, 320], shown: 150, settle: "5s" } : { holds: [2, 300], shown: 0, settle: "1s" };

/** A sample service: its address. */
async function backend(...args) {
  const child = perch("backend", ...args);
  const said = () => child.said.match(/http:\/\/(127\.0\.0\.1:\d+)/)?.[1];
  return await until("the sample service serves", said);
}

const configuration = ({ stable, canary, auth }) => `
admin: {address: '127.0.0.1:0'}
accessLog: {format: off}
listeners: [{name: http, address: '127.0.0.1:0', trustedProxies: [127.0.0.0/8]}]
routes:
- {matches: [{path: {type: Exact, value: /login}}], service: auth}
- {service: hello}
services:
- name: hello
  affinity: ClientIP
  versions:
  - {name: stable, weight: 100, endpoints: [${stable.map((a) => `'${a}'`)}]}
  - {name: canary, weight: 0, endpoints: ['${canary}']}
  rollout:
    settle: ${PACE.settle}
    steps: [{weight: 5%, hold: ${PACE.holds[0]}s}, {weight: 25%, hold: ${PACE.holds[1]}s}, {weight: 50%, hold: 10m}, {weight: 100%}]
    guard: {minRequests: 20, latencyTolerance: 500%}
- name: auth
  versions: [{name: stable, endpoints: ['${auth}']}]
`;

const card = (selector) => `#service-hello ${selector}`;
const text = (page, selector) => page.locator(selector).first().innerText();

/** Down to the end of the service, as far as it fits on the screen. */
async function shot(page, name) {
  const { width, height } = page.viewportSize();
  const end = await page.locator("#service-hello").evaluate((card) => card.getBoundingClientRect().bottom);
  await page.screenshot({ path: path.join(SHOTS, `${name}.png`), clip: { x: 0, y: 0, width, height: Math.min(height, Math.ceil(end) + 14) } });
}

export async function ramps({ browser }) {
  const hello = (version, ...more) => backend("hello", "--version", version, "--delay", "4ms", ...more);
  const healthy = ["--fail-rate", SHOTS ? "0.0015" : "0"];
  const [stable, other, canary, broken, auth] = await Promise.all([
    hello("1.0.0", ...healthy), hello("1.0.0", ...healthy), hello("1.1.0", ...healthy), hello("1.1.0", "--fail-rate", "0.08"), backend("auth"),
  ]);
  const config = { stable: [stable, other], canary, auth };
  const { file, admin, listeners } = await serve(configuration(config));
  const load = (target, rate, seconds) => run("load", `http://${listeners.http}${target}`, "--identity", "xff", "--from", "198.18.0.0/15", "--clients", "2000",
    "--requests", "100000", "--rate", `${rate}`, "--duration", `${seconds}s`, "--max-errors", "100%", "--version-from", "none", "--quiet").catch(() => {});
  const lasts = PACE.holds[0] + PACE.shown + 60;
  const loads = [load("/", 60, lasts), load("/login", 3, lasts)];

  const page = await open(browser, admin, { width: 1120, height: 1150 });
  await until("the load is seen", async () => (await ask(`${admin}/api/v1/services/hello`)).json().clients > 100);
  await page.click(card('[data-verb="guarded"]'));
  await page.waitForSelector("#change-go:not([disabled])");
  await page.fill("#change-reason", "release 1.1.0");
  await page.click("#change-go");
  await page.waitForSelector(card('.badge:has-text("Ramp, step 1 of 4")'));
  assert.match(await text(page, card('.versions tr:has(.name:text-is("canary")) .set')), /^5\s%/);
  await page.waitForSelector(card('.guard tr:has-text("Requests")'));
  console.log("ok: a guarded ramp begins from the page, and the guard's numbers are shown");

  const more = SHOTS ? [load("/", 35, 70)] : [];
  await page.waitForSelector(card('.badge:has-text("Ramp, step 2 of 4")'), { timeout: (PACE.holds[0] + 60) * 1000 });
  await page.waitForSelector(card('.steps li[aria-current=step]:has-text("25")'));
  console.log("ok: the next step is seen when the hold is over");
  if (SHOTS) {
    await page.waitForTimeout(PACE.shown * 500);
    more.push(load("/", 25, PACE.shown / 3));
    await page.waitForTimeout(PACE.shown * 500);
    await shot(page, "dashboard");
    const phone = await open(browser, admin, { scheme: "dark", width: 390, height: 1000 });
    await phone.waitForSelector('#link[data-state="live"]');
    await phone.waitForTimeout(3000);
    await shot(phone, "dashboard-phone");
    await phone.context().close();
  }

  // The next build of the canary is a bad one.
  fs.writeFileSync(file, configuration({ ...config, canary: broken }));
  await page.waitForSelector(card('.badge:has-text("Aborted")'), { timeout: 60_000 });
  assert.match(await text(page, card(".rollout-words")), /^The ramp was aborted: canary failed .* evidence /);
  assert.equal(await page.locator("#verdict").getAttribute("data-level"), "bad");
  await page.waitForSelector(card('.versions tr:has(.name:text-is("canary")) .set:has-text("0")'));
  console.log("ok: a canary that fails is aborted by itself, and the page says so with the numbers");
  if (SHOTS) {
    const dark = await open(browser, admin, { scheme: "dark", width: 1120, height: 1150 });
    await dark.waitForTimeout(12_000);
    await shot(dark, "dashboard-aborted");
    await dark.context().close();
  }
  assert.deepEqual(page.wrong, []);
  await page.context().close();
  if (SHOTS) await Promise.all([...loads, ...more]);
}
