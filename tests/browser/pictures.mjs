// Pictures of states that are hard to bring about in a test: what perch would send, from what it really sends.

const copy = (value) => JSON.parse(JSON.stringify(value));

const STEPS = [["1%", 300], ["5%", 600], ["25%", 600], ["50%", 900], ["100%", 0]].map(([weight, holdSeconds]) => ({ weight, share: parseFloat(weight) / 100, holdSeconds }));
const GUARD = {
  requests: { stable: 48210, canary: 2514 }, errors: { stable: 19, canary: 2 }, errorRatio: { stable: 0.000394, canary: 0.000796 },
  p50: { stable: 0.0041, canary: 0.0044 }, p90: { stable: 0.009, canary: 0.0093 }, p99: { stable: 0.0182, canary: 0.0191 },
  minRequests: 100, eValue: 1.7, suspectAt: 10, abortAt: 100, tests: [{ metric: "errors", eValue: 1.7 }, { metric: "p99", eValue: 0.31 }], verdict: "clear", why: "",
};

/** A ramp in its second step. */
export function ramping(status) {
  const shown = copy(status);
  const hello = shown.services.find((s) => s.name === "hello");
  hello.rollout = {
    ...hello.rollout, revision: 7, stable: "stable", source: "verbs",
    ramp: { state: "running", canary: "canary", stable: "stable", step: 1, steps: STEPS, holdLeftSeconds: 252, why: "", guard: GUARD },
  };
  return shown;
}

/** Everything at once: an aborted ramp, a refused reload, an empty version, replicas that disagree, an unexplained flip. */
export function troubled(status) {
  const shown = ramping(status);
  const hello = shown.services.find((s) => s.name === "hello");
  const auth = shown.services.find((s) => s.name === "auth");
  Object.assign(hello.rollout.ramp, { state: "aborted", why: "the canary fails 5.6 % of its requests, stable 0.04 %" });
  hello.flips.unexplained = 1;
  hello.versions[1].recent = { requestsPerSecond: 42, errorRatio: 0.056, p50Seconds: 0.004, p99Seconds: 0.02 };
  auth.versions[0].endpointsReady = 0;
  auth.versions[0].endpoints[0].state = "unhealthy";
  shown.process.reload.error = "perch.yaml:41: services[0].versions[1].weight: -3 is negative; write a number of 0 or more";
  shown.replicas = [
    { name: "perch-7d9f-abcde", generation: 31, sequence: 12, isLeader: true, seenSeconds: 0 },
    { name: "perch-7d9f-fghij", generation: 28, sequence: 11, isLeader: false, seenSeconds: 1 },
  ];
  return shown;
}


