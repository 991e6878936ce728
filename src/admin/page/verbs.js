// The verbs: what each asks for, a preview of who moves, and the change itself, compare-and-set by generation.

const TOKEN = "perch-token";
const token = () => sessionStorage.getItem(TOKEN);

const field = (label, input) => el("label", {}, label, " ", input);
const choice = (name, options, chosen) =>
  el("select", { name }, ...options.map(([value, words]) => el("option", { value, selected: value === chosen }, words)));
const names = (service) => service.versions.map((v) => [v.name, `${v.name} (${percent(v.share)} now)`]);

/** The version that a person most likely means: as perch itself guesses it. */
function likely(service) {
  const stable = stableOf(service);
  return (service.versions.find((v) => v.name === "canary" && v.name !== stable) ?? service.versions.find((v) => v.name !== stable) ?? service.versions[0]).name;
}

const stableOf = (service) =>
  service.rollout?.stable || service.versions.reduce((best, v) => (v.weight > best.weight ? v : best)).name;

function decrease() {
  const how = choice("onDecrease", [["", "as configured"], ["evict", "move at once"], ["drain", "stay until idle or the deadline"], ["freeze", "stay; only new clients follow the weights"]], "");
  const deadline = el("input", { name: "deadline", value: "10m", size: "6", autocomplete: "off" });
  const deadlineField = field("Deadline", deadline);
  const show = () => { deadlineField.hidden = how.value !== "drain" && how.value !== "freeze"; };
  how.addEventListener("change", show);
  show();
  return {
    nodes: [field("Clients that lose their version", how), deadlineField],
    body: () => (how.value ? { onDecrease: how.value, ...(deadlineField.hidden ? {} : { deadline: deadline.value }) } : {}),
  };
}

const VERBS = {
  weights: {
    label: "Set weight", go: "Set weight",
    title: (s) => `Set a weight of ${s.name}`,
    about: () => "The other versions keep their ratios. Clients move only to the version that gains, or only away from the one that loses.",
    fields(service) {
      const version = choice("version", names(service), likely(service));
      const shareOf = () => Number(((service.versions.find((v) => v.name === version.value)?.share ?? 0) * 100).toFixed(2));
      const number = el("input", { type: "number", name: "share", min: "0", max: "100", step: "any", required: true, value: shareOf() });
      const slider = el("input", { type: "range", min: "0", max: "100", step: "1", value: shareOf(), "aria-label": "Share in percent", class: "slider" });
      slider.addEventListener("input", () => { number.value = slider.value; });
      number.addEventListener("input", () => { slider.value = number.value; });
      version.addEventListener("change", () => { number.value = slider.value = shareOf(); });
      const rest = decrease();
      return {
        nodes: [field("Version", version), field("Share in %", number), slider, ...rest.nodes],
        body: () => ({ weights: { [version.value]: `${number.value || 0}%` }, ...rest.body() }),
        first: number,
      };
    },
  },
  promote: {
    label: "Promote", go: "Promote",
    title: (s) => `Promote a version of ${s.name}`,
    about: () => "It takes all clients at once and is the stable side from then on.",
    fields(service) {
      const version = choice("version", names(service), likely(service));
      return { nodes: [field("Version", version)], body: () => ({ version: version.value }) };
    },
  },
  guarded: {
    path: "promote", label: "Guarded ramp", go: "Start the ramp", outcome: "begun",
    title: (s) => `Ramp up a version of ${s.name}, guarded`,
    about: () => "Step by step as configured. In each step it is compared with the stable side; worse errors or latency abort the ramp.",
    fields(service) {
      const version = choice("version", names(service), likely(service));
      return { nodes: [field("Version", version)], body: () => ({ version: version.value, guarded: true }) };
    },
  },
  pause: {
    label: "Pause", go: "Pause",
    title: (s) => `Pause ${s.name}`,
    about: () => "Nobody moves: weights and ramp stand still until you resume. Abort still works.",
  },
  resume: {
    label: "Resume", go: "Resume",
    title: (s) => `Resume ${s.name}`,
    about: (s) => (s.rollout?.waiting ? "The file's new weights, which waited, come into force." : "Weights can be changed again, and a ramp goes on where it stood."),
  },
  skip: {
    path: "resume", label: "Next step", go: "Go to the next step",
    title: (s) => `Go to the next step of ${s.name}'s ramp`,
    about: () => "Whatever the guard says about this step.",
    fields: () => ({ nodes: [], body: () => ({ skip: true }) }),
  },
  abort: {
    label: "Abort", go: "Abort now", isDanger: true,
    title: (s) => `Abort on ${s.name}`,
    about: (s) => `Everybody is back on ${stableOf(s)} with the next request. A ramp ends.`,
  },
  undo: {
    label: "Undo", go: "Undo",
    title: (s) => `Undo a change of ${s.name}`,
    about: () => "Goes back to the weights of an earlier revision, as a new revision.",
    fields(service) {
      const revision = choice("toRevision", [["", "the revision before"]], "");
      read(`/api/v1/services/${encodeURIComponent(service.name)}/history`).then((history) => {
        const older = history.filter((r) => !r.current);
        older.sort((a, b) => b.revision - a.revision);
        revision.append(...older.map((r) => el("option", { value: r.revision }, `${r.revision}: ${weightsOf(r)}, ${ago(r.at)}`)));
      }, () => {});
      const rest = decrease();
      return {
        nodes: [field("Back to", revision), ...rest.nodes],
        body: () => ({ ...(revision.value ? { toRevision: Number(revision.value) } : {}), ...rest.body() }),
      };
    },
  },
  switch: {
    label: "Switch", go: "Switch",
    title: (s) => `Switch ${s.name} to one version`,
    about: () => "All new clients get it at once. It must have enough endpoints ready.",
    fields(service) {
      const version = choice("version", names(service), likely(service));
      const existing = choice("existing", [["evict", "move at once"], ["drain", "stay until idle or the deadline"]], "evict");
      const deadline = el("input", { name: "deadline", value: "10m", size: "6", autocomplete: "off" });
      const force = el("input", { type: "checkbox", name: "force" });
      const deadlineField = field("Deadline", deadline);
      const show = () => { deadlineField.hidden = existing.value !== "drain"; };
      existing.addEventListener("change", show);
      show();
      return {
        nodes: [field("To", version), field("Clients of the others", existing), deadlineField, el("label", { class: "check" }, force, " even if it has too few endpoints")],
        body: () => ({ version: version.value, existing: existing.value, ...(force.checked ? { force: true } : {}), ...(existing.value === "drain" ? { deadline: deadline.value } : {}) }),
      };
    },
  },
  drain: {
    label: "Drain", go: "Drain",
    title: (s) => `Drain a version of ${s.name}`,
    about: () => "No new clients; those it has stay until they are idle, or until the deadline.",
    fields(service) {
      const version = choice("version", names(service), likely(service));
      const deadline = el("input", { name: "deadline", value: "10m", size: "6", autocomplete: "off" });
      return { nodes: [field("Version", version), field("Deadline", deadline)], body: () => ({ version: version.value, ...(deadline.value ? { deadline: deadline.value } : {}) }) };
    },
  },
};

