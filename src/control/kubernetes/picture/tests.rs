use proptest::prelude::*;

use super::super::objects::Kind;
use super::*;
use crate::config::KubernetesPort;

fn key(kind: Kind) -> StreamKey {
    StreamKey { kind, namespace: "lab".into(), selector: String::new() }
}

fn slice(name: &str, service: &str, version: u64, endpoints: &[(u8, &str, bool)]) -> Object {
    let endpoints: Vec<serde_json::Value> = endpoints
        .iter()
        .map(|(host, pod, ready)| {
            serde_json::json!({
                "addresses": [format!("10.0.0.{host}")],
                "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-{pod}")},
            })
        })
        .collect();
    let json = serde_json::json!({
        "metadata": {"name": name, "resourceVersion": version.to_string(), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 80}],
    });
    Kind::EndpointSlices.read(&json.to_string()).unwrap()
}

fn pod(name: &str, version: u64, track: &str) -> Object {
    let json = serde_json::json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string(), "labels": {"track": track}},
    });
    Kind::Pods.read(&json.to_string()).unwrap()
}

fn source(track: Option<&str>) -> KubernetesSource {
    KubernetesSource {
        service: KubernetesService { namespace: None, name: "hello".into() },
        port: KubernetesPort::Name("http".into()),
        pod_labels: track.map(|t| ("track".to_owned(), t.to_owned())).into_iter().collect(),
    }
}

fn hosts(picture: &Picture, track: Option<&str>) -> Option<Vec<String>> {
    let pods = track.map(|_| key(Kind::Pods));
    let found = picture.reading(&source(track), &key(Kind::EndpointSlices), pods.as_ref())?;
    Some(found.usable.iter().map(|d| d.address.to_string()).collect())
}

fn version(number: u64) -> Version {
    Version(number.to_string())
}

fn listed(picture: &mut Picture, kind: Kind, objects: Vec<Object>, at: u64) {
    assert_eq!(picture.learn(&key(kind), News::Listed(objects, version(at))), Changed::Everything);
}

#[test]
fn nothing_is_known_before_every_list_that_is_needed() {
    let mut picture = Picture::default();
    assert_eq!(hosts(&picture, None), None);

    listed(&mut picture, Kind::EndpointSlices, vec![slice("a", "hello", 1, &[(1, "p1", true)])], 1);

    assert_eq!(hosts(&picture, None), Some(vec!["10.0.0.1:80".into()]));
    assert_eq!(hosts(&picture, Some("canary")), None);
}

#[test]
fn a_slice_that_goes_takes_only_its_own_endpoints() {
    let mut picture = Picture::default();
    let objects = vec![slice("a", "hello", 1, &[(1, "p1", true)]), slice("b", "hello", 2, &[(2, "p2", true)])];
    listed(&mut picture, Kind::EndpointSlices, objects, 2);

    let changed = picture.learn(&key(Kind::EndpointSlices), News::Deleted { name: "a".into(), version: version(3) });

    assert_eq!(changed, Changed::Services(["hello".to_owned()].into()));
    assert_eq!(hosts(&picture, None), Some(vec!["10.0.0.2:80".into()]));
}

#[test]
fn a_list_replaces_what_was_known_in_one_step() {
    let mut picture = Picture::default();
    listed(&mut picture, Kind::EndpointSlices, vec![slice("a", "hello", 1, &[(1, "p1", true)])], 5);

    listed(&mut picture, Kind::EndpointSlices, vec![slice("b", "hello", 7, &[(2, "p2", true)])], 9);

    assert_eq!(hosts(&picture, None), Some(vec!["10.0.0.2:80".into()]));
}

#[test]
fn an_older_event_changes_nothing() {
    let mut picture = Picture::default();
    let slices = key(Kind::EndpointSlices);
    listed(&mut picture, Kind::EndpointSlices, vec![slice("a", "hello", 5, &[(1, "p1", true)])], 9);

    let stale = picture.learn(&slices, News::Applied(slice("a", "hello", 4, &[(7, "p7", true)])));
    picture.learn(&slices, News::Deleted { name: "a".into(), version: version(12) });
    let ghost = picture.learn(&slices, News::Applied(slice("a", "hello", 11, &[(8, "p8", true)])));

    assert_eq!((stale, ghost), (Changed::Nothing, Changed::Nothing));
    assert_eq!(hosts(&picture, None), Some(vec![]));
}

#[test]
fn a_pod_that_changes_its_label_changes_sides() {
    let mut picture = Picture::default();
    listed(&mut picture, Kind::EndpointSlices, vec![slice("a", "hello", 1, &[(1, "p1", true), (2, "p2", true)])], 1);
    listed(&mut picture, Kind::Pods, vec![pod("p1", 1, "stable"), pod("p2", 2, "canary")], 2);
    assert_eq!(hosts(&picture, Some("canary")), Some(vec!["10.0.0.2:80".into()]));

    picture.learn(&key(Kind::Pods), News::Applied(pod("p1", 3, "canary")));

    assert_eq!(hosts(&picture, Some("canary")), Some(vec!["10.0.0.1:80".into(), "10.0.0.2:80".into()]));
    assert_eq!(hosts(&picture, Some("stable")), Some(vec![]));
}

