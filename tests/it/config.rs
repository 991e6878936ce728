//! Configurations: files that hold, files that don't with every one of their problems, and what `perch check` says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use perch::config::{self, Invalid, Loaded, Problem};

use crate::support::{run_perch, write_certificate};

/// Relative to the package, where cargo runs tests: messages must not depend on where that is.
fn folder(name: &str) -> PathBuf {
    Path::new("tests/config").join(name)
}

/// The YAML files of a folder of `tests/config`.
fn files(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder(name)).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// What the comments `# expect: ` or `# warn: ` at the end of a file say.
fn expected(file: &Path, what: &str) -> Vec<String> {
    let bytes = std::fs::read(file).unwrap();
    let prefix = format!("# {what}: ");
    String::from_utf8_lossy(&bytes).lines().filter_map(|l| l.strip_prefix(&prefix).map(str::to_owned)).collect()
}

/// Problems without the file's name: `14: services[0].name: ...`.
fn told(file: &Path, problems: &[Problem]) -> Vec<String> {
    let prefix = format!("{}:", file.display());
    problems
        .iter()
        .map(|p| p.to_string().strip_prefix(&prefix).expect("a problem names its file").trim_start().to_owned())
        .collect()
}

fn invalid(file: &Path) -> Invalid {
    match config::load(file) {
        Ok(_) => panic!("{} is valid", file.display()),
        Err(invalid) => invalid,
    }
}

fn valid(file: &Path) -> Loaded {
    config::load(file).unwrap_or_else(|e| panic!("{e}"))
}

