// Small charts of the last five minutes: a line per version, drawn anew every five seconds.

const WIDTH = 300;
const HEIGHT = 72;
const POINTS = 60;

const METRICS = [
  { key: "requestsPerSecond", title: "Requests per second", show: rate, least: 1 },
  { key: "errorRatio", title: "Failed requests", show: (v) => percent(v), least: 0.01 },
  { key: "p99Seconds", title: "Latency, 99th percentile", show: latency, least: 0.001 },
];

/** The next round number at or above: 1, 2, 5 times a power of ten. */
function ceiling(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value * 0.999);
}

/** A line with gaps where there is no value; a lonely value becomes a dot by its round cap. */
function line(values, most) {
  let path = "";
  let isDown = false;
  values.forEach((value, i) => {
    if (value === null) {
      isDown = false;
      return;
    }
    const x = ((POINTS - values.length + i) / (POINTS - 1)) * WIDTH;
    const y = HEIGHT - 2 - (Math.min(value, most) / most) * (HEIGHT - 6);
    path += `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    if (!isDown && (values[i + 1] ?? null) === null) path += "h.01";
    isDown = true;
  });
  return path;
}

function makeChart({ key, title, show, least }) {
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  drawing.append(shape("path", { class: "grid", d: `M0 4H${WIDTH}M0 ${(HEIGHT + 2) / 2}H${WIDTH}M0 ${HEIGHT - 2}H${WIDTH}` }));
  const lines = shape("g");
  const cursor = shape("path", { class: "cursor", hidden: true });
  drawing.append(lines, cursor);
  const top = el("span", { class: "top-value" });
  const readout = el("span", { class: "readout" });
  const node = el("figure", { class: "chart" },
    el("figcaption", {}, title, readout),
    el("div", { class: "plot" }, drawing, top),
    el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, "5 min ago"), el("span", {}, "now")));
  const it = { node, key, title, show, least, drawing, lines, cursor, top, readout, series: [], at: null };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    it.at = Math.round(((event.clientX - box.left) / box.width) * (POINTS - 1));
    readOut(it);
  });
  drawing.addEventListener("pointerleave", () => {
    it.at = null;
    readOut(it);
  });
  return it;
}

/** The values under the pointer, else the newest. */
function readOut(it) {
  put(it.cursor, "hidden", it.at === null);
  if (it.at !== null) put(it.cursor, "d", `M${(it.at / (POINTS - 1)) * WIDTH} 0V${HEIGHT}`);
  const age = it.at === null ? 0 : (POINTS - 1 - it.at) * 5;
  const parts = it.series.map(({ name, tint, values }) => {
    const value = values[values.length - 1 - (it.at === null ? 0 : POINTS - 1 - it.at)];
    return el("span", { class: `tint-${tint}` }, el("span", { class: "swatch", "aria-hidden": "true" }), `${name} ${it.show(value)}`);
  });
  it.readout.replaceChildren(...(age ? [el("span", { class: "muted" }, `${duration(age)} ago`)] : []), ...parts);
}

function drawChart(it, courses, colours) {
  it.series = [...colours].map(([name, tint]) => ({ name, tint, values: courses?.[name]?.[it.key] ?? [] }));
  const seen = it.series.flatMap((s) => s.values).filter((v) => v !== null);
  const most = ceiling(Math.max(it.least, ...seen));
  say(it.top, it.show(most));
  keyed(it.lines, it.series, (s) => s.name, () => ({ node: shape("path") }), ({ node }, { tint, values }) => {
    put(node, "class", `line tint-${tint}`);
    put(node, "d", line(values, most));
  });
  const words = it.series.map(({ name, values }) => {
    const known = values.filter((v) => v !== null);
    return known.length ? `${name} now ${it.show(values.at(-1))}, between ${it.show(Math.min(...known))} and ${it.show(Math.max(...known))}` : `${name} without requests`;
  });
  put(it.drawing, "aria-label", `${it.title} of the last five minutes: ${words.join("; ")}`);
  readOut(it);
}

/** The charts of a service, and their numbers as a table for those who want or need them. */
function makeCharts() {
  const charts = METRICS.map(makeChart);
  const numbers = el("div", { class: "numbers", tabindex: "0", role: "region", "aria-label": "The charts' numbers" });
  const details = el("details", { class: "fold" }, el("summary", {}, "The charts as a table"), numbers);
  const it = { node: el("div", {}, el("div", { class: "charts" }, ...charts.map((c) => c.node)), details), charts, numbers, details, last: null };
  details.addEventListener("toggle", () => it.last && tabulate(it, ...it.last));
  return it;
}

function drawCharts(it, courses, colours, stepSeconds) {
  for (const chart of it.charts) drawChart(chart, courses, colours);
  it.last = [courses, colours, stepSeconds];
  tabulate(it, ...it.last);
}

function tabulate(it, courses, colours, stepSeconds) {
  if (!it.details.open) return;
  const names = [...colours.keys()];
  const length = Math.max(0, ...names.map((n) => courses?.[n]?.requestsPerSecond.length ?? 0));
  const heads = ["When", ...names.flatMap((n) => METRICS.map((m) => `${n}: ${m.title.toLowerCase()}`))];
  const rows = Array.from({ length }, (_, back) => [
    back ? `${duration(back * stepSeconds)} ago` : "now",
    ...names.flatMap((n) => METRICS.map((m) => m.show(courses?.[n]?.[m.key].at(-1 - back) ?? null))),
  ]);
  it.numbers.replaceChildren(table("Requests, failures and latency of the last five minutes", heads, rows));
}
