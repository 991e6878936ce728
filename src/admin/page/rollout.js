// A service's rollout: why it stands still or goes on, the ramp's steps, and the guard's numbers.

function makeRollout() {
  const words = el("p", { class: "rollout-words" });
  const steps = el("ol", { class: "steps", "aria-label": "Steps of the ramp" });
  const guard = el("div", { class: "guard" });
  const node = el("section", { class: "rollout", "aria-label": "Rollout", hidden: true }, words, steps, guard);
  return { node, words, steps, guard };
}

const RAMP_WORDS = {
  running: "The ramp goes on",
  paused: "The ramp is paused",
  holding: "The ramp holds on",
  waiting: "The ramp waits",
  done: "The ramp is done",
  aborted: "The ramp was aborted",
};

/** A weight of a step: a share from 0 to 1, or text such as 5%. */
const stepShare = ({ weight, share }) => (typeof weight === "string" ? weight.replace(/\s*%/, "\u202f%") : percent(weight ?? share));

function showRollout(it, service) {
  const { rollout } = service;
  const ramp = rollout?.ramp;
  const sentences = [];
  if (ramp) sentences.push(`${RAMP_WORDS[ramp.state] ?? `Ramp: ${ramp.state}`}${ramp.why ? `: ${ramp.why}` : ""}.`);
  if (rollout?.paused) {
    const { who, reason } = rollout.paused;
    sentences.push(`Paused${who ? ` by ${who}` : ""}${reason ? `: ${reason}` : ""}.`);
  }
  for (const { version, deadlineSeconds, clientsLeft } of drainsOf(service)) {
    sentences.push(`${version} drains: ${plural(clientsLeft ?? 0, "client")} left${deadlineSeconds ? `, ${duration(deadlineSeconds)} until the deadline` : ""}.`);
  }
  if (rollout?.waiting) sentences.push(`The file's new weights wait for resume: ${weightsOf({ weights: rollout.waiting })}.`);
  if (rollout?.source === "verbs" && !ramp && !rollout.paused) {
    sentences.push(`Set at run time (revision ${rollout.revision}); the file says ${weightsOf({ weights: rollout.fileWeights })}.`);
  }
  it.node.hidden = sentences.length === 0;
  put(it.node, "data-state", ramp?.state ?? "none");
  say(it.words, sentences.join(" "));
  it.steps.hidden = !ramp;
  it.guard.hidden = !ramp?.guard;
  if (!ramp) return;
  const isOver = ramp.state === "done";
  keyed(it.steps, ramp.steps.map((step, number) => ({ step, number })), (s) => s.number, () => {
    const [share, hold] = [el("span", { class: "share" }), el("span", { class: "hold" })];
    const progress = el("progress", { max: "1", "aria-label": "Hold" });
    return { node: el("li", {}, share, progress, hold), share, hold, progress };
  }, (row, { step, number }) => {
    const state = isOver || number < ramp.step ? "past" : number === ramp.step ? "now" : "next";
    put(row.node, "data-state", state);
    put(row.node, "aria-current", state === "now" ? "step" : null);
    say(row.share, stepShare(step));
    const left = ramp.holdLeftSeconds ?? 0;
    const isTimed = state === "now" && step.holdSeconds > 0;
    row.progress.value = state === "past" ? 1 : isTimed ? Math.min(1, Math.max(0, 1 - left / step.holdSeconds)) : 0;
    say(row.hold, isTimed && ramp.state !== "aborted" ? (left > 0 ? `${duration(left)} left` : "hold is over") : step.holdSeconds ? duration(step.holdSeconds) : "");
  });
  showGuard(it.guard, ramp, service);
}

const GUARD_ROWS = [["requests", "Requests", grouped], ["errors", "Failed", null], ["p50", "p50", latency], ["p99", "p99", latency]];

function showGuard(node, ramp, service) {
  const { guard } = ramp;
  if (!guard) return;
  const stable = ramp.stable ?? stableOf(service);
  const canary = ramp.canary ?? likely(service);
  const cell = (value, show) => (value === null || value === undefined ? "–" : show(value));
  const rows = GUARD_ROWS.filter(([key]) => guard[key]).map(([key, title, show]) => {
    const of = (side) => {
      const value = guard[key][side];
      if (key !== "errors") return cell(value, show);
      const requests = guard.requests?.[side];
      return cell(value, (v) => (v > 1 || Number.isInteger(v) ? `${grouped(v)}${requests ? ` (${percent(v / requests)})` : ""}` : percent(v)));
    };
    return [title, of("stable"), of("canary")];
  });
  const verdict = [guard.verdict && `Guard: ${guard.verdict}`, guard.why].filter(Boolean).join(", ");
  const evidence = Object.entries(guard).filter(([key, value]) => /^e?value|evidence/i.test(key) && typeof value === "number");
  const words = [verdict, ...evidence.map(([key, value]) => `${key} ${Number(value.toPrecision(3))}`)].filter(Boolean).join("; ");
  const text = JSON.stringify([rows, words]);
  if (node.perchText === text) return;
  node.perchText = text;
  node.replaceChildren(table("What the guard compares in this step", ["This step", stable, canary], rows), el("p", { class: "muted" }, words));
}
