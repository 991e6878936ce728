//! The manifests, as far as they can be judged without a cluster.

use std::path::Path;

/// With a token where the Secret would be.
fn load(file: &Path) -> perch::config::Loaded {
    let folder = tempfile::tempdir().unwrap();
    let (token, copy) = (folder.path().join("token"), folder.path().join("perch.yaml"));
    std::fs::write(&token, "secret").unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    std::fs::write(&copy, text.replace("/etc/perch-admin/token", token.to_str().unwrap())).unwrap();
    perch::config::load(&copy).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_configurations_in_the_manifests_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for file in ["kubernetes", "lab/overlays/canary", "lab/overlays/blue-green"] {
        let loaded = load(&folder.join(file).join("perch.yaml"));

        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        assert_eq!(loaded.config.shared_state.as_ref().map(|s| &*s.config_map), Some("perch-state"));
        let hello = loaded.config.services.iter().find(|s| &*s.name == "hello").unwrap();
        assert!(hello.versions.iter().all(|v| v.kubernetes.is_some()));
    }
}

#[test]
fn the_drain_fits_the_grace_of_the_pod() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes");
    let deployment = std::fs::read_to_string(folder.join("deployment.yaml")).unwrap();
    let grace = deployment.lines().find_map(|l| l.trim().strip_prefix("terminationGracePeriodSeconds: ")).unwrap();
    let config = load(&folder.join("perch.yaml")).config;

    assert!(config.drain.deadline.as_secs() < grace.parse().unwrap());
}

#[test]
fn perch_asks_the_cluster_for_no_more_than_it_needs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();

    let role = read("role.yaml");
    let words = |key: &str| -> Vec<String> {
        role.lines().filter_map(|l| l.trim().trim_start_matches("- ").strip_prefix(key)).map(str::to_owned).collect()
    };
    assert!(role.contains("kind: Role\n"), "of one namespace");
    assert_eq!(
        words("verbs: "),
        ["[list, watch]", "[list, watch]", "[list, watch]", "[get, list, watch, patch]", "[get, patch]"]
    );
    // Whatever can be written is named.
    assert_eq!(words("resourceNames: "), ["[perch-state]", "[perch-state]"]);
    let deployment = read("deployment.yaml");
    for line in [
        "replicas: 2",
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "capabilities: {drop: [ALL]}",
        "seccompProfile: {type: RuntimeDefault}",
        "rollingUpdate: {maxSurge: 1, maxUnavailable: 0}",
        "topologySpreadConstraints:",
        "httpGet: {path: /readyz, port: admin}",
        "httpGet: {path: /livez, port: admin}",
    ] {
        assert!(deployment.contains(line), "{line}");
    }
    assert!(!deployment.contains("preStop:"), "drain.delay does that");
    assert!(read("service.yaml").contains("externalTrafficPolicy: Local"));
    assert!(read("poddisruptionbudget.yaml").contains("maxUnavailable: 1"));
}
