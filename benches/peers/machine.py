"""The machine: what processes and CPUs have used, where a process may run, and how its idle CPUs wait."""
import contextlib
import os
import re
import sys

TICK = os.sysconf("SC_CLK_TCK")
LATENCY_REQUEST = "/dev/cpu_dma_latency"


def pin(cpu):
    def there():
        os.sched_setaffinity(0, {cpu})
        os.setsid()
    return there


def descendants(pid):
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{entry}/stat").read()
        except OSError:
            continue
        children.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_seconds(pid):
    total = 0
    for one in descendants(pid):
        try:
            fields = open(f"/proc/{one}/stat").read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def resident_kib(pid):
    total = 0
    for one in descendants(pid):
        try:
            match = re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{one}/status").read())
        except OSError:
            continue
        total += int(match.group(1)) if match else 0
    return total


def used(cpu):
    """Seconds that this CPU has worked, and those of them that the hypervisor gave to others (stolen, proc(5))."""
    for line in open("/proc/stat"):
        if line.startswith(f"cpu{cpu} "):
            values = [int(v) for v in line.split()[1:9]]
            return (sum(values) - values[3] - values[4]) / TICK, values[7] / TICK
    return 0.0, 0.0


@contextlib.contextmanager
def awake():
    """Meanwhile idle CPUs poll instead of halting, where that may be asked for (Documentation/power/pm_qos_interface in Linux).

    What it takes to wake a halted CPU, a virtual one above all, is the machine's, comes with each sleep of any proxy, and is ten times
    what a proxy takes. It hides what is to be compared.
    """
    try:
        # Without a buffer: what is written must have been taken before the first window.
        request = open(LATENCY_REQUEST, "wb", buffering=0)
        request.write((0).to_bytes(4, sys.byteorder))
    except OSError as error:
        print(f"{LATENCY_REQUEST}: {error.strerror}; idle CPUs halt, and latencies have their waking in them", file=sys.stderr)
        yield False
        return
    with request:
        yield True
