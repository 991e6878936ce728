// Numbers as people read them. \u202f keeps a number and its unit on one line.

const GROUPED = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

const grouped = (n) => GROUPED.format(n);

/** 0.1 is 10 %. Small shares keep two digits that count. */
function percent(share, digits = 2) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  const value = share * 100;
  const fraction = value === 0 || value >= 99.995 ? 0 : value < 1 ? digits : value < 10 ? digits : digits - 1;
  return `${Number(value.toFixed(Math.max(0, fraction)))}\u202f%`;
}

/** 9.6–10.8 */
const range = (low, high) => `${(low * 100).toFixed(1)}–${(high * 100).toFixed(1)}\u202f%`;

function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  if (perSecond === 0) return "0";
  if (perSecond < 10) return String(Number(perSecond.toPrecision(2)));
  return grouped(perSecond);
}

/** Of a request: 3.99 ms. */
function latency(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)}\u202fµs`;
  if (seconds < 1) return `${Number((seconds * 1e3).toPrecision(3))}\u202fms`;
  return `${Number(seconds.toPrecision(3))}\u202fs`;
}

/** Of time that passes: 4 min 10 s. */
function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}\u202fs`;
  if (s < 3600) return s % 60 ? `${Math.floor(s / 60)}\u202fmin ${s % 60}\u202fs` : `${s / 60}\u202fmin`;
  if (s < 86400) {
    const minutes = Math.round((s % 3600) / 60);
    return minutes ? `${Math.floor(s / 3600)}\u202fh ${minutes}\u202fmin` : `${Math.floor(s / 3600)}\u202fh`;
  }
  return `${Math.round(s / 86400)} days`;
}

function ago(unixSeconds) {
  const s = Date.now() / 1000 - unixSeconds;
  return s < 5 ? "just now" : `${duration(s < 3600 ? s : Math.round(s / 60) * 60)} ago`;
}

const when = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleString();

/** "one thing", "two things": plural(1, "client") is "1 client". */
const plural = (n, one, many = `${one}s`) => `${grouped(n)} ${n === 1 ? one : many}`;

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const list = (names) => new Intl.ListFormat("en-GB").format(names);

/** A version's colour, the same everywhere: its name's own where it has one. */
const NAMED = { stable: "blue", blue: "blue", canary: "amber", green: "green" };
const OTHERS = ["violet", "teal", "rose", "slate", "amber", "green"];

function tints(service) {
  const tints = new Map();
  for (const { name } of service.versions) if (NAMED[name]) tints.set(name, NAMED[name]);
  let next = 0;
  for (const { name } of service.versions) if (!tints.has(name)) tints.set(name, OTHERS[next++ % OTHERS.length]);
  return tints;
}
