// What is wrong, worst first: pure functions of the status. Levels: bad (someone must act), warn (look), note (know).

const DAY = 86400;
/** Shares of failed requests in the last minute that deserve a look, and an action. */
const ERRORS_WARN = 0.01;
const ERRORS_BAD = 0.05;
/** Fewer requests in the minute than this prove nothing. */
const FEW_REQUESTS = 30;

/** While it is paused every version is held, which is no drain. */
const drainsOf = ({ rollout }) => (!rollout || rollout.paused ? [] : rollout.drains ?? []);

const isTaking = (version) => version.weight > 0;
const isEmpty = (version) => version.endpointsReady === 0;

function troublesOfProcess(status) {
  const { process, replicas = [] } = status;
  const found = [];
  const add = (level, words, more) => found.push({ level, words, more, service: null });
  if (!process) return found;
  if (process.reload.error) {
    add("bad", "The new configuration was refused; the one before stays in force", process.reload.error);
  }
  if (process.draining) add("warn", "This perch is draining: it takes no new traffic and will end");
  else if (!process.ready) add("bad", `Not ready: waiting for ${list(process.waitingFor)}`);
  if (process.certificate) {
    const { name, listener, notAfterSeconds } = process.certificate;
    const left = notAfterSeconds - Date.now() / 1000;
    const what = `The certificate ${name} of listener ${listener}`;
    if (left <= 0) add("bad", `${what} has expired`);
    else if (left < 7 * DAY) add(left < DAY ? "bad" : "warn", `${what} expires in ${duration(left)}`);
  }
  if (replicas.length > 1) {
    const sequences = new Set(replicas.map((r) => r.sequence));
    if (sequences.size > 1) add("bad", `The replicas disagree: ${replicas.map((r) => `${r.name} is at decision ${r.sequence}`).join(", ")}`);
    for (const replica of replicas.filter((r) => r.seenSeconds > 15)) {
      add("warn", `Replica ${replica.name} was last seen ${duration(replica.seenSeconds)} ago`);
    }
  }
  if (process.pins.missed > 0) {
    add("note", `${plural(process.pins.missed, "client")} could not be remembered: the table is full (pins.maxEntries)`);
  }
  return found;
}

function troublesOf(service) {
  const found = [];
  const add = (level, words, more) => found.push({ level, words, more, service: service.name });
  const { rollout } = service;
  const unexplained = service.flips?.unexplained ?? 0;
  if (unexplained > 0) add("bad", `${plural(unexplained, "client")} changed version without a reason`, "Unexplained flips must never happen; please report them");
  if (rollout?.ramp?.state === "aborted") add("bad", "The ramp was aborted", rollout.ramp.why);
  for (const version of service.versions) {
    const { name, recent, endpointsReady, endpointsTotal } = version;
    if (isTaking(version) && isEmpty(version)) {
      const what = endpointsTotal === 0 ? "has no endpoint" : `has none of its ${plural(endpointsTotal, "endpoint")} ready`;
      add("bad", `${name} ${what}`, service.whenEmpty === "fail" || service.versions.length < 2 ? "Its clients get errors" : "Its clients are served by the other versions");
    } else if (isTaking(version) && endpointsReady < endpointsTotal) {
      add("warn", `${name}: ${endpointsReady} of ${plural(endpointsTotal, "endpoint")} ready`);
    }
    const requests = recent.requestsPerSecond * 60;
    if (requests >= FEW_REQUESTS && recent.errorRatio >= ERRORS_WARN) {
      add(recent.errorRatio >= ERRORS_BAD ? "bad" : "warn", `${name}: ${percent(recent.errorRatio)} of the requests fail`, `At ${rate(recent.requestsPerSecond)} requests per second in the last minute`);
    }
  }
  if (rollout) {
    if (rollout.ramp?.state === "holding") add("warn", "The ramp holds on", rollout.ramp.why);
    if (rollout.waiting) add("warn", "The file has new weights that wait for resume");
    if (rollout.paused) add("note", "Paused: nobody moves");
    for (const drain of drainsOf(service)) add("note", `${drain.version} drains: ${plural(drain.clientsLeft ?? 0, "client")} left`);
  }
  return found;
}

