use std::time::Duration;

use super::*;
use crate::config::{Affinity, EndpointProtocol, EndpointTls, Route, Service as ServiceConfig, Transport};
use crate::decide::reweigh::Amount;
use crate::decide::rollout::OnDecrease;
use crate::decide::rollout::verb::Verb;
use crate::decide::{Hold, Weight, WhenEmpty};
use crate::state::fixtures::{auth, config, hello, service};

fn drain(service: ServiceConfig, seconds: u64) -> ServiceConfig {
    ServiceConfig { on_decrease: OnDecrease::Drain { deadline: Duration::from_secs(seconds) }, ..service }
}

fn model(services: Vec<ServiceConfig>) -> Model {
    Model::new(config(services), Names::new(), 0).unwrap()
}

fn set(model: &mut Model, service: &str, amounts: &[(&str, &str)]) -> Result<(), ChangeError> {
    set_at(model, service, amounts, None, 0)
}

fn set_at(
    model: &mut Model,
    service: &str,
    amounts: &[(&str, &str)],
    expected: Option<u64>,
    now: u64,
) -> Result<(), ChangeError> {
    let amounts = amounts.iter().map(|(n, a)| ((*n).to_owned(), a.parse().unwrap())).collect();
    model.change(&Change { expected, ..Change::weights(service, amounts, "test") }, now)
}

fn weights(model: &Model, service: usize) -> Vec<f64> {
    model.snapshot().services[service].policy.split.weights().iter().map(|w| w.value()).collect()
}

fn holds(model: &Model) -> Vec<Hold> {
    model.snapshot().services[0].policy.holds.clone()
}

#[test]
fn the_first_snapshot_is_generation_one_with_the_configured_weights() {
    let model = model(vec![hello(90.0, 10.0), auth()]);

    let snapshot = model.snapshot();
    assert_eq!(snapshot.generation, 1);
    assert_eq!(weights(&model, 0), [90.0, 10.0]);
    assert_eq!(snapshot.services[0].versions[0].endpoints.len(), 2);
    assert_eq!(&*snapshot.services[1].versions[0].endpoints[0].name, "10.0.1.1:80");
}

#[test]
fn what_did_not_change_is_the_same_thing() {
    let mut model = model(vec![hello(90.0, 10.0), auth()]);
    let before = model.snapshot().clone();

    model.configure(config(vec![hello(80.0, 20.0), auth()]), Names::new(), 0).unwrap();

    let after = model.snapshot();
    assert_eq!(after.generation, 2);
    assert!(Arc::ptr_eq(&before.services[1], &after.services[1]));
    assert!(!Arc::ptr_eq(&before.services[0], &after.services[0]));
    let (b, a) = (&before.services[0], &after.services[0]);
    assert!(Arc::ptr_eq(&b.versions[0].endpoints[1], &a.versions[0].endpoints[1]));
    assert!(Arc::ptr_eq(&b.metrics, &a.metrics) && Arc::ptr_eq(&b.retry_budget, &a.retry_budget));
    assert_eq!((b.id, b.versions[1].id), (a.id, a.versions[1].id));
}

#[test]
fn an_endpoint_that_comes_back_is_another_one() {
    let mut model = model(vec![service("hello", &[("v", 1.0, &["10.0.0.1:80", "10.0.0.2:80"])])]);
    let before = model.snapshot().services[0].versions[0].endpoints.clone();

    model.configure(config(vec![service("hello", &[("v", 1.0, &["10.0.0.2:80"])])]), Names::new(), 0).unwrap();
    model
        .configure(config(vec![service("hello", &[("v", 1.0, &["10.0.0.1:80", "10.0.0.2:80"])])]), Names::new(), 0)
        .unwrap();

    let after = model.snapshot().services[0].versions[0].endpoints.clone();
    assert_ne!(after[0].id, before[0].id);
    assert!(Arc::ptr_eq(&after[1], &before[1]));
    let leaving = model.take_leaving();
    assert!(leaving.len() == 1 && Arc::ptr_eq(&leaving[0], &before[0]));
}

#[test]
fn the_endpoints_of_a_removed_service_leave_and_its_number_is_kept() {
    let mut model = model(vec![hello(90.0, 10.0), auth()]);
    let before = model.snapshot().services[1].clone();

    model.configure(config(vec![hello(90.0, 10.0)]), Names::new(), 0).unwrap();
    model.configure(config(vec![auth(), hello(90.0, 10.0)]), Names::new(), 0).unwrap();

    assert!(Arc::ptr_eq(&model.take_leaving()[0], &before.versions[0].endpoints[0]));
    let after = &model.snapshot().services[0];
    assert_eq!((after.id, after.versions[0].id), (before.id, before.versions[0].id));
    assert_ne!(after.versions[0].endpoints[0].id, before.versions[0].endpoints[0].id);
}