/** stable 90, canary 10 */
const weightsOf = ({ weights }) => Object.entries(weights).map(([name, weight]) => `${name} ${Number(Number(weight).toPrecision(6))}`).join(", ");

async function read(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" }, cache: "no-store" });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `${answer.status}`);
  return body;
}

/** Posts a verb: {status, body}. */
async function post(service, path, body) {
  const headers = { "content-type": "application/json" };
  if (token()) headers.authorization = `Bearer ${token()}`;
  const answer = await fetch(`/api/v1/services/${encodeURIComponent(service)}/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  return { status: answer.status, body: await answer.json().catch(() => ({})) };
}

// The dialog: one, for the change that is being thought about.

let change = null;

function openChange(name, verb) {
  const service = serviceNamed(name);
  if (!service) return;
  const what = VERBS[verb];
  const fields = what.fields?.(service) ?? { nodes: [], body: () => ({}) };
  change = { name, verb, what, fields, asked: 0, generation: null, timer: null };
  say($("change-title"), what.title(service));
  say($("change-about"), what.about(service));
  $("change-fields").replaceChildren(...fields.nodes);
  $("change-reason").value = "";
  say($("change-error"), "");
  say($("change-go"), what.go);
  $("change-go").classList.toggle("danger", Boolean(what.isDanger));
  $("change-preview").replaceChildren(el("p", { class: "muted" }, "Counting who would move"));
  $("change").showModal();
  (fields.first ?? $("change-reason")).focus();
  preview();
}

/** Asks what would change, and lets nothing be confirmed that was not shown. */
async function preview() {
  const mine = change;
  const asked = ++mine.asked;
  mine.generation = null;
  put($("change-go"), "disabled", true);
  let answer;
  try {
    answer = await post(mine.name, mine.what.path ?? mine.verb, { ...mine.fields.body(), dryRun: true });
  } catch {
    answer = { status: 0, body: { error: "perch does not answer" } };
  }
  if (change !== mine || mine.asked !== asked) return;
  if (answer.status !== 200) {
    $("change-preview").replaceChildren();
    say($("change-error"), refusal(answer));
    return;
  }
  say($("change-error"), "");
  // What the preview was made of: the change is refused when the split is another by then.
  mine.generation = answer.body.generation;
  $("change-preview").replaceChildren(...outlook(answer.body));
  put($("change-go"), "disabled", false);
}

function refusal({ status, body }) {
  if (status === 401) return "This needs the token: cancel, and enter it at the top of the page.";
  if (status === 403 && token()) {
    return `${capital(body.error ?? "refused")}. Cancel, and enter the right one at the top of the page.`;
  }
  return `${capital(body.error ?? `perch answered ${status}`)}.`;
}

/** Before and after, and who moves, in words. */
function outlook({ before = [], after = [], moves, changed }) {
  const shown = [];
  const was = new Map(before.map((v) => [v.name, v.share]));
  if (after.length) {
    const rows = after.map((v) => [v.name, percent(was.get(v.name) ?? 0), percent(v.share)]);
    shown.push(table("Shares before and after", ["Version", "Now", "Then"], rows));
  }
  if (changed === false) shown.push(el("p", {}, "Nothing would change."));
  if (moves) shown.push(el("p", { class: "moves" }, movesInWords(moves)));
  return shown;
}

function movesInWords({ clients, ofClients, requestsPerSecond, between = [] }) {
  if (!ofClients) {
    return requestsPerSecond > 0
      ? `About ${rate(requestsPerSecond)} requests per second would go to another version. No client is remembered.`
      : "No client was seen recently, so nobody moves now. Later ones follow the new shares.";
  }
  if (!clients) return `None of the ${plural(ofClients, "recently seen client")} moves.`;
  const ways = between.map((b) => `${grouped(b.clients)} from ${b.from} to ${b.to}`);
  return `${grouped(clients)} of ${plural(ofClients, "recently seen client")} ${clients === 1 ? "moves" : "move"} (${list(ways)}), with about ${rate(requestsPerSecond)} requests per second.`;
}

async function carryOut() {
  const mine = change;
  if (!mine || mine.generation === null) return;
  put($("change-go"), "disabled", true);
  const reason = $("change-reason").value.trim();
  const body = { ...mine.fields.body(), generation: mine.generation, ...(reason ? { reason } : {}) };
  let answer;
  try {
    answer = await post(mine.name, mine.what.path ?? mine.verb, body);
  } catch {
    answer = { status: 0, body: { error: "perch does not answer; look whether it happened before you try again" } };
  }
  if (change !== mine) return;
  if (answer.status === 200) {
    $("change").close();
    tell(`${mine.what.label} of ${mine.name}: ${mine.what.outcome ?? "done"}${answer.body.generation ? `, generation ${answer.body.generation}` : ""}`);
    return;
  }
  say($("change-error"), answer.status === 409 ? conflict(answer.body) : refusal(answer));
  if (answer.status === 409) {
    const error = $("change-error").textContent;
    await preview();
    if (change === mine && mine.generation !== null) say($("change-error"), error);
  }
}

/** What was done, for a while; afterwards the page itself shows it. */
function tell(words) {
  say($("said"), words);
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => say($("said"), ""), 15_000);
}

/** What stands in the way, and how things are now. */
function conflict({ error, current }) {
  const now = current?.versions?.map((v) => `${v.name} ${percent(v.share)}`);
  return `${capital(error ?? "somebody was faster")}.${now ? ` Now: ${now.join(", ")}.` : ""} Look at the preview again before you confirm.`;
}

$("change").addEventListener("close", () => { change = null; });
$("change-cancel").addEventListener("click", () => $("change").close());
$("change").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  carryOut();
});
$("change-fields").addEventListener("input", () => {
  if (!change) return;
  put($("change-go"), "disabled", true);
  change.generation = null;
  clearTimeout(change.timer);
  change.timer = setTimeout(() => change && preview(), 200);
});

// The token.

function showAccess(process) {
  const writes = process?.writes ?? "open";
  const mayWrite = writes === "open" || (writes === "token" && Boolean(token()));
  put(document.body, "data-may-write", mayWrite ? "yes" : "no");
  say($("access-words"), { open: "", token: token() ? "" : "Read-only", off: "Read-only: no token is configured" }[writes]);
  $("access-button").hidden = writes !== "token";
  say($("access-button"), token() ? "Forget token" : "Enter token");
}

$("access-button").addEventListener("click", () => {
  if (token()) {
    sessionStorage.removeItem(TOKEN);
    showAccess(live.status?.process);
    return;
  }
  $("token-value").value = "";
  $("token").showModal();
});
$("token-cancel").addEventListener("click", () => $("token").close());
$("token").querySelector("form").addEventListener("submit", () => {
  sessionStorage.setItem(TOKEN, $("token-value").value.trim());
  $("token-value").value = "";
  showAccess(live.status?.process);
});