const LEVELS = ["bad", "warn", "note"];
const worst = (troubles) => LEVELS.find((level) => troubles.some((t) => t.level === level)) ?? "good";

function troubles(status) {
  const all = [...troublesOfProcess(status), ...status.services.flatMap(troublesOf)];
  return LEVELS.flatMap((level) => all.filter((t) => t.level === level));
}

/** The state of a service in a word or two, for its badge. */
function stateOf(service) {
  const { rollout } = service;
  const level = worst(troublesOf(service));
  const ramp = rollout?.ramp;
  if (ramp?.state === "aborted") return { words: "Aborted", level: "bad" };
  if (level === "bad") return { words: "Trouble", level };
  if (rollout?.paused) return { words: "Paused", level: "note" };
  if (ramp && ["running", "paused", "holding", "waiting"].includes(ramp.state)) {
    const words = { running: "Ramp", paused: "Ramp paused", holding: "Ramp holds", waiting: "Ramp waits" }[ramp.state];
    return { words: `${words}, step ${stepNumber(ramp)} of ${ramp.steps.length}`, level: level === "warn" ? "warn" : "busy" };
  }
  if (drainsOf(service).length) return { words: "Draining", level: "note" };
  if (level === "warn") return { words: "Look", level };
  return { words: "Steady", level: "good" };
}

/** For people, who count from 1. */
const stepNumber = (ramp) => Math.min(ramp.step + 1, ramp.steps.length);

/** Shows the verdict where it is seen first: at the top, in the title and on the tab's icon; says new alarms aloud. */
function showVerdict(status) {
  const all = troubles(status);
  const level = worst(all);
  const urgent = all.filter((t) => t.level !== "note");
  const calm = status.services.length
    ? `All well: ${plural(status.services.length, "service")}, ${rate(sum(status.services, (s) => sum(s.versions, (v) => v.recent.requestsPerSecond)))} requests per second`
    : "No services are configured";
  put($("verdict"), "data-level", level);
  const bad = all.filter((t) => t.level === "bad").length;
  say($("verdict-words"), bad ? `${plural(bad, "problem")}` : urgent.length ? `${plural(urgent.length, "thing")} to look at` : calm);
  $("verdict-list").hidden = all.length === 0;
  keyed($("verdict-list"), all, (t) => `${t.level} ${t.service} ${t.words.replace(/[\d.,]+/g, "#")}`, () => {
    const parts = { level: el("span", { class: "level" }), where: el("a"), words: el("span"), more: el("span", { class: "more" }) };
    return { ...parts, node: el("li", {}, parts.level, el("span", { class: "what" }, parts.where, parts.words, parts.more)) };
  }, (it, { level, words, more, service }) => {
    put(it.node, "data-level", level);
    say(it.level, { bad: "Problem", warn: "Look", note: "Note" }[level]);
    it.where.hidden = !service;
    if (service) {
      put(it.where, "href", `#service-${service}`);
      say(it.where, service);
    }
    say(it.words, words);
    say(it.more, more ?? "");
  });
  say(document.querySelector("title"), bad ? `(${bad}) perch: trouble` : urgent.length ? `(${urgent.length}) perch` : "perch");
  const colour = { bad: "%23c62828", warn: "%23b26a00", note: "%232e7d4f", good: "%232e7d4f" }[level];
  put($("icon"), "href", `data:image/svg+xml,<svg xmlns='http:%2F%2Fwww.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='7' fill='${colour}'/></svg>`);
  announce(all.filter((t) => t.level === "bad"));
}

const sum = (items, of) => items.reduce((so_far, item) => so_far + of(item), 0);

let announced = new Set();

/** A screen reader hears of a problem once, when it begins. */
function announce(bad) {
  const now = new Map(bad.map((t) => [`${t.service} ${t.words.replace(/[\d.,]+/g, "#")}`, t]));
  const fresh = [...now].filter(([key]) => !announced.has(key)).map(([, t]) => [t.service, t.words, t.more].filter(Boolean).join(": "));
  announced = new Set(now.keys());
  if (fresh.length) say($("alarm"), fresh.join(". "));
}
