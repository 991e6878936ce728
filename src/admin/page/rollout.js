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

/** Of a step, as it is written in the configuration: 5%. */
const stepShare = ({ weight }) => weight.replace(/\s*%$/, "\u202f%");

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
    const now = stepNumber(ramp) - 1;
    const state = isOver || number < now ? "past" : number === now ? "now" : "next";
    put(row.node, "data-state", state);
    put(row.node, "aria-current", state === "now" ? "step" : null);
    say(row.share, stepShare(step));
    const left = ramp.holdLeftSeconds ?? 0;
    const isTimed = state === "now" && step.holdSeconds > 0;
    row.progress.value = state === "past" ? 1 : isTimed ? Math.min(1, Math.max(0, 1 - left / step.holdSeconds)) : 0;
    say(row.hold, isTimed && ramp.state !== "aborted" ? (left > 0 ? `${duration(left)} left` : "hold is over") : step.holdSeconds ? duration(step.holdSeconds) : "");
  });
  showGuard(it.guard, ramp);
}

const GUARD_ROWS = [["requests", "Requests", grouped], ["errors", "Failed", grouped], ["p50", "p50", latency], ["p90", "p90", latency], ["p99", "p99", latency]];

/** An e-value: how much more likely what was seen is if the canary is worse. */
const evidence = (value) => (value >= 100 ? grouped(value) : String(Number(value.toPrecision(2))));

function showGuard(node, ramp) {
  const { guard, stable, canary } = ramp;
  if (!guard) return;
  const tests = new Map(guard.tests.map((test) => [test.metric, test.eValue]));
  const value = (key, side, show) => {
    const n = guard[key][side];
    if (n === null) return "–";
    return key === "errors" ? `${grouped(n)} (${percent(guard.errorRatio[side])})` : show(n);
  };
  const rows = GUARD_ROWS.filter(([key]) => key !== "p90" || tests.has("p90")).map(([key, title, show]) => [
    title, value(key, "stable", show), value(key, "canary", show), tests.has(key) ? evidence(tests.get(key)) : "",
  ]);
  const words = [
    // What holds or ended the ramp is above already.
    `The guard says ${guard.verdict.replaceAll("-", " ")}${guard.why && guard.why !== ramp.why ? `: ${guard.why}` : ""}.`,
    `Evidence of ${evidence(guard.suspectAt)} is suspect, of ${evidence(guard.abortAt)} aborts; a step needs ${plural(guard.minRequests, "request")} of each side.`,
  ].join(" ");
  const text = JSON.stringify([rows, words]);
  if (node.perchText === text) return;
  node.perchText = text;
  node.replaceChildren(table("What the guard compares in this step", ["This step", stable, canary, "Evidence"], rows), el("p", { class: "muted" }, words));
}
