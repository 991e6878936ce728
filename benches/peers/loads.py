"""The loads: each drives one port for some seconds and returns {"requests", "errors", ...}; a wrong answer is an error."""
import http.client
import json
import re
import subprocess
import sys
import threading
import time

from machine import pin, resident_kib
from proxies import ADMIN, LOAD_CPU, PERCH

CONNECTIONS, RATE = 64, 4000

# wrk sends this many bytes with each request.
UPLOAD = """
wrk.method = "POST"
wrk.body = string.rep("u", 65536)
"""

# Each request comes from the next of this many clients, as X-Forwarded-For has it.
CLIENTS = """
local n, clients = 0, {clients}
request = function()
  n = (n + {step}) % clients
  local text = string.format("10.%d.%d.%d", math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256)
  return wrk.format("GET", "/1k", {{["X-Forwarded-For"] = text}})
end
"""


def client(command, limit):
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, preexec_fn=pin(LOAD_CPU))
    return done.stdout + done.stderr


def wrk(url, seconds, script=None, connections=CONNECTIONS):
    with_script = ["-s", script] if script else []
    out = client(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", *with_script, url], seconds + 60)
    total = re.search(r"(\d+) requests in", out)
    if not total:
        sys.exit(f"wrk: {out[-300:]}")
    bad = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", out))
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    errors = bad + (sum(map(int, socket_errors.groups())) if socket_errors else 0)
    return {"requests": int(total.group(1)) - bad, "errors": errors}


def clients_script(run, clients):
    """Visits all of them in an order that is not theirs."""
    path = f"{run}/clients-{clients}.lua"
    with open(path, "w") as file:
        file.write(CLIENTS.format(clients=clients, step=1 if clients == 1 else 7919))
    return path


def upload_script(run):
    path = f"{run}/upload.lua"
    with open(path, "w") as file:
        file.write(UPLOAD)
    return path


def h2load(url, seconds, *options):
    out = client(["h2load", "-t1", "-c16", "-m16", f"--duration={seconds}", *options, url], seconds + 60)
    match = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", out)
    if not match or "protocol: h2" not in out:
        sys.exit(f"h2load: {out[-300:]}")
    return {"requests": int(match.group(1)), "errors": int(match.group(2)) + int(match.group(3))}


def open_loop(port, seconds):
    """Requests on a schedule. Latencies are without the first second: 64 handshakes, one after the other on the load's CPU, are
    about 1 % of all requests, so the 99th percentile would be theirs."""
    return perch_load(port, seconds + 1, "--http1", "--rate", str(RATE), "--warm-up", "1s")


def perch_load(port, seconds, *options):
    out = client([PERCH, "load", f"https://127.0.0.1:{port}/1k", "--insecure", "--quiet", "-o", "json", "--identity", "none",
                  "--clients", str(CONNECTIONS), "--concurrency", str(CONNECTIONS), "--threads", "1", "--version-from", "none",
                  "--duration", f"{seconds}s", *options], seconds + 60)
    try:
        total = json.loads(out[out.index("{"):])["total"]
    except (ValueError, KeyError):
        sys.exit(f"perch load: {out[-300:]}")
    latency = (total["versions"][0]["latency_ms"] if total["versions"] else None) or {}
    micros = {f"{p}_us": 1000 * latency[p] for p in ("p50", "p99") if p in latency}
    return {"requests": total["requests"] - total["errors"], "errors": total["errors"], **micros}


def resumed(port, seconds):
    """New connections that resume a TLS session, a request each; HTTP/1.0, since that is what the tool speaks."""
    command = ["openssl", "s_time", "-connect", f"localhost:{port}", "-www", "/1k", "-reuse", "-time", str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=pin(LOAD_CPU))
               for _ in range(8)]
    letters = ""
    for process in running:
        out = process.communicate(timeout=seconds + 60)[0]
        # Each connection is a letter: r for resumed.
        match = re.search(r"\n([rtT*]+)\n+\d+ connections in", out)
        if not match:
            sys.exit(f"openssl s_time: {out[-300:]}")
        letters += match.group(1)
    return {"requests": letters.count("r"), "errors": len(letters) - letters.count("r")}


def idle(port, pid, connections):
    """Connections that have asked once and are kept: what each holds."""
    import socket
    import ssl
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = b"GET /1k HTTP/1.1\r\nHost: localhost\r\n\r\n"
    sockets = []

    def one():
        tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        tls.sendall(request)
        got = b""
        while len(got) < 1024:
            got += tls.recv(65536)
        sockets.append(tls)

    for _ in range(64):
        one()
    time.sleep(0.5)
    before = resident_kib(pid)
    for _ in range(connections):
        one()
    time.sleep(1)
    held = (resident_kib(pid) - before) / connections
    for tls in sockets:
        tls.close()
    return {"requests": connections, "errors": 0, "kib": held}


class Asking:
    """Asks perch's admin so many times a second while it is open: for a change of the weights, each of which is a snapshot that is
    published to the worker; or only what the weights are, which costs the machine as much for the asking."""

    def __init__(self, per_second, publishes):
        self.per_second, self.publishes, self.done, self.failed = per_second, publishes, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _ask(self, admin):
        service = "/api/v1/services/bench"
        if self.publishes:
            body = json.dumps({"weights": {"canary": f"{10 + self.done % 2}%"}})
            admin.request("POST", f"{service}/weights", body, {"Content-Type": "application/json"})
        else:
            admin.request("GET", service)
        answer = admin.getresponse()
        answer.read()
        return answer.status == 200

    def _run(self):
        # Kept for all of them: with connections of their own, asking costs the machine more than what is asked for.
        admin = http.client.HTTPConnection("127.0.0.1", ADMIN, timeout=5)
        while not self._over.wait(1 / self.per_second):
            try:
                well = self._ask(admin)
            except (OSError, http.client.HTTPException):
                well = False
                admin.close()
            self.done, self.failed = self.done + well, self.failed + (not well)
        admin.close()


def open_loop_while_asking(port, seconds, per_second, publishes):
    with Asking(per_second, publishes) as asking:
        result = open_loop(port, seconds)
    result["errors"] += asking.failed
    if asking.done < seconds * per_second / 2:
        result["errors"] += 1
    return result