#[test]
fn one_address_may_serve_two_versions() {
    let model = model(vec![service("hello", &[("a", 1.0, &["10.0.0.1:80"]), ("b", 1.0, &["10.0.0.1:80"])])]);

    let versions = &model.snapshot().services[0].versions;
    assert_ne!(versions[0].endpoints[0].id, versions[1].endpoints[0].id);
}

#[test]
fn endpoints_coming_and_going_change_no_epoch() {
    let mut model = model(vec![hello(90.0, 10.0)]);

    model
        .configure(
            config(vec![service("hello", &[("stable", 90.0, &[]), ("canary", 10.0, &["10.0.0.8:80"])])]),
            Names::new(),
            0,
        )
        .unwrap();

    assert_eq!(model.snapshot().services[0].epoch, 1);
    assert_eq!(model.snapshot().services[0].versions[0].endpoints.len(), 0);
}

#[test]
fn what_may_move_a_client_grows_the_epoch() {
    let base = hello(90.0, 10.0);
    let changes = [
        hello(80.0, 20.0),
        ServiceConfig { salt: Some(config::Secret("s".into())), ..base.clone() },
        ServiceConfig { cohort: Some("c".into()), ..base.clone() },
        ServiceConfig { affinity: Affinity::None, ..base.clone() },
        ServiceConfig { when_empty: WhenEmpty::Fail, ..base.clone() },
        service("hello", &[("stable", 90.0, &[]), ("beta", 10.0, &[])]),
        service("hello", &[("canary", 90.0, &[]), ("stable", 10.0, &[])]),
    ];

    for change in changes {
        let mut model = model(vec![base.clone()]);
        model.configure(config(vec![change.clone()]), Names::new(), 0).unwrap();
        assert_eq!(model.snapshot().services[0].epoch, 2, "{change:?}");
    }
}

#[test]
fn weights_set_at_run_time_survive_a_reload_that_leaves_the_files_weights_alone() {
    let mut model = model(vec![hello(90.0, 10.0)]);
    set(&mut model, "hello", &[("canary", "20%")]).unwrap();

    model
        .configure(config(vec![ServiceConfig { version_header: true, ..hello(90.0, 10.0) }]), Names::new(), 0)
        .unwrap();

    assert_eq!(weights(&model, 0), [90.0, 22.5]);
    assert_eq!(model.snapshot().services[0].epoch, 2, "the reload moved nobody");
}

#[test]
fn the_files_weights_win_once_they_change() {
    let mut model = model(vec![hello(90.0, 10.0)]);
    set(&mut model, "hello", &[("canary", "20%")]).unwrap();

    model.configure(config(vec![hello(95.0, 5.0)]), Names::new(), 0).unwrap();

    assert_eq!(weights(&model, 0), [95.0, 5.0]);
}

#[test]
fn a_share_after_everything_was_given_away_uses_the_files_ratios() {
    let mut model = model(vec![service("hello", &[("a", 60.0, &[]), ("b", 30.0, &[]), ("c", 10.0, &[])])]);
    set(&mut model, "hello", &[("c", "100%")]).unwrap();

    set(&mut model, "hello", &[("c", "10%")]).unwrap();

    assert_eq!(weights(&model, 0), [60.0, 30.0, 10.0]);
}

#[test]
fn a_write_based_on_an_older_split_is_refused_and_changes_nothing() {
    let mut model = model(vec![hello(90.0, 10.0), auth()]);
    set_at(&mut model, "hello", &[("canary", "20%")], Some(1), 0).unwrap();

    let refused = set_at(&mut model, "hello", &[("canary", "30%")], Some(1), 0).unwrap_err();

    assert_eq!(refused, ChangeError::Conflict { service: "hello".into(), changed: 2, current: 2 });
    assert_eq!((weights(&model, 0), model.snapshot().generation), (vec![90.0, 22.5], 2));
}

#[test]
fn a_generation_that_moved_nobody_of_the_service_is_no_conflict() {
    let mut model = model(vec![hello(90.0, 10.0), auth()]);
    set(&mut model, "auth", &[("stable", "2")]).unwrap();

    assert_eq!(set_at(&mut model, "hello", &[("canary", "20%")], Some(1), 0), Ok(()));
    assert!(matches!(set_at(&mut model, "auth", &[("stable", "3")], Some(9), 0), Err(ChangeError::Conflict { .. })));
}

