//! The manifests, as far as they can be judged without a cluster.

use std::path::Path;

#[test]
fn the_configurations_in_the_manifests_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for file in ["kubernetes", "lab/overlays/canary", "lab/overlays/blue-green"] {
        let loaded = perch::config::load(&folder.join(file).join("perch.yaml")).unwrap_or_else(|e| panic!("{e}"));

        // Writes are refused on purpose: what is set in one replica would be unknown to the others.
        assert!(loaded.warnings.iter().all(|w| w.path == "admin.address"), "{:?}", loaded.warnings);
        let hello = loaded.config.services.iter().find(|s| &*s.name == "hello").unwrap();
        assert!(hello.versions.iter().all(|v| v.kubernetes.is_some()));
    }
}

#[test]
fn the_drain_fits_the_grace_of_the_pod() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes");
    let deployment = std::fs::read_to_string(folder.join("deployment.yaml")).unwrap();
    let grace = deployment.lines().find_map(|l| l.trim().strip_prefix("terminationGracePeriodSeconds: ")).unwrap();
    let config = perch::config::load(&folder.join("perch.yaml")).unwrap_or_else(|e| panic!("{e}")).config;

    assert!(config.drain.deadline.as_secs() < grace.parse().unwrap());
}
