//! What the EndpointSlices of one Service say: which addresses serve, whose pod each is, and which are on their way out.
//!
//! The answer depends on the set of slices only, never on how or in which order it came about, so a watch that saw every
//! event and one that listed once agree. It does not know what a cluster, a watch or a snapshot is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// A TCP port of all endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service's port name; empty for a port without one.
    pub name: String,
    /// `None`: any port.
    pub number: Option<u16>,
}

/// An endpoint of a slice. The conditions are as in the API: `None` is a server that does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first one; the API gives the others no meaning.
    pub address: IpAddr,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub pod: Option<Pod>,
}

/// The pod behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    /// Differs between two pods that had the same name or address one after the other.
    pub uid: Arc<str>,
}

/// Which port of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Port {
    /// As the Service calls it.
    Name(String),
    /// The pods' own, the Service's `targetPort`.
    Number(u16),
}

/// An address to send requests to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    pub address: SocketAddr,
    /// The uid of the pod: an address with another uid is another endpoint.
    pub pod: Option<Arc<str>>,
    /// Finishes what it has and takes nothing new.
    pub is_draining: bool,
}

/// What a source has, to be told: cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// To send requests to.
    pub usable: Arc<[Discovered]>,
    /// There as well, and never sent anything: see [`Reading::unready`].
    pub unready: Arc<[SocketAddr]>,
}

/// Whether the pod of an endpoint is one of those that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    Yes,
    No,
    /// Nothing is known of the pod, or not yet.
    Unknown,
}

/// All that slices say of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Those to use, each address once, in order.
    pub usable: Vec<Discovered>,
    /// Of these, the ones that the cluster calls terminating, though they may be all there is.
    pub ending: BTreeSet<SocketAddr>,
    /// Those of the source that are not to be used: not ready, or terminating and no longer serving. Each once and in
    /// order, so that with the usable ones they are all that the source has.
    pub unready: Vec<SocketAddr>,
    /// Every address that is named at all, whatever its state and whoever's it is.
    pub named: BTreeSet<SocketAddr>,
    /// What may become usable: not ready yet, or of a pod that is not known yet. An address or a pod, or both.
    pub awaited: Vec<(Option<SocketAddr>, Option<Arc<str>>)>,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// What all slices of a Service say. `choose` tells whether an endpoint's pod is one of those that are asked for.
///
/// An endpoint that terminates but still serves is draining; when there are only such, they are used as if they were
/// ready, since one that goes is better than none. Of a pod with addresses of both families the IPv4 one counts: twice
/// the addresses would be twice the share.
#[must_use]
pub fn read<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    port: &Port,
    choose: impl Fn(Option<&Pod>) -> Chosen,
) -> Reading {
    let mut reading = Reading::default();
    let mut found: BTreeMap<SocketAddr, Discovered> = BTreeMap::new();
    let mut unready: BTreeMap<SocketAddr, BTreeSet<Option<Arc<str>>>> = BTreeMap::new();
    for slice in slices {
        for number in slice.ports.iter().filter_map(|p| p.number_for(port)) {
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.address, number);
                reading.named.insert(address);
                let pod = endpoint.pod.as_ref().map(|p| p.uid.clone());
                let is_chosen = match choose(endpoint.pod.as_ref()) {
                    Chosen::No => continue,
                    Chosen::Unknown => false,
                    Chosen::Yes => true,
                };
                let Some(is_draining) = endpoint.is_draining().filter(|_| is_chosen) else {
                    if is_chosen {
                        unready.entry(address).or_default().insert(pod.clone());
                    }
                    if endpoint.terminating != Some(true) {
                        reading.awaited.push((Some(address), pod));
                    }
                    continue;
                };
                let next = Discovered { address, pod, is_draining };
                // An endpoint may be in two slices while the cluster moves it, and an address may pass from a pod that
                // ends to one that starts.
                match found.get(&address) {
                    Some(known) if known.rank() >= next.rank() => {}
                    Some(_) | None => drop(found.insert(address, next)),
                }
            }
        }
    }
    let on_v4: HashSet<Arc<str>> =
        found.values().filter(|d| d.address.is_ipv4()).filter_map(|d| d.pod.clone()).collect();
    // The IPv4 addresses come first, so that one pod is one endpoint here as well.
    let mut counted: HashSet<Arc<str>> = found.values().filter_map(|d| d.pod.clone()).collect();
    for (address, pods) in unready {
        let is_new = pods.iter().any(|pod| pod.as_ref().is_none_or(|uid| !counted.contains(uid)));
        if is_new && !found.contains_key(&address) {
            reading.unready.push(address);
        }
        counted.extend(pods.into_iter().flatten());
    }
    reading.usable = found
        .into_values()
        .filter(|d| d.address.is_ipv4() || !d.pod.as_ref().is_some_and(|uid| on_v4.contains(uid)))
        .collect();
    let all = &mut reading.usable;
    reading.ending = all.iter().filter(|d| d.is_draining).map(|d| d.address).collect();
    if all.iter().all(|d| d.is_draining) {
        all.iter_mut().for_each(|d| d.is_draining = false);
    }
    reading
}