#[test]
fn a_pod_of_the_same_name_that_came_after_is_another_one() {
    let mut picture = Picture::default();
    listed(&mut picture, Kind::EndpointSlices, vec![slice("a", "hello", 1, &[(1, "p1", true)])], 1);
    let mut other = pod("p1", 2, "stable");
    let What::Pod(labels) = &mut other.what else { panic!("not a pod") };
    labels.uid = "another".into();

    listed(&mut picture, Kind::Pods, vec![other], 2);

    assert_eq!(hosts(&picture, Some("stable")), Some(vec![]));
}

#[test]
fn a_slice_that_passes_to_another_service_changes_both() {
    let mut picture = Picture::default();
    listed(&mut picture, Kind::EndpointSlices, vec![slice("a", "hello", 1, &[(1, "p1", true)])], 1);

    let changed = picture.learn(&key(Kind::EndpointSlices), News::Applied(slice("a", "other", 2, &[])));

    assert_eq!(changed, Changed::Services(["hello".to_owned(), "other".to_owned()].into()));
}

/// What happens to a cluster, in its order. The number is the version.
#[derive(Clone, Debug)]
enum Step {
    Slice(&'static str, Vec<(u8, &'static str, bool)>),
    DeleteSlice(&'static str),
    Pod(&'static str, &'static str),
    DeletePod(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let slice_name = || prop::sample::select(vec!["s1", "s2", "s3"]);
    let pod_name = || prop::sample::select(vec!["p1", "p2", "p3", "p4"]);
    let endpoint = (0u8..5, pod_name(), any::<bool>());
    prop_oneof![
        (slice_name(), prop::collection::vec(endpoint, 0..4)).prop_map(|(name, all)| Step::Slice(name, all)),
        slice_name().prop_map(Step::DeleteSlice),
        (pod_name(), prop::sample::select(vec!["stable", "canary"])).prop_map(|(name, track)| Step::Pod(name, track)),
        pod_name().prop_map(Step::DeletePod),
    ]
}

type Objects = BTreeMap<(Kind, String), Object>;

/// The events of a history, and what a list says at its end.
fn history(steps: &[Step]) -> (Vec<(Kind, News)>, Objects) {
    let mut events = Vec::new();
    let mut now = BTreeMap::new();
    for (number, step) in (1u64..).zip(steps) {
        let (kind, object) = match step {
            Step::Slice(name, endpoints) => (Kind::EndpointSlices, Ok(slice(name, "hello", number, endpoints))),
            Step::Pod(name, track) => (Kind::Pods, Ok(pod(name, number, track))),
            Step::DeleteSlice(name) => (Kind::EndpointSlices, Err(*name)),
            Step::DeletePod(name) => (Kind::Pods, Err(*name)),
        };
        match object {
            Ok(object) => {
                now.insert((kind, object.name.clone()), object.clone());
                events.push((kind, News::Applied(object)));
            }
            Err(name) => {
                if now.remove(&(kind, name.to_owned())).is_some() {
                    events.push((kind, News::Deleted { name: name.to_owned(), version: version(number) }));
                }
            }
        }
    }
    (events, now)
}

fn fresh(now: &Objects, at: u64) -> Picture {
    let mut picture = Picture::default();
    for kind in [Kind::EndpointSlices, Kind::Pods] {
        let objects = now.iter().filter(|((k, _), _)| *k == kind).map(|(_, object)| object.clone()).collect();
        listed(&mut picture, kind, objects, at);
    }
    picture
}

fn all(picture: &Picture) -> [Option<Reading>; 3] {
    [None, Some("stable"), Some("canary")].map(|track| {
        let pods = track.map(|_| key(Kind::Pods));
        picture.reading(&source(track), &key(Kind::EndpointSlices), pods.as_ref())
    })
}

proptest! {
    #[test]
    fn any_order_of_events_ends_as_a_fresh_list(
        steps in prop::collection::vec(step(), 0..40),
        // Places to move an event to, some events twice; and when somebody lists in between.
        order in prop::collection::vec(any::<u16>(), 40),
        listed_after in 0usize..40,
        bookmarked in any::<bool>(),
    ) {
        let (events, now) = history(&steps);
        let (_, at_list) = history(&steps[..listed_after.min(steps.len())]);
        let mut picture = fresh(&at_list, listed_after.min(steps.len()) as u64);
        let mut shuffled: Vec<(u16, &(Kind, News))> = order.iter().copied().zip(&events).collect();
        shuffled.sort_by_key(|(place, _)| *place);
        let again: Vec<_> = shuffled.iter().filter(|(place, _)| place % 3 == 0).copied().collect();

        for (_, (kind, news)) in shuffled.into_iter().chain(again) {
            picture.learn(&key(*kind), news.clone());
        }
        if bookmarked {
            picture.learn(&key(Kind::Pods), News::Bookmark(version(steps.len() as u64)));
        }

        prop_assert_eq!(all(&picture), all(&fresh(&now, steps.len() as u64)));
    }
}