fn check(arguments: &[&str], file: &Path) -> Output {
    run_perch([&["check"], arguments, &[file.to_str().unwrap()]].concat())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn each_invalid_file_is_refused_with_all_its_problems() {
    let mut wrong = Vec::new();
    for file in files("invalid") {
        let told = told(&file, &invalid(&file).problems);

        if told != expected(&file, "expect") {
            let lines: Vec<String> = told.iter().map(|l| format!("# expect: {l}")).collect();
            wrong.push(format!("{} says:\n{}", file.display(), lines.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn each_valid_file_loads_with_its_warnings() {
    let mut wrong = Vec::new();
    for file in files("valid") {
        let told = told(&file, &valid(&file).warnings);

        if told != expected(&file, "warn") {
            let lines: Vec<String> = told.iter().map(|l| format!("# warn: {l}")).collect();
            wrong.push(format!("{} says:\n{}", file.display(), lines.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_dump_of_each_valid_file_loads_again_and_is_the_same() {
    for file in files("valid") {
        let config = valid(&file).config;

        let again = config::parse(&config::dump(&config).to_string(), Path::new(""), &|_| None).unwrap().config;

        assert_eq!(again, config, "{}", file.display());
    }
}

#[test]
fn the_example_shows_every_key_and_is_the_default() {
    let file = Path::new("config/perch.yaml");
    let example = std::fs::read_to_string(file).unwrap();

    let loaded = valid(file);

    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.listeners[0].timeouts, config::ListenerTimeouts::default());
    assert_eq!(loaded.config.listeners[0].limits, config::ListenerLimits::default());
    assert_eq!(loaded.config.drain, config::Drain::default());
    assert_eq!(loaded.config.pins, config::Pins::default());
    assert_eq!(loaded.config.access_log, config::AccessLog::default());
    assert_eq!(loaded.config.admin, config::Admin::default());
    let hello = &loaded.config.services[0];
    assert_eq!(hello.affinity, config::Affinity::default());
    assert_eq!(hello.timeouts, config::ServiceTimeouts::default());
    assert_eq!(hello.retries, config::Retries::default());
    assert_eq!(hello.ejection, config::Ejection::default());
    // auth has nothing but its version: what is written for hello is what it has by default.
    let auth = &loaded.config.services[1];
    assert_eq!(
        (auth.affinity, auth.when_empty, auth.on_decrease),
        (hello.affinity, hello.when_empty, hello.on_decrease)
    );
    for key in keys(&config::dump(&valid(&folder("valid/every-key.yaml")).config)) {
        assert!(example.contains(&format!("{key}:")), "config/perch.yaml does not show {key}");
    }
}

/// Every key of a JSON value, at any level.
fn keys(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::Object(map) => map.iter().flat_map(|(k, v)| [vec![k.clone()], keys(v)].concat()).collect(),
        serde_json::Value::Array(items) => items.iter().flat_map(keys).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn check_prints_every_problem_and_ends_with_3() {
    let file = folder("invalid/weights.yaml");

    let output = check(&[], &file);

    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stdout), "");
    let lines: Vec<&str> = text(&output.stderr).lines().collect();
    assert_eq!(lines.len(), expected(&file, "expect").len() + 1);
    assert_eq!(
        lines[0],
        format!("{}:5: services[0].versions[1].weight: -3 is negative; write a number of 0 or more", file.display())
    );
    assert!(lines.last().unwrap().ends_with("weights.yaml is invalid: 12 problems"));
}

#[test]
fn check_prints_the_plan() {
    let output = check(&["--skip-files"], &folder("valid/hello-and-auth.yaml"));

    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        text(&output.stdout),
        "\
Listeners
  https    [::]:8443       TLS 1.2 and 1.3, 1 certificate
  http     [::]:8080       redirects to https, port 443, with 308
  (admin)  127.0.0.1:9900  writes are open to this machine

Routes on https, the first match wins
  HOST  PATH               SERVICE  ROUTE
  *     PathPrefix /login  auth     login
  *     PathPrefix /       hello    rest

Service hello
  affinity ClientIP by /32 (IPv4) and /64 (IPv6), endpoints remembered for 10800 s
  a version without endpoints: its users fall back to the others
  a weight that goes down: its users move at once
  VERSION  WEIGHT  SHARE  ENDPOINTS
  stable   90      90 %   hello:80
  canary   10      10 %   hello-canary:80

Service auth
  affinity ClientIP by /32 (IPv4) and /64 (IPv6), endpoints remembered for 10800 s
  a version without endpoints: its users fall back to the others
  a weight that goes down: its users move at once
  VERSION  WEIGHT  SHARE  ENDPOINTS
  stable   1       100 %  auth:80
"
    );
}

#[test]
fn check_says_how_endpoints_are_spoken_to_and_who_shows_certificates() {
    let output = check(&["--skip-files"], &folder("valid/every-key.yaml"));

    let stdout = text(&output.stdout);
    for words in ["certificates of clients verified", "shop.example.com:8080 (TLS)", "127.0.0.1:2 (HTTP/2)"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
}

#[test]
fn check_prints_routes_in_order_of_precedence() {
    let output = check(&["--skip-files"], &folder("valid/every-key.yaml"));

    let stdout = text(&output.stdout);
    let routes: Vec<&str> = stdout.lines().skip_while(|l| !l.starts_with("Routes")).skip(2).take(9).collect();
    let of = |i: usize| routes[i].split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    assert_eq!(of(0), "127.0.0.1 Exact /");
    assert_eq!(of(1), "127.0.0.1 PathPrefix /a%20b//c;d");
    assert_eq!(of(2), "127.0.0.1 PathPrefix /api");
    assert_eq!(of(3), "shop.example.com Exact /");
    assert_eq!(of(6), "*.shop.example.com Exact /");
    assert!(stdout.contains("  *.example.com"));
}

#[test]
fn check_prints_warnings_and_ends_with_0() {
    let output = check(&[], &folder("valid/warnings.yaml"));

    assert_eq!(output.status.code(), Some(0));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), expected(&folder("valid/warnings.yaml"), "warn").len());
    assert!(stderr.lines().all(|l| l.starts_with("warning: ")), "{stderr}");
}

#[test]
fn check_answers_in_json() {
    let good: serde_json::Value =
        serde_json::from_slice(&check(&["-o", "json", "--skip-files"], &folder("valid/hello-and-auth.yaml")).stdout)
            .unwrap();
    let output = check(&["-o", "json"], &folder("invalid/no-listeners.yaml"));
    let bad: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();

    assert_eq!(good["valid"], true);
    assert_eq!(good["plan"]["services"][0]["versions"][1]["sharePercent"], 10.0);
    assert_eq!(good["plan"]["routes"][0]["path"]["value"], "/login");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(bad["valid"], false);
    assert_eq!(bad["problems"][0]["path"], "listeners");
    assert_eq!(bad["problems"][0]["line"], 1);
    assert_eq!(bad["plan"], serde_json::Value::Null);
}

#[test]
fn check_reads_standard_input() {
    let file = std::fs::File::open(folder("invalid/no-listeners.yaml")).unwrap();

    let output =
        Command::new(env!("CARGO_BIN_EXE_perch")).args(["check", "-"]).stdin(Stdio::from(file)).output().unwrap();

    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).starts_with("stdin:1: listeners: is empty; "));
}

#[test]
fn a_missing_file_is_invalid() {
    let file = folder("there-is-no-such-file.yaml");

    let output = check(&[], &file);

    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).starts_with(&format!("{}: no such file; check the path\n", file.display())));
}

#[test]
fn a_folder_is_invalid() {
    let output = check(&[], &folder("valid"));

    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains(": a folder; write the path of a YAML file\n"));
}

#[test]
fn check_names_the_line_of_a_certificate_that_is_not_there() {
    let output = check(&[], &folder("valid/hello-and-auth.yaml"));

    assert_eq!(output.status.code(), Some(3));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("hello-and-auth.yaml:7: listeners[0].tls.certificates[0].certFile: "), "{stderr}");
}

#[test]
fn check_reads_the_certificates() {
    let dir = tempfile::tempdir().unwrap();
    write_certificate(dir.path(), "a", &["a.example.com"]);
    write_certificate(dir.path(), "b", &["b.example.com"]);
    let with_key = |key: &str| {
        let file = dir.path().join("perch.yaml");
        let pair = format!("{{certFile: a-cert.pem, keyFile: {key}}}");
        let text = format!("listeners: [{{name: a, address: '127.0.0.1:0', tls: {{certificates: [{pair}]}}}}]\n");
        std::fs::write(&file, text).unwrap();
        check(&[], &file)
    };

    let good = with_key("a-key.pem");
    let mismatched = with_key("b-key.pem");

    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    assert_eq!(mismatched.status.code(), Some(3));
    assert!(text(&mismatched.stderr).contains("perch.yaml:1: listeners[0].tls.certificates[0]"));
}

#[test]
fn a_token_can_be_in_a_file_beside_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "from-a-file\n").unwrap();
    let file = dir.path().join("perch.yaml");
    std::fs::write(&file, "admin: {tokenFile: token}\nlisteners: [{name: a, address: '127.0.0.1:0'}]\n").unwrap();

    let loaded = valid(&file);

    assert_eq!(loaded.config.admin.token, Some(config::Secret("from-a-file".into())));
    assert!(!config::dump(&loaded.config).to_string().contains("from-a-file"));
}