#[test]
fn an_unknown_service_is_named() {
    let error = set(&mut model(vec![hello(90.0, 10.0), auth()]), "helo", &[("canary", "1%")]).unwrap_err();

    assert_eq!(error.to_string(), "there is no service `helo`; the services are `hello`, `auth`");
}

#[test]
fn a_configuration_that_cannot_be_built_changes_nothing() {
    let mut model = model(vec![hello(90.0, 10.0)]);
    let route = Route { name: "r".into(), hostnames: vec![], matches: vec![], service: 7, listeners: vec![] };

    let error =
        model.configure(Config { routes: vec![route], ..config(vec![hello(1.0, 1.0)]) }, Names::new(), 0).unwrap_err();

    assert!(matches!(error, BuildError::NoSuchService { service: 7, .. }));
    assert_eq!((weights(&model, 0), model.snapshot().generation), (vec![90.0, 10.0], 1));
}

#[test]
fn evict_holds_nobody() {
    let mut model = model(vec![hello(90.0, 10.0)]);

    set(&mut model, "hello", &[("canary", "5%")]).unwrap();

    assert_eq!(holds(&model), [Hold::None, Hold::None]);
}

#[test]
fn drain_holds_the_clients_of_the_version_that_shrank_until_the_deadline() {
    let mut model = model(vec![drain(hello(90.0, 10.0), 60)]);

    set_at(&mut model, "hello", &[("canary", "5%")], None, 1_000).unwrap();

    assert_eq!(holds(&model), [Hold::None, Hold::Until(61_000)]);
    assert_eq!(model.next_deadline(), Some(61_000));
}

#[test]
fn a_drain_that_is_over_is_taken_out_by_the_next_build() {
    let mut model = model(vec![drain(hello(90.0, 10.0), 60)]);
    set_at(&mut model, "hello", &[("canary", "5%")], None, 1_000).unwrap();

    model.rebuild(61_000).unwrap();

    assert_eq!((holds(&model), model.next_deadline()), (vec![Hold::None; 2], None));
    assert_eq!(model.snapshot().services[0].epoch, 3);
}

#[test]
fn a_drain_goes_on_when_its_version_grows_again() {
    let mut model = model(vec![drain(hello(90.0, 10.0), 60)]);
    set_at(&mut model, "hello", &[("canary", "5%")], None, 0).unwrap();

    set_at(&mut model, "hello", &[("canary", "8%")], None, 5_000).unwrap();

    assert_eq!(holds(&model), [Hold::Until(65_000), Hold::Until(60_000)]);
}

#[test]
fn a_new_version_takes_share_from_all_others() {
    let mut model = model(vec![drain(hello(90.0, 10.0), 60)]);
    let with_beta = drain(service("hello", &[("beta", 10.0, &[]), ("stable", 90.0, &[]), ("canary", 10.0, &[])]), 60);

    model.configure(config(vec![with_beta]), Names::new(), 0).unwrap();

    assert_eq!(holds(&model), [Hold::None, Hold::Until(60_000), Hold::Until(60_000)]);
}

#[test]
fn freeze_lasts_until_another_rule_is_given() {
    let mut model = model(vec![ServiceConfig { on_decrease: OnDecrease::Freeze, ..hello(90.0, 10.0) }]);
    set(&mut model, "hello", &[("canary", "5%")]).unwrap();
    set(&mut model, "hello", &[("canary", "6%")]).unwrap();
    assert_eq!(holds(&model), [Hold::Frozen, Hold::Frozen]);

    let amounts = vec![("canary".into(), Amount::Share(0.0))];
    let verb = Verb::SetWeights { amounts, closed: false, on_decrease: Some(OnDecrease::Evict) };
    model.change(&Change::new("hello", verb, "test"), 0).unwrap();

    assert_eq!(holds(&model), [Hold::None, Hold::None]);
}

#[test]
fn a_hold_lasts_over_builds_that_change_no_weight() {
    let mut model = model(vec![drain(hello(90.0, 10.0), 60), auth()]);
    set_at(&mut model, "hello", &[("canary", "5%")], None, 0).unwrap();
    let before = model.snapshot().services[0].clone();

    set_at(&mut model, "auth", &[("stable", "2")], None, 30_000).unwrap();

    assert!(Arc::ptr_eq(&before, &model.snapshot().services[0]));
}

