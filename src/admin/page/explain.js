// The explain box: a question, and the answer in words.

const WHY = {
  cohort: "by the split",
  draw: "by the draw of this request",
  "drain-pin": "because it drains: who was there stays",
  "freeze-pin": "because it is frozen: who was there stays",
  override: "because a header or cookie asks for it",
  "when-empty": "because its own version is empty",
};

$("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = new FormData(event.target);
  const query = new URLSearchParams();
  for (const [name, value] of asked) if (value.trim()) query.set(name, value.trim());
  try {
    $("explained").replaceChildren(...answerInWords(await read(`/api/v1/explain?${query}`)));
  } catch (problem) {
    $("explained").replaceChildren(el("p", { class: "error" }, `${capital(problem.message)}.`));
  }
});

function answerInWords(answer) {
  const { client, service, version, why, endpoint, reason, route, versions, reasoning } = answer;
  const who = client.key && client.key !== client.address ? `${client.address} (known as ${client.key}/${client.prefix})` : client.address;
  const headline = version
    ? [who, " gets ", el("strong", {}, version), ` of ${service}`, why ? `, ${WHY[why] ?? why}` : "", endpoint ? ` (endpoint ${endpoint})` : "", "."]
    : reason
      ? [who, " gets an error: ", el("strong", {}, reason), "."]
      : [who, `: ${service} decides each request for itself.`];
  const shown = [el("p", { class: "headline" }, ...headline)];
  if (route) shown.push(el("p", { class: "muted" }, `Route ${route}${answer.listener ? ` on listener ${answer.listener}` : ""}.`));
  if (reasoning.length) shown.push(el("ol", { class: "reasons" }, ...reasoning.map((sentence) => el("li", {}, capital(sentence)))));
  if (versions.length > 1) {
    shown.push(table("Where this client belongs", ["Version", "Share now", "Joins from", "Usable endpoints"], versions.map((v) => [
      v.name, percent(v.share), v.joinPoint === null || v.joinPoint === undefined ? "–" : percent(v.joinPoint), `${v.usableEndpoints} of ${v.endpoints}`,
    ])));
  }
  return shown;
}
