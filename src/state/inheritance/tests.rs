use std::time::Duration;

use super::*;
use crate::decide::ClientKey;
use crate::decide::reweigh::Amount;
use crate::state::fixtures::{auth, config, hello};
use crate::state::model::{Change, Model, Names};
use crate::state::pins::Pin;

const LONG: Duration = Duration::from_secs(10_800);

fn key(n: u8) -> ClientKey {
    ClientKey::from_bytes([n; 16])
}

fn whole(inheritance: &Inheritance) -> Inheritance {
    serde_json::from_slice(&serde_json::to_vec(inheritance).unwrap()).unwrap()
}

/// A model after a verb, in epoch 2 of `hello`.
fn before() -> Model {
    let mut model = Model::new(config(vec![auth(), hello(9.0, 1.0)]), Names::new(), 1_000).unwrap();
    let amounts = vec![("canary".to_owned(), Amount::Weight(crate::decide::Weight::new(3.0).unwrap()))];
    let staged = model.stage(&Change::weights("hello", amounts, "test"), 1_000).unwrap();
    model.put(staged);
    model
}

fn after(before: &Model, services: Vec<config::Service>) -> (Model, Inheritance) {
    let left = whole(&before.inheritance());
    let model = Model::inherit(config(services), Names::new(), left.rollouts.clone(), left.clone(), 2_000).unwrap();
    (model, left)
}

#[test]
fn generation_weights_and_epochs_go_on() {
    let before = before();
    let (there, (here, _)) = (before.snapshot(), after(&before, vec![hello(9.0, 1.0), auth()]));
    let here = here.snapshot();

    assert_eq!(here.generation, there.generation + 1);
    for service in &there.services {
        let same = here.services.iter().find(|s| s.name == service.name).unwrap();
        assert_eq!(same.policy.split.weights(), service.policy.split.weights());
        assert_eq!((same.epoch, same.aborted), (service.epoch, service.aborted));
    }
}

#[test]
fn what_moves_clients_is_another_epoch() {
    let before = before();
    let mut other = hello(9.0, 1.0);
    other.cohort = Some("other".into());

    let (here, _) = after(&before, vec![other, auth()]);

    assert_eq!(here.snapshot().services[0].epoch, before.snapshot().services[1].epoch + 1);
    assert_eq!(here.snapshot().services[1].epoch, before.snapshot().services[0].epoch);
}

#[test]
fn who_looked_before_may_still_change_what_did_not_change_since() {
    let before = before();
    let (mut here, _) = after(&before, vec![auth(), hello(9.0, 1.0)]);
    let amounts = vec![("canary".to_owned(), Amount::Weight(crate::decide::Weight::new(4.0).unwrap()))];
    let mut change = Change::weights("hello", amounts, "test");

    change.expected = Some(before.snapshot().generation);
    assert!(here.stage(&change, 2_000).is_ok());
    change.expected = Some(before.snapshot().generation - 1);
    assert!(here.stage(&change, 2_000).is_err());
}

#[test]
fn pins_go_on_by_name_and_address() {
    let before = before();
    let there = before.snapshot();
    let (service, canary) = (&there.services[1], &there.services[1].versions[1]);
    let stable = &service.versions[0];
    let theirs = Pins::new(10_000);
    let keep = |n: u8, version: &Version, endpoint: usize, now: u64| {
        let pin = Pin {
            version: version.id,
            home: Some(service.versions[1].id),
            endpoint: version.endpoints[endpoint].clone(),
            epoch: service.epoch,
            why: crate::decide::Why::DrainPin,
        };
        theirs.keep(service.id, key(n), pin, now);
    };
    keep(1, stable, 1, 5_000);
    keep(2, canary, 0, 7_000);
    theirs.touch(service.id, key(2), 9_000, LONG);
    let parts = leave_pins(&theirs, there);

    // The other way round, with one endpoint less.
    let mut changed = hello(9.0, 1.0);
    changed.versions[0].endpoints.remove(1);
    let (here, left) = after(&before, vec![changed, auth()]);
    let (ours, here) = (Pins::new(10_000), here.snapshot());
    take_pins(&ours, &parts, &left, here);

    let service = &here.services[0];
    assert_eq!(ours.len(), 2);
    let one = ours.peek(service.id, key(1), 5_000, LONG).unwrap();
    assert!(one.version == service.versions[0].id && one.endpoint.health.is_gone());
    let other = ours.peek(service.id, key(2), 5_000, LONG).unwrap();
    assert!(Arc::ptr_eq(&other.endpoint, &service.versions[1].endpoints[0]));
    assert_eq!((other.epoch, other.why), (service.epoch, crate::decide::Why::DrainPin));
    assert_eq!(other.home, Some(service.versions[1].id));
    // Last uses too.
    assert!(ours.peek(service.id, key(1), 5_000 + 10_802_000, LONG).is_none());
    assert!(ours.peek(service.id, key(2), 5_000 + 10_802_000, LONG).is_some());
}