#[test]
fn closing_a_service_with_drain_lets_active_clients_finish() {
    let mut model = model(vec![drain(hello(90.0, 10.0), 60)]);
    let amounts = ["stable", "canary"].map(|n| (n.to_owned(), Amount::Weight(Weight::ZERO))).to_vec();
    let verb = Verb::SetWeights { amounts, closed: true, on_decrease: None };

    model.change(&Change::new("hello", verb, "test"), 0).unwrap();

    assert_eq!(holds(&model), [Hold::Until(60_000); 2]);
}

#[test]
fn a_names_addresses_are_its_endpoints_and_an_empty_answer_keeps_the_last() {
    let name = || ("hello.test".to_owned(), 80);
    let addresses = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let mut model = model(vec![service("hello", &[("v", 1.0, &["hello.test:80", "10.0.0.2:80"])])]);
    assert_eq!(model.snapshot().services[0].versions[0].endpoints.len(), 1);

    assert!(model.resolve(name(), addresses(&["10.0.0.3:80", "10.0.0.2:80", "10.0.0.1:80"])));
    model.rebuild(0).unwrap();
    assert!(!model.resolve(name(), addresses(&["10.0.0.1:80", "10.0.0.3:80", "10.0.0.2:80"])), "another order");
    assert!(!model.resolve(name(), Vec::new()));

    let found: Vec<String> =
        model.snapshot().services[0].versions[0].endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(found, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
}

#[test]
fn a_name_that_left_the_configuration_is_forgotten() {
    let mut model = model(vec![service("hello", &[("v", 1.0, &["hello.test:80"])])]);
    let name = ("hello.test".to_owned(), 80);
    model.resolve(name.clone(), vec!["10.0.0.1:80".parse().unwrap()]);

    model.configure(config(vec![auth()]), Names::new(), 0).unwrap();

    assert!(!model.knows(&name));
    assert!(!model.resolve(name, vec!["10.0.0.2:80".parse().unwrap()]), "a late answer changes nothing");
}

#[test]
fn a_rebuild_keeps_services_that_nothing_touched_also_where_an_address_is_named_twice() {
    let twice = service("twice", &[("v", 1.0, &["10.0.2.1:80", "10.0.2.1:80", "a.example:80"])]);
    let names = Names::from([(("a.example".to_owned(), 80), vec!["10.0.2.7:80".parse().unwrap()])]);
    let mut model = Model::new(config(vec![hello(90.0, 10.0), twice]), names, 0).unwrap();
    let before = model.snapshot().clone();

    model.rebuild(0).unwrap();
    let same = model.snapshot().clone();
    assert!(model.resolve(("a.example".to_owned(), 80), vec!["10.0.2.8:80".parse().unwrap()]));
    model.rebuild(0).unwrap();
    let after = model.snapshot();

    assert!(std::iter::zip(&before.services, &same.services).all(|(b, s)| Arc::ptr_eq(b, s)));
    assert!(Arc::ptr_eq(&before.services[0], &after.services[0]));
    assert_eq!(after.services[1].versions[0].endpoints[1].address.to_string(), "10.0.2.8:80");
    assert!(Arc::ptr_eq(&before.services[1].versions[0].endpoints[0], &after.services[1].versions[0].endpoints[0]));
}

#[test]
fn another_name_for_an_address_is_another_endpoint_where_certificates_are_verified_by_it() {
    let tls = EndpointTls { hostname: None, ca_files: Vec::new(), client_certificate: None };
    for (tls, is_other) in [(None, false), (Some(tls), true)] {
        let named = |name: &str| {
            let mut named = service("named", &[("v", 1.0, &[name])]);
            named.versions[0].transport = Arc::new(Transport { protocol: EndpointProtocol::Http1, tls: tls.clone() });
            named
        };
        let address = || vec!["10.0.0.1:443".parse().unwrap()];
        let names = |host: &str| Names::from([((host.to_owned(), 443), address())]);
        let mut model = Model::new(config(vec![named("old.example:443")]), names("old.example"), 0).unwrap();
        let before = model.snapshot().services[0].versions[0].endpoints[0].clone();

        model.configure(config(vec![named("new.example:443")]), names("new.example"), 0).unwrap();

        let after = &model.snapshot().services[0].versions[0].endpoints[0];
        assert_eq!((!Arc::ptr_eq(&before, after), &*after.name == "new.example:443"), (is_other, is_other));
    }
}
