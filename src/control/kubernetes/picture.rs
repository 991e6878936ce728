//! What the watches have told so far, and what follows from it for each source of the configuration.
//!
//! A list replaces everything of its stream at once. Events that are older than what is known change nothing, so that
//! any order of them ends in what a fresh list would say. No clock, no socket: only objects and versions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::objects::{Affinity, Object, PodLabels, Version, What};
use super::streams::StreamKey;
use crate::config::{KubernetesService, KubernetesSource};
use crate::decide::slices::{self, Chosen, Reading, Slice};

/// News of one stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// A whole list, and its version.
    Listed(Vec<Object>, Version),
    Applied(Object),
    Deleted {
        name: String,
        version: Version,
    },
    /// All events up to this version have been seen.
    Bookmark(Version),
}

/// Everything that was told.
#[derive(Debug, Default)]
pub(super) struct Picture {
    streams: HashMap<StreamKey, Stream>,
}

/// The objects of one stream.
#[derive(Debug, Default)]
struct Stream {
    objects: BTreeMap<String, Object>,
    /// Slices by Service.
    by_service: HashMap<String, BTreeSet<String>>,
    /// Of a list or a bookmark: everything up to it is known.
    known_up_to: Option<u64>,
    /// Deletions since then, so that an older event brings nothing back.
    deleted: HashMap<String, u64>,
}

/// What news changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    /// The slices of these Services.
    Services(BTreeSet<String>),
    Everything,
}

impl Picture {
    /// Takes news of a stream in.
    pub(super) fn learn(&mut self, stream: &StreamKey, news: News) -> Changed {
        match news {
            News::Listed(objects, version) => {
                let known = self.streams.entry(stream.clone()).or_default();
                *known = Stream { known_up_to: version.number(), ..Stream::default() };
                for object in objects {
                    known.put(object);
                }
                Changed::Everything
            }
            News::Applied(object) => match self.streams.get_mut(stream) {
                Some(known) => known.apply(object),
                None => Changed::Nothing,
            },
            News::Deleted { name, version } => match self.streams.get_mut(stream) {
                Some(known) => known.delete(name, &version),
                None => Changed::Nothing,
            },
            News::Bookmark(version) => {
                if let (Some(known), Some(number)) = (self.streams.get_mut(stream), version.number()) {
                    known.known_up_to = known.known_up_to.max(Some(number));
                    known.deleted.retain(|_, deleted| *deleted > number);
                }
                Changed::Nothing
            }
        }
    }

    /// Whether a stream was listed.
    pub(super) fn has(&self, stream: &StreamKey) -> bool {
        self.streams.contains_key(stream)
    }

    /// Forgets streams that nobody watches any more.
    pub(super) fn retain(&mut self, is_watched: impl Fn(&StreamKey) -> bool) {
        self.streams.retain(|key, _| is_watched(key));
    }

    /// What is said of a source; `None` until each stream that it needs was listed.
    pub(super) fn reading(
        &self,
        source: &KubernetesSource,
        slices: &StreamKey,
        pods: Option<&StreamKey>,
    ) -> Option<Reading> {
        let slices = self.streams.get(slices)?;
        let pods = match pods {
            Some(key) => Some(self.streams.get(key)?),
            None => None,
        };
        let of_service = slices.by_service.get(&source.service.name);
        let all: Vec<&Slice> = of_service.into_iter().flatten().filter_map(|name| slices.slice(name)).collect();
        let choose = |pod: Option<&slices::Pod>| match (pods, pod) {
            (None, _) => Chosen::Yes,
            (Some(_), None) => Chosen::No,
            (Some(pods), Some(pod)) => match pods.pod(&pod.name) {
                // The uid too: a pod of the same name that came after is another one.
                Some(p) if *p.uid == *pod.uid => {
                    if p.is_of(source) {
                        Chosen::Yes
                    } else {
                        Chosen::No
                    }
                }
                Some(_) | None => Chosen::Unknown,
            },
        };
        let mut reading = slices::read(all.iter().copied(), &source.port, choose);
        if let Some(pods) = pods.filter(|_| reading.usable.is_empty()) {
            // A pod is in no slice until it has an address.
            let named: HashSet<&str> =
                all.iter().flat_map(|s| &s.endpoints).filter_map(|e| e.pod.as_ref()).map(|p| &*p.uid).collect();
            let starting = pods.living(source).filter(|p| !named.contains(&*p.uid));
            reading.awaited.extend(starting.map(|p| (None, Some(p.uid.as_str().into()))));
        }
        Some(reading)
    }

