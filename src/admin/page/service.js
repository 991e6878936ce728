// One service: its split as set and as measured, its charts, its ramp, and what folds away below.

/** The share as set (mark), as measured in clients (bar with whiskers) and in requests (ring with whiskers), 0 to 100 %. */
function makeGauge() {
  const at = (share) => `${(share * 100).toFixed(3)}%`;
  const parts = {
    fill: shape("rect", { class: "fill", x: "0", y: "6", height: "8", rx: "1" }),
    whisker: shape("line", { class: "whisker", y1: "10", y2: "10" }),
    low: shape("line", { class: "whisker", y1: "6", y2: "14" }),
    high: shape("line", { class: "whisker", y1: "6", y2: "14" }),
    requests: shape("line", { class: "whisker thin", y1: "19.5", y2: "19.5" }),
    ring: shape("circle", { class: "ring", cy: "19.5", r: "3" }),
    set: shape("line", { class: "set", y1: "1", y2: "23" }),
  };
  const node = shape("svg", { class: "gauge", role: "img", height: "24" },
    shape("rect", { class: "track", x: "0", y: "6", width: "100%", height: "8", rx: "1" }), ...Object.values(parts));
  return {
    node,
    show(version, isRemembering) {
      const { observed: o, share } = version;
      const span = (line, low, high) => { put(line, "x1", at(low)); put(line, "x2", at(high)); };
      const knowsClients = isRemembering && o.clientsHigh - o.clientsLow < 1;
      const knowsRequests = o.requestsHigh - o.requestsLow < 1;
      for (const part of [parts.fill, parts.whisker, parts.low, parts.high]) put(part, "display", knowsClients ? null : "none");
      for (const part of [parts.requests, parts.ring]) put(part, "display", knowsRequests ? null : "none");
      put(parts.fill, "width", at(o.clients));
      span(parts.whisker, o.clientsLow, o.clientsHigh);
      span(parts.low, o.clientsLow, o.clientsLow);
      span(parts.high, o.clientsHigh, o.clientsHigh);
      span(parts.requests, o.requestsLow, o.requestsHigh);
      put(parts.ring, "cx", at(o.requests));
      span(parts.set, share, share);
      const words = [`Set to ${percent(share)}`];
      if (knowsClients) words.push(`measured ${percent(o.clients)} of the clients, ${range(o.clientsLow, o.clientsHigh)} at 95 % confidence`);
      if (knowsRequests) words.push(`${percent(o.requests)} of the last minute's requests, ${range(o.requestsLow, o.requestsHigh)}`);
      put(node, "aria-label", words.join("; "));
    },
  };
}

const COLUMNS = ["Version", "Set", "Set and measured", "Clients", "Requests/s", "Failed", "p50", "p99", "Endpoints"];

function makeRow({ name }) {
  const gauge = makeGauge();
  const cells = Object.fromEntries(["set", "clients", "requests", "failed", "p50", "p99", "endpoints"].map((c) => [c, el("span", { class: "value" })]));
  const subs = { clients: el("span", { class: "sub" }), requests: el("span", { class: "sub" }), set: el("span", { class: "sub" }) };
  const stable = el("span", { class: "tag", hidden: true }, "stable side");
  const cell = (key, head) => el("td", { "data-head": head, class: key }, cells[key], ...(subs[key] ? [subs[key]] : []));
  const node = el("tr", {},
    el("th", { scope: "row" }, el("span", { class: "swatch", "aria-hidden": "true" }), el("span", { class: "name" }, name), stable),
    cell("set", "Set"),
    el("td", { class: "measured", "data-head": "Set and measured" }, gauge.node),
    cell("clients", "Clients"), cell("requests", "Requests/s"), cell("failed", "Failed"), cell("p50", "p50"), cell("p99", "p99"), cell("endpoints", "Endpoints"));
  return { node, gauge, cells, subs, stable };
}

