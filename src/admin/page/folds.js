// What folds away below a service: endpoints, history, the heaviest clients, flips. Asked for when opened.

function fold(title, onOpen) {
  const count = el("span", { class: "muted" });
  const inside = el("div", { class: "inside", tabindex: "0", role: "region", "aria-label": title });
  const node = el("details", { class: "fold" }, el("summary", {}, title, " ", count), inside);
  const it = { node, inside, count };
  node.addEventListener("toggle", () => node.open && onOpen?.(it));
  return it;
}

function makeFolds(name) {
  const path = `/api/v1/services/${encodeURIComponent(name)}`;
  const asking = (url, show) => async (it) => {
    try {
      it.inside.replaceChildren(...show(await read(url)));
    } catch (problem) {
      it.inside.replaceChildren(el("p", { class: "error" }, `${problem.message}`));
    }
  };
  const endpoints = fold("Endpoints");
  const history = fold("History", asking(`${path}/history`, historyTable));
  const heavy = fold("Heaviest clients", asking(`${path}/heavy-clients`, heavyTable));
  const flips = fold("Changes of version");
  return { node: el("div", { class: "folds" }, endpoints.node, history.node, heavy.node, flips.node), endpoints, history, heavy, flips, revision: null };
}

function historyTable(revisions) {
  if (!revisions.length) return [el("p", { class: "muted" }, "Nothing yet.")];
  const newest = [...revisions].sort((a, b) => b.revision - a.revision);
  const rows = newest.map((r) => [`${r.revision}${r.current ? " (now)" : ""}`, when(r.at), r.verb, weightsOf(r), r.who, r.reason ?? ""]);
  return [table("History", ["Revision", "When", "What", "Weights", "Who", "Reason"], rows)];
}

function heavyTable({ remembers, clients, requests, heaviest }) {
  if (!remembers) return [el("p", { class: "muted" }, "This service remembers nobody.")];
  if (!heaviest.length) return [el("p", { class: "muted" }, "Nobody yet.")];
  const rows = heaviest.map((c) => [c.key, c.version ?? "–", grouped(c.requests), percent(c.share), c.idleSeconds < 2 ? "now" : `${duration(c.idleSeconds)} ago`]);
  return [
    el("p", { class: "muted" }, `Of ${plural(clients, "remembered client")} with about ${plural(requests, "request")}, each since it is remembered.`),
    table("The clients with the most requests", ["Client", "Version", "Requests", "Share", "Last seen"], rows),
  ];
}

const FLIP_WORDS = {
  "weight-change": "weights, versions or salt changed",
  abort: "an abort",
  "drain-deadline": "a drain or freeze ended",
  override: "a header or cookie asked for it",
  "when-empty": "their version ran empty, or is back",
  unexplained: "no reason: a broken promise",
};

function showFolds(it, service, colours) {
  const all = service.versions.flatMap((v) => v.endpoints.map((e) => ({ ...e, version: v.name })));
  const out = all.filter((e) => e.state !== "ready");
  say(it.endpoints.count, out.length ? `${all.length - out.length} of ${all.length} ready` : plural(all.length, "endpoint"));
  put(it.endpoints.count, "data-level", out.length ? "warn" : null);
  keyed(it.endpoints.inside, [{}], () => "all", () => ({ node: el("ul", { class: "endpoints" }) }), ({ node }) => {
    keyed(node, [...out, ...all.filter((e) => e.state === "ready")], (e) => `${e.version} ${e.address} ${e.name}`, () => {
      const parts = { swatch: el("span", { class: "swatch", "aria-hidden": "true" }), name: el("span", { class: "address" }), state: el("span", { class: "state" }), busy: el("span", { class: "muted" }) };
      return { node: el("li", {}, ...Object.values(parts)), ...parts };
    }, (row, e) => {
      put(row.node, "class", `tint-${colours.get(e.version)}`);
      put(row.node, "data-state", e.state);
      say(row.name, e.name === e.address ? `${e.version} ${e.address}` : `${e.version} ${e.address} (${e.name})`);
      say(row.state, e.state);
      say(row.busy, e.inFlight ? `${e.inFlight} in flight` : "");
    });
  });
  const flips = Object.entries(service.flips ?? {});
  const count = sum(flips, ([, n]) => n);
  say(it.flips.count, count ? grouped(count) : "none");
  put(it.flips.count, "data-level", service.flips?.unexplained ? "bad" : null);
  if (it.flips.node.open || !it.flips.inside.firstChild) {
    it.flips.inside.replaceChildren(table("Clients that were served by another version than last time, since perch started", ["Because", "Times"],
      flips.map(([reason, n]) => [`${reason}: ${FLIP_WORDS[reason] ?? ""}`, grouped(n)])));
  }
  it.heavy.node.hidden = service.affinity.type === "None";
  const revision = service.rollout?.revision ?? null;
  it.history.node.hidden = revision === null;
  say(it.history.count, revision === null ? "" : `revision ${revision}`);
  if (it.revision !== revision) {
    it.revision = revision;
    if (it.history.node.open) it.history.node.dispatchEvent(new Event("toggle"));
  }
}