    /// Whether a pod is known to be no longer there, on its way out, or not of this source. Without the pods of it,
    /// nothing is known.
    pub(super) fn is_gone(&self, source: &KubernetesSource, pods: Option<&StreamKey>, uid: &str) -> bool {
        let pods = pods.and_then(|key| self.streams.get(key));
        pods.is_some_and(|pods| !pods.living(source).any(|p| p.uid == uid))
    }

    /// What a Service says of affinity; `None` until its stream was listed, or when there is no such Service.
    pub(super) fn affinity(&self, service: &KubernetesService, stream: &StreamKey) -> Option<Affinity> {
        match &self.streams.get(stream)?.objects.get(&service.name)?.what {
            What::Service(affinity) => Some(*affinity),
            What::Slice(..) | What::Pod(_) | What::ConfigMap(_) => None,
        }
    }
}

impl Stream {
    fn apply(&mut self, object: Object) -> Changed {
        let known = self.objects.get(&object.name).and_then(|o| o.version.number());
        let deleted = self.deleted.get(&object.name).copied();
        let floor = known.max(deleted).max(self.known_up_to);
        if let (Some(number), Some(floor)) = (object.version.number(), floor)
            && number <= floor
        {
            return Changed::Nothing;
        }
        self.deleted.remove(&object.name);
        let before = self.objects.get(&object.name);
        if before.is_some_and(|b| b.what == object.what) {
            self.put(object);
            return Changed::Nothing;
        }
        let mut changed = changed_by(&object.what);
        if let (Changed::Services(all), Some(What::Slice(service, _))) = (&mut changed, before.map(|b| &b.what)) {
            all.insert(service.clone());
        }
        self.put(object);
        changed
    }

    fn delete(&mut self, name: String, version: &Version) -> Changed {
        let known = self.objects.get(&name).and_then(|o| o.version.number());
        if let Some(number) = version.number() {
            // The deletion itself may carry the version that the object last had.
            if known.is_some_and(|known| number < known) || self.known_up_to.is_some_and(|floor| number < floor) {
                return Changed::Nothing;
            }
            let deleted = self.deleted.entry(name.clone()).or_default();
            *deleted = number.max(*deleted);
        }
        match self.take(&name) {
            Some(object) => changed_by(&object.what),
            None => Changed::Nothing,
        }
    }

    fn put(&mut self, object: Object) {
        self.take(&object.name);
        if let What::Slice(service, _) = &object.what {
            self.by_service.entry(service.clone()).or_default().insert(object.name.clone());
        }
        self.objects.insert(object.name.clone(), object);
    }

    fn take(&mut self, name: &str) -> Option<Object> {
        let object = self.objects.remove(name)?;
        if let What::Slice(service, _) = &object.what
            && let Some(names) = self.by_service.get_mut(service)
        {
            names.remove(name);
            if names.is_empty() {
                self.by_service.remove(service);
            }
        }
        Some(object)
    }

    fn slice(&self, name: &str) -> Option<&Slice> {
        match &self.objects.get(name)?.what {
            What::Slice(_, slice) => Some(slice),
            What::Pod(_) | What::Service(_) | What::ConfigMap(_) => None,
        }
    }

    /// The pods of a source that nobody has deleted.
    fn living(&self, source: &KubernetesSource) -> impl Iterator<Item = &PodLabels> {
        let pods = self.objects.values().filter_map(|object| match &object.what {
            What::Pod(pod) => Some(pod),
            What::Slice(..) | What::Service(_) | What::ConfigMap(_) => None,
        });
        pods.filter(move |pod| !pod.is_ending && pod.is_of(source))
    }

    fn pod(&self, name: &str) -> Option<&PodLabels> {
        match &self.objects.get(name)?.what {
            What::Pod(pod) => Some(pod),
            What::Slice(..) | What::Service(_) | What::ConfigMap(_) => None,
        }
    }
}

impl PodLabels {
    fn is_of(&self, source: &KubernetesSource) -> bool {
        source.pod_labels.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

fn changed_by(what: &What) -> Changed {
    match what {
        What::Slice(service, _) => Changed::Services([service.clone()].into()),
        What::Pod(_) | What::Service(_) | What::ConfigMap(_) => Changed::Everything,
    }
}

#[cfg(test)]
mod tests;
