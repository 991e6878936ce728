"""What config/observability asks Prometheus for, for tests/suites/promtool: the dashboard's expressions as a rule file,
and whether every metric that is named exists.

usage: queries.py rules > FILE              the dashboard's expressions, variables filled in, as recording rules
       queries.py ask > FILE                the same as lines: panel, tab, expression
       queries.py names EXPOSITION          every metric of alerts and dashboard is in src/metrics.rs, with its help and
                                            type, and in a perch's exposition unless it takes more than a file to have it
"""

import json
import re
import sys

DASHBOARD = "config/observability/grafana-dashboard.json"
ALERTS = "config/observability/alerts.yaml"
VARIABLES = {"$service": "hello", "$instance": ".*", "$version": "canary", "$__rate_interval": "1m", "$__range": "1h"}

# A perch that was started from a file has none of these: no ramp under way, no TLS listener, no cluster.
ELSEWHERE = {
    "perch_rollout_guard_evalue",
    "perch_tls_certificate_not_after_seconds",
    "perch_kubernetes_last_event_age_seconds",
    "perch_kubernetes_sync_errors_total",
}


def expressions():
    """Panel and expression, as Prometheus would get it."""
    with open(DASHBOARD) as file:
        dashboard = json.load(file)
    known = {f"${v['name']}" for v in dashboard["templating"]["list"]} | set(VARIABLES)
    asked = [(a["name"], a["expr"]) for a in dashboard["annotations"]["list"]]
    asked += [(p["title"], t["expr"]) for p in dashboard["panels"] for t in p.get("targets", [])]
    for panel, expression in asked:
        unknown = set(re.findall(r"\$\w+", expression)) - known
        assert not unknown, f"{panel}: there is no variable {unknown}"
        for name in sorted(VARIABLES, key=len, reverse=True):
            expression = expression.replace(name, VARIABLES[name])
        yield panel, expression
    for variable in dashboard["templating"]["list"]:
        labels = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
        if labels:
            metric, label = labels.groups()
            yield f"variable {variable['name']}", f"count by ({label}) ({metric.replace('$service', 'hello')})"


def used():
    """Names of metrics; those of a histogram without what Prometheus adds."""
    text = open(ALERTS).read() + "\n".join(expression for _, expression in expressions())
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:perch|process)_[a-z_]+", text)}


def names(exposition):
    declared = set(re.findall(r'"((?:perch|process)_[a-z_]+)"', open("src/metrics.rs").read()))
    exposed = set(re.findall(r"^# TYPE (\S+)", open(exposition).read(), re.M))
    wrong = [f"{name}: not in src/metrics.rs" for name in used() - declared]
    wrong += [f"{name}: not exposed by a running perch" for name in (used() & declared) - exposed - ELSEWHERE]
    if wrong:
        sys.exit("\n".join(sorted(wrong)))
    print(f"ok: the {len(used())} metrics of alerts and dashboard exist")


match sys.argv[1:]:
    case ["rules"]:
        rules = [{"record": f"dashboard:{n}", "expr": expression} for n, (_, expression) in enumerate(expressions())]
        print(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}, indent=1))
    case ["ask"]:
        for panel, expression in expressions():
            print(f"{panel}\t{expression}")
    case ["names", exposition]:
        names(exposition)
    case _:
        sys.exit(__doc__)
