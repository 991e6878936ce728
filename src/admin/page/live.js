// Live: the stream of events, and what is shown when it breaks.

const live = { source: null, status: null, recent: null, heard: 0, retry: null };

/** Without news for so long, what is shown is not what is. */
const STALE = 5000;
/** A page that nobody looks at gives its stream back. */
const HIDDEN = 60_000;

const serviceNamed = (name) => live.status?.services.find((s) => s.name === name);

function connect() {
  clearTimeout(live.retry);
  live.source?.close();
  const source = new EventSource("/api/v1/events");
  live.source = source;
  source.addEventListener("status", (event) => {
    live.heard = Date.now();
    live.status = JSON.parse(event.data);
    show();
  });
  source.addEventListener("recent", (event) => {
    live.recent = JSON.parse(event.data);
    showCourses();
  });
  source.addEventListener("error", () => {
    showLink();
    // A refusal (too many streams) ends an EventSource for good.
    if (source.readyState === EventSource.CLOSED && live.source === source) live.retry = setTimeout(connect, 3000);
  });
}

function show() {
  const { status } = live;
  showLink();
  showAccess(status.process);
  showVerdict(status);
  keyed($("services"), status.services, (s) => s.name, makeService, showService);
  if (status.services.some((s) => !$("services").perchKnown.get(s.name).isDrawn)) showCourses();
  showIndex(status);
  showReplicas(status.replicas ?? []);
  say($("where"), location.host);
  say($("foot"), `perch ${status.process?.version ?? ""}, configuration generation ${status.generation}`);
}

function showCourses() {
  if (!live.status || !live.recent) return;
  for (const service of live.status.services) {
    const it = $("services").perchKnown?.get(service.name);
    if (it) {
      showCourse(it, service, live.recent);
      it.isDrawn = true;
    }
  }
}

/** Where there are many services: which of them, and how each is. */
function showIndex({ services }) {
  $("index").hidden = services.length < 2;
  keyed($("index").firstElementChild, services, (s) => s.name, ({ name }) => {
    const [state, link] = [el("span", { class: "muted" }), el("a", { href: `#service-${name}` }, name)];
    return { node: el("li", {}, el("span", { class: "dot", "aria-hidden": "true" }), link, state), state };
  }, (it, service) => {
    const state = stateOf(service);
    put(it.node, "data-level", state.level);
    say(it.state, state.words.toLowerCase());
  });
}

function showReplicas(replicas) {
  $("replicas").hidden = replicas.length < 2;
  keyed($("replicas").querySelector("tbody"), replicas, (r) => r.name, ({ name }) => {
    const cells = ["Generation", "Decisions", "Role", "Last seen"].map((head) => el("td", { "data-head": head }));
    return { node: el("tr", {}, el("th", { scope: "row" }, name), ...cells), cells };
  }, ({ cells }, r) => {
    [String(r.generation), String(r.sequence), r.isLeader ? "leader" : "", r.seenSeconds < 2 ? "now" : `${duration(r.seenSeconds)} ago`].forEach((text, i) => say(cells[i], text));
  });
}

function showLink() {
  const silent = Date.now() - live.heard;
  const state = !live.heard ? "connecting" : silent > STALE ? "stale" : live.source?.readyState === EventSource.OPEN ? "live" : "reconnecting";
  put($("link"), "data-state", state);
  put(document.body, "data-link", state);
  const words = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", stale: `Disconnected: as of ${duration(silent / 1000)} ago` }[state];
  say($("link-words"), words);
  if (state === "stale" && showLink.last !== "stale") say($("alarm"), "Disconnected: what is shown is not up to date");
  showLink.last = state;
}

let hiding = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => { live.source?.close(); }, HIDDEN);
  } else if (live.source?.readyState !== EventSource.OPEN) {
    connect();
  }
});

setInterval(showLink, 1000);
connect();