function showRow(it, version, service, tint) {
  const { observed: o, recent, endpointsReady, endpointsTotal } = version;
  const isRemembering = service.affinity.type !== "None";
  put(it.node, "class", `tint-${tint}`);
  it.stable.hidden = version.name !== service.rollout?.stable || service.versions.length < 2;
  say(it.cells.set, percent(version.share));
  say(it.subs.set, `weight ${Number.isInteger(version.weight) ? version.weight : Number(version.weight.toPrecision(4))}`);
  it.gauge.show(version, isRemembering);
  say(it.cells.clients, isRemembering ? grouped(version.clients) : "–");
  say(it.subs.clients, isRemembering && service.clients ? `${percent(o.clients)}, ${range(o.clientsLow, o.clientsHigh)}` : isRemembering ? "" : "not remembered");
  say(it.cells.requests, rate(recent.requestsPerSecond));
  say(it.subs.requests, o.requestsHigh - o.requestsLow < 1 ? `${percent(o.requests)}, ${range(o.requestsLow, o.requestsHigh)}` : "");
  say(it.cells.failed, percent(recent.errorRatio));
  put(it.cells.failed, "data-level", recent.errorRatio >= ERRORS_BAD ? "bad" : recent.errorRatio >= ERRORS_WARN ? "warn" : null);
  say(it.cells.p50, latency(recent.p50Seconds));
  say(it.cells.p99, latency(recent.p99Seconds));
  say(it.cells.endpoints, `${endpointsReady} of ${endpointsTotal}`);
  put(it.cells.endpoints, "data-level", endpointsReady === 0 && isTaking(version) ? "bad" : endpointsReady < endpointsTotal ? "warn" : null);
}

/** Buttons, those that matter now first. */
function verbsNow(service) {
  if (service.versions.length < 2) return [];
  const ramp = service.rollout?.ramp;
  const isRamping = ramp && ["running", "paused", "holding", "waiting"].includes(ramp.state);
  if (service.rollout?.paused) return ["resume", ...(isRamping ? ["skip"] : []), "abort"];
  if (isRamping) return ["pause", "skip", "weights", "promote", "undo", "switch", "drain", "abort"];
  return ["weights", "promote", "guarded", "pause", "undo", "switch", "drain", "abort"];
}

function about(service) {
  const { affinity, whenEmpty } = service;
  const keeps = affinity.type === "None"
    ? "Each request is split for itself; nobody keeps a version"
    : `${plural(service.clients, "client")} remembered, each until ${duration(affinity.timeoutSeconds)} idle`;
  const empty = service.versions.length < 2 ? "" : whenEmpty === "fail" ? "; an empty version's clients get errors" : "; an empty version's clients go to the others";
  return `${keeps}${empty}.`;
}

function makeService({ name }) {
  const id = `service-${name}`;
  const badge = el("span", { class: "badge" });
  const aboutLine = el("p", { class: "about" });
  const actions = el("div", { class: "actions", role: "group", "aria-label": `Change ${name}` });
  const rollout = makeRollout();
  const body = el("tbody");
  const versions = el("table", { class: "versions" },
    el("caption", { class: "unseen" }, `Versions of ${name}: the split as set and as measured, and the last minute`),
    el("thead", {}, el("tr", {}, ...COLUMNS.map((c) => el("th", { scope: "col" }, c)))), body);
  const key = el("p", { class: "key" },
    el("span", { class: "mark", "aria-hidden": "true" }), "as set ",
    el("span", { class: "bar", "aria-hidden": "true" }), "measured: remembered clients by their last answer ",
    el("span", { class: "ring", "aria-hidden": "true" }), "requests of the last minute. Whiskers: 95 % intervals.");
  const charts = makeCharts();
  const folds = makeFolds(name);
  const node = el("section", { class: "card service", id, "aria-labelledby": `${id}-name`, tabindex: "-1" },
    el("header", {}, el("div", { class: "heading" }, el("h2", { id: `${id}-name` }, name), badge), aboutLine),
    actions, rollout.node, el("div", { class: "wide" }, versions), key, charts.node, folds.node);
  return { node, badge, aboutLine, actions, rollout, body, key, charts, folds };
}

function showService(it, service) {
  const state = stateOf(service);
  const colours = tints(service);
  put(it.node, "data-level", state.level);
  say(it.badge, state.words);
  put(it.badge, "data-level", state.level);
  say(it.aboutLine, about(service));
  it.key.hidden = service.versions.length < 2;
  keyed(it.actions, verbsNow(service), (verb) => verb, (verb) => ({
    node: el("button", { type: "button", class: VERBS[verb].isDanger ? "danger" : null, "data-verb": verb, listen: { click: () => openChange(service.name, verb) } }, VERBS[verb].label, el("span", { class: "unseen" }, ` ${service.name}`)),
  }), () => {});
  showRollout(it.rollout, service);
  keyed(it.body, service.versions, (v) => v.name, makeRow, (row, version) => showRow(row, version, service, colours.get(version.name)));
  showFolds(it.folds, service, colours);
}

const showCourse = (it, service, recent) => drawCharts(it.charts, recent.services[service.name], tints(service), recent.stepSeconds);