impl SlicePort {
    fn number_for(&self, wanted: &Port) -> Option<u16> {
        match wanted {
            Port::Name(name) if self.name == *name => self.number,
            Port::Number(number) if self.number.is_none_or(|n| n == *number) => Some(*number),
            Port::Name(_) | Port::Number(_) => None,
        }
    }
}

impl SliceEndpoint {
    /// `None`: it takes no requests at all.
    fn is_draining(&self) -> Option<bool> {
        // Only an explicit `ready` counts for one that terminates: the API sets it for Services that publish addresses
        // that aren't ready.
        if self.terminating == Some(true) && self.ready != Some(true) {
            let serves = self.serving.unwrap_or(self.ready != Some(false));
            return serves.then_some(true);
        }
        // The API: unknown is to be read as ready.
        (self.ready != Some(false)).then_some(false)
    }
}

impl Discovered {
    /// Of two at one address the greater counts: ready before draining, then any order that all replicas share.
    fn rank(&self) -> (bool, Option<&str>) {
        (!self.is_draining, self.pod.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(address: &str, uid: &str) -> SliceEndpoint {
        let pod = (!uid.is_empty()).then(|| Pod { name: format!("pod-{uid}"), uid: uid.into() });
        SliceEndpoint { address: address.parse().unwrap(), ready: Some(true), serving: None, terminating: None, pod }
    }

    fn terminating(address: &str, uid: &str, serving: bool) -> SliceEndpoint {
        let (ready, terminating) = (Some(false), Some(true));
        SliceEndpoint { ready, serving: Some(serving), terminating, ..endpoint(address, uid) }
    }

    fn slice(endpoints: &[SliceEndpoint]) -> Slice {
        Slice { ports: vec![SlicePort { name: "http".into(), number: Some(8080) }], endpoints: endpoints.to_vec() }
    }

    fn all(slices: &[Slice]) -> Vec<Discovered> {
        read(slices, &Port::Name("http".into()), |_| Chosen::Yes).usable
    }

    /// `10.0.0.1:8080/a` for a ready one, with `-` behind for a draining one.
    fn shown(found: &[Discovered]) -> Vec<String> {
        let mark = |d: &Discovered| if d.is_draining { "-" } else { "" };
        found.iter().map(|d| format!("{}/{}{}", d.address, d.pod.as_deref().unwrap_or(""), mark(d))).collect()
    }

    #[test]
    fn several_slices_are_one_set_and_each_address_counts_once() {
        let slices = [
            slice(&[endpoint("10.0.0.2", "b"), endpoint("10.0.0.1", "a")]),
            slice(&[endpoint("10.0.0.2", "b"), endpoint("10.0.0.3", "")]),
            slice(&[]),
        ];

        assert_eq!(shown(&all(&slices)), ["10.0.0.1:8080/a", "10.0.0.2:8080/b", "10.0.0.3:8080/"]);
    }

    #[test]
    fn an_unknown_condition_is_ready_and_only_a_false_one_is_not() {
        let conditions = [(None, true), (Some(true), true), (Some(false), false)];

        for (ready, is_used) in conditions {
            let found = all(&[slice(&[SliceEndpoint { ready, ..endpoint("10.0.0.1", "a") }])]);
            assert_eq!(!found.is_empty(), is_used, "{ready:?}");
        }
    }

    #[test]
    fn one_that_terminates_drains_while_it_serves() {
        let slices = [slice(&[
            endpoint("10.0.0.1", "a"),
            terminating("10.0.0.2", "b", true),
            terminating("10.0.0.3", "c", false),
        ])];

        assert_eq!(shown(&all(&slices)), ["10.0.0.1:8080/a", "10.0.0.2:8080/b-"]);
    }

    #[test]
    fn draining_ones_are_used_when_nothing_else_is_left() {
        let slices = [slice(&[terminating("10.0.0.2", "b", true), terminating("10.0.0.3", "c", false)])];

        assert_eq!(shown(&all(&slices)), ["10.0.0.2:8080/b"]);
    }

    #[test]
    fn an_address_that_passes_to_another_pod_belongs_to_the_ready_one() {
        let old = slice(&[terminating("10.0.0.1", "z", true)]);
        let new = slice(&[endpoint("10.0.0.1", "a")]);

        assert_eq!(shown(&all(&[old.clone(), new.clone()])), ["10.0.0.1:8080/a"]);
        assert_eq!(shown(&all(&[new, old])), ["10.0.0.1:8080/a"]);
    }

    #[test]
    fn a_pod_of_both_families_counts_once_and_a_pod_of_one_stays() {
        let v4 = slice(&[endpoint("10.0.0.1", "a")]);
        let v6 = slice(&[endpoint("2001:db8::1", "a"), endpoint("2001:db8::2", "b")]);

        assert_eq!(shown(&all(&[v6, v4])), ["10.0.0.1:8080/a", "[2001:db8::2]:8080/b"]);
    }

    #[test]
    fn a_port_is_found_by_name_or_by_number() {
        let mut slice = slice(&[endpoint("10.0.0.1", "a")]);
        slice.ports.push(SlicePort { name: "health".into(), number: Some(81) });
        let addresses = |port| shown(&read([&slice], &port, |_| Chosen::Yes).usable);

        assert_eq!(addresses(Port::Name("health".into())), ["10.0.0.1:81/a"]);
        assert_eq!(addresses(Port::Number(8080)), ["10.0.0.1:8080/a"]);
        assert!(addresses(Port::Number(8081)).is_empty());
        slice.ports = vec![SlicePort { name: String::new(), number: None }];
        assert_eq!(shown(&read([&slice], &Port::Number(99), |_| Chosen::Yes).usable), ["10.0.0.1:99/a"]);
    }

    #[test]
    fn only_chosen_pods_are_found() {
        let slices = [slice(&[endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"), endpoint("10.0.0.3", "")])];

        let found = read(&slices, &Port::Name("http".into()), |pod| match pod {
            Some(pod) if pod.name == "pod-b" => Chosen::Yes,
            Some(_) => Chosen::No,
            None => Chosen::Unknown,
        });

        assert_eq!(shown(&found.usable), ["10.0.0.2:8080/b"]);
        assert!(found.unready.is_empty(), "nobody's, or another version's");
        assert_eq!(found.awaited, [(Some("10.0.0.3:8080".parse().unwrap()), None)], "unknown is not no");
        assert_eq!(found.named.len(), 3);
    }

    #[test]
    fn what_is_not_to_be_used_is_there_all_the_same_and_counts_once() {
        let unready = |address: &str, uid: &str| SliceEndpoint { ready: Some(false), ..endpoint(address, uid) };
        let slices = [
            slice(&[endpoint("10.0.0.1", "a"), unready("10.0.0.2", "b"), terminating("10.0.0.3", "c", false)]),
            // Twice in the slices, an address that passed on, and the other family of pods that are counted.
            slice(&[unready("10.0.0.2", "b"), terminating("10.0.0.1", "z", false)]),
            slice(&[unready("2001:db8::1", "a"), unready("2001:db8::2", "b"), unready("2001:db8::4", "d")]),
        ];

        let found = read(&slices, &Port::Name("http".into()), |_| Chosen::Yes);

        assert_eq!(shown(&found.usable), ["10.0.0.1:8080/a"]);
        let unready: Vec<String> = found.unready.iter().map(ToString::to_string).collect();
        assert_eq!(unready, ["10.0.0.2:8080", "10.0.0.3:8080", "[2001:db8::4]:8080"]);
    }

    #[test]
    fn what_is_not_ready_is_awaited_unless_it_ends() {
        let unready = SliceEndpoint { ready: Some(false), ..endpoint("10.0.0.2", "b") };
        let slices = [slice(&[terminating("10.0.0.1", "a", true), unready, terminating("10.0.0.3", "c", false)])];

        let found = read(&slices, &Port::Name("http".into()), |_| Chosen::Yes);

        assert_eq!(found.awaited, [(Some("10.0.0.2:8080".parse().unwrap()), Some("b".into()))]);
        assert_eq!(found.ending, ["10.0.0.1:8080".parse().unwrap()].into());
        assert!(!found.usable[0].is_draining, "used when nothing else is left");
    }

    fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
        let condition = || prop::option::of(any::<bool>());
        (0u8..6, prop::option::of(0u8..4), condition(), condition(), condition()).prop_map(
            |(address, pod, ready, serving, terminating)| SliceEndpoint {
                address: if address < 4 {
                    [10, 0, 0, address].into()
                } else {
                    [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(address)].into()
                },
                ready,
                serving,
                terminating,
                pod: pod.map(|uid| Pod { name: format!("pod-{uid}"), uid: uid.to_string().into() }),
            },
        )
    }

    proptest! {
        #[test]
        fn the_order_of_slices_and_endpoints_changes_nothing(
            endpoints in prop::collection::vec((any_endpoint(), 0usize..3), 0..20),
            shuffled in any::<prop::sample::Index>(),
        ) {
            let sorted = |order: &[(SliceEndpoint, usize)]| {
                let of = |n| order.iter().filter(|(_, s)| *s == n).map(|(e, _)| e.clone()).collect::<Vec<_>>();
                [slice(&of(0)), slice(&of(1)), slice(&of(2))]
            };
            let slices = sorted(&endpoints);
            let mut other = endpoints.clone();
            if !other.is_empty() {
                other.reverse();
                let by = shuffled.index(other.len());
                other.rotate_left(by);
            }
            let mut others = sorted(&other);
            others.reverse();

            let whole = |slices: &[Slice]| read(slices, &Port::Name("http".into()), |_| Chosen::Yes);
            let (found, unready) = (all(&slices), whole(&slices).unready);

            prop_assert_eq!(&found, &all(&others));
            prop_assert_eq!(&unready, &whole(&others).unready);
            prop_assert!(unready.iter().all(|a| found.iter().all(|d| d.address != *a)));
            prop_assert!(found.windows(2).all(|w| w[0].address < w[1].address));
            prop_assert!(found.is_empty() || found.iter().any(|d| !d.is_draining));
        }
    }
}
