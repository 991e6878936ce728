//! A double of the API server, faithful where perch looks: lists in pages of one version, watches with bookmarks and
//! time limits, selectors, metadata-only objects, 410 as status and as event. What goes wrong is told by [`Fault`]s.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{Cluster, Slice};
use super::query::{Asked, Selector};

/// The running double. Dropped: stopped, its connections closed.
#[derive(Debug)]
pub(super) struct Double {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// What the double does instead of answering.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// This status, with `Retry-After` if given.
    Refuse(u16, Option<u64>),
    /// The head of an answer, then nothing for ever.
    Silent,
    /// Half an event, then a broken connection.
    Cut,
    /// 200, then an event that says 410.
    GoneEvent,
    /// 200, then no JSON.
    Garbage,
    /// The right answer, in small pieces.
    Slow(Duration),
}

type Script = Arc<dyn Fn(&Asked) -> Option<Fault> + Send + Sync>;

struct Shared {
    world: Mutex<World>,
    /// Something happened.
    changed: Condvar,
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
    sockets: Mutex<Vec<TcpStream>>,
    listener: Mutex<Option<TcpListener>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Double").field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// Kind, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
struct World {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Version, object before and after.
    log: Vec<(u64, Key, Option<Value>, Option<Value>)>,
    /// Watches from before this are told 410.
    compacted: u64,
    page: usize,
    /// Pages that were promised: token -> what is left of the list, and its version.
    pages: BTreeMap<String, (Vec<Value>, u64)>,
    is_stopped: bool,
}

impl Double {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            world: Mutex::new(World { version: 100, page: 2, ..World::default() }),
            changed: Condvar::new(),
            script: Mutex::new(Arc::new(|_| None)),
            asked: Mutex::default(),
            sockets: Mutex::default(),
            listener: Mutex::default(),
        });
        let double = Self { shared, address };
        double.listen(listener);
        double
    }

    /// Its only namespace that matters.
    pub(super) fn cluster(&self) -> Cluster {
        Cluster {
            address: self.address,
            host: "localhost".into(),
            ca: None,
            token: "secret".into(),
            perch_token: "secret".into(),
            namespace: "lab".into(),
        }
    }

    /// What goes wrong from now on.
    pub(super) fn script(&self, script: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Every request so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Forgets the past: a watch from before now is told 410.
    pub(super) fn compact(&self) {
        let mut world = self.shared.world.lock().unwrap();
        world.version += 1;
        world.compacted = world.version;
        world.pages.clear();
    }

    /// Objects per page of a list, at most: a server may give less than was asked for.
    pub(super) fn pages_of(&self, objects: usize) {
        self.shared.world.lock().unwrap().page = objects;
    }

    /// Makes or replaces a slice without a request, as fast as events can come.
    pub(super) fn slice(&self, slice: &Slice) {
        let key = ("endpointslices".to_owned(), "lab".to_owned(), slice.name.clone());
        put(&mut self.shared.world.lock().unwrap(), key, slice.json());
        self.shared.changed.notify_all();
    }

    /// Breaks every connection.
    pub(super) fn cut(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            socket.shutdown(Shutdown::Both).ok();
        }
    }

    /// Goes away: connections break, new ones are refused.
    pub(super) fn go_away(&self) {
        drop(self.shared.listener.lock().unwrap().take());
        // accept() of the clone sees the end with the next connection.
        TcpStream::connect(self.address).ok();
        self.cut();
    }

    /// Comes back where it was.
    pub(super) fn come_back(&self) {
        let listener = crate::support::eventually_some(crate::support::PATIENCE, || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&self.address.into()).ok()?;
            socket.listen(128).ok()?;
            Some(TcpListener::from(socket))
        });
        self.listen(listener);
    }

    fn listen(&self, listener: TcpListener) {
        *self.shared.listener.lock().unwrap() = Some(listener.try_clone().unwrap());
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(socket) = socket else { return };
                if shared.listener.lock().unwrap().is_none() {
                    return;
                }
                shared.sockets.lock().unwrap().push(socket.try_clone().unwrap());
                let shared = shared.clone();
                std::thread::spawn(move || serve(&shared, socket));
            }
        });
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.shared.world.lock().unwrap().is_stopped = true;
        self.shared.changed.notify_all();
        self.go_away();
    }
}

fn serve(shared: &Shared, socket: TcpStream) {
    socket.set_nodelay(true).ok();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut writer = socket.try_clone().unwrap();
    while let Some((asked, body)) = read(&mut reader) {
        shared.asked.lock().unwrap().push(asked.clone());
        let script = shared.script.lock().unwrap().clone();
        let fault = script(&asked);
        let done = match (fault, &*asked.method) {
            (None, "GET") if asked.is_watch() => watch(shared, &mut writer, &asked),
            (None, "GET") => answer(&mut writer, &list(shared, &asked), None),
            (None, method) => change(shared, &mut writer, &asked, method, body),
            (Some(Fault::Slow(pause)), _) if !asked.is_watch() => {
                answer(&mut writer, &list(shared, &asked), Some(pause))
            }
            (Some(fault), _) => go_wrong(&mut writer, fault),
        };
        if done.is_err() {
            break;
        }
    }
    socket.shutdown(Shutdown::Both).ok();
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<(Asked, Value)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let (mut accept, mut length, mut token) = (String::new(), 0, String::new());
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        let Some((name, value)) = field.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "accept" => accept = value.trim().into(),
            "authorization" => token = value.trim().into(),
            "content-length" => length = value.trim().parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some((Asked::parse(&line, accept, token), body))
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code})
}

/// What it says is its status too.
fn answer(out: &mut TcpStream, body: &Value, slow: Option<Duration>) -> std::io::Result<()> {
    let code = if body["kind"] == "Status" { body["code"].as_u64().unwrap_or(200) } else { 200 };
    write(out, u16::try_from(code).unwrap(), "", body, slow)
}

fn write(out: &mut TcpStream, code: u16, fields: &str, body: &Value, slow: Option<Duration>) -> std::io::Result<()> {
    let body = body.to_string();
    write!(
        out,
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\n{fields}content-length: {}\r\n\r\n",
        body.len()
    )?;
    let Some(pause) = slow else { return out.write_all(body.as_bytes()) };
    for piece in body.as_bytes().chunks(200) {
        out.write_all(piece)?;
        std::thread::sleep(pause);
    }
    Ok(())
}

fn go_wrong(out: &mut TcpStream, fault: Fault) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let until_closed = |out: &mut TcpStream| {
        let mut byte = [0];
        while out.read(&mut byte)? > 0 {}
        Err(std::io::ErrorKind::ConnectionAborted.into())
    };
    match fault {
        Fault::Refuse(code, retry_after) => {
            let fields = retry_after.map(|s| format!("retry-after: {s}\r\n")).unwrap_or_default();
            write(out, code, &fields, &status(code, "told to refuse"), None)
        }
        Fault::Silent => {
            out.write_all(head.as_bytes())?;
            until_closed(out)
        }
        Fault::Cut => {
            out.write_all(head.as_bytes())?;
            chunk(out, "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"na")?;
            Err(std::io::ErrorKind::ConnectionAborted.into())
        }
        Fault::GoneEvent => {
            out.write_all(head.as_bytes())?;
            chunk(out, &format!("{}\n", json!({"type": "ERROR", "object": status(410, "too old resource version")})))?;
            chunk(out, "")
        }
        Fault::Garbage => {
            out.write_all(head.as_bytes())?;
            chunk(out, "<html>not what you think</html>\n")?;
            chunk(out, "")
        }
        Fault::Slow(_) => Ok(()),
    }
}

fn chunk(out: &mut TcpStream, text: &str) -> std::io::Result<()> {
    write!(out, "{:x}\r\n{text}\r\n", text.len())
}

/// The object, or only its metadata.
fn shown(asked: &Asked, object: &Value) -> Value {
    if !asked.accept.contains("as=PartialObjectMetadata") {
        return object.clone();
    }
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn list(shared: &Shared, asked: &Asked) -> Value {
    let mut world = shared.world.lock().unwrap();
    if !asked.name.is_empty() {
        let key = (asked.kind.clone(), asked.namespace.clone(), asked.name.clone());
        return world.objects.get(&key).cloned().unwrap_or_else(|| status(404, "not found"));
    }
    let (mut items, version) = match asked.query.get("continue") {
        Some(token) => match world.pages.remove(token) {
            Some(page) => page,
            None => return status(410, "the continue token is too old"),
        },
        None => {
            let selector = Selector::of(asked);
            let here = world.objects.iter().filter(|((kind, namespace, _), object)| {
                *kind == asked.kind && *namespace == asked.namespace && selector.matches(object)
            });
            (here.map(|(_, object)| shown(asked, object)).collect::<Vec<_>>(), world.version)
        }
    };
    let page = world.page;
    let limit = asked.query.get("limit").map_or(usize::MAX, |l| l.parse::<usize>().unwrap().min(page));
    let rest = items.split_off(items.len().min(limit));
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if !rest.is_empty() {
        let token = format!("page/{}+{}=", world.pages.len(), rest.len());
        metadata["continue"] = token.clone().into();
        world.pages.insert(token, (rest, version));
    }
    json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
}

fn change(shared: &Shared, out: &mut TcpStream, asked: &Asked, method: &str, body: Value) -> std::io::Result<()> {
    let mut world = shared.world.lock().unwrap();
    let name =
        if method == "POST" { body["metadata"]["name"].as_str().unwrap().to_owned() } else { asked.name.clone() };
    let key = (asked.kind.clone(), asked.namespace.clone(), name.clone());
    let before = world.objects.get(&key).cloned();
    // What a write says it is based on.
    let based_on = body["metadata"]["resourceVersion"].as_str();
    let refused = match (&before, method) {
        (Some(_), "POST") => Some(status(409, "already exists")),
        (None, "PATCH" | "DELETE") => Some(status(404, "not found")),
        (Some(is), _) if based_on.is_some_and(|v| is["metadata"]["resourceVersion"] != v) => {
            Some(status(409, "the object has been modified; please apply your changes to the latest version"))
        }
        _ => None,
    };
    if let Some(refused) = refused {
        drop(world);
        return answer(out, &refused, None);
    }
    let answer = match (method, before) {
        ("DELETE", before) => {
            world.version += 1;
            let version = world.version;
            world.objects.remove(&key);
            world.log.push((version, key, before, None));
            status(200, "deleted")
        }
        ("PATCH", Some(mut object)) => {
            merge(&mut object, body);
            put(&mut world, key, object)
        }
        _ => put(&mut world, key, body),
    };
    drop(world);
    shared.changed.notify_all();
    write(out, 200, "", &answer, None)
}

/// RFC 7396.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(&key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

/// The object as it is from now on.
fn put(world: &mut World, key: Key, mut object: Value) -> Value {
    world.version += 1;
    let before = world.objects.get(&key).cloned();
    object["metadata"]["resourceVersion"] = world.version.to_string().into();
    object["metadata"]["namespace"] = key.1.clone().into();
    let uid = before.as_ref().map_or_else(|| json!(format!("uid-{}", key.2)), |b| b["metadata"]["uid"].clone());
    object["metadata"]["uid"] = uid;
    world.objects.insert(key.clone(), object.clone());
    world.log.push((world.version, key, before, Some(object.clone())));
    object
}

fn watch(shared: &Shared, out: &mut TcpStream, asked: &Asked) -> std::io::Result<()> {
    let mut from: u64 = asked.query["resourceVersion"].parse().unwrap();
    let end = Instant::now() + Duration::from_secs(asked.query["timeoutSeconds"].parse().unwrap());
    let selector = Selector::of(asked);
    if from < shared.world.lock().unwrap().compacted {
        return write(out, 410, "", &status(410, "too old resource version"), None);
    }
    out.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let mut bookmark = Instant::now() + BOOKMARKS;
    loop {
        let mut lines = Vec::new();
        let mut world = shared.world.lock().unwrap();
        for (version, (kind, namespace, _), before, after) in world.log.iter().filter(|(v, ..)| *v > from) {
            if *kind != asked.kind || *namespace != asked.namespace {
                continue;
            }
            let [was, is] = [before, after].map(|o| o.as_ref().filter(|o| selector.matches(o)));
            let (kind, mut object) = match (was, is) {
                (None, Some(object)) => ("ADDED", shown(asked, object)),
                (Some(_), Some(object)) => ("MODIFIED", shown(asked, object)),
                // As it last was, with the version of its end.
                (Some(object), None) => ("DELETED", shown(asked, object)),
                (None, None) => continue,
            };
            object["metadata"]["resourceVersion"] = version.to_string().into();
            lines.push(json!({"type": kind, "object": object}));
        }
        from = world.version;
        let now = Instant::now();
        if lines.is_empty() && now < end && !world.is_stopped && now < bookmark {
            world = shared.changed.wait_timeout(world, bookmark.min(end) - now).unwrap().0;
        }
        let is_stopped = world.is_stopped;
        drop(world);
        if Instant::now() >= bookmark {
            bookmark += BOOKMARKS;
            let metadata = json!({"resourceVersion": from.to_string()});
            lines.push(json!({"type": "BOOKMARK", "object": {"kind": "X", "apiVersion": "v1", "metadata": metadata}}));
        }
        for line in lines {
            chunk(out, &format!("{line}\n"))?;
        }
        if Instant::now() >= end || is_stopped {
            return chunk(out, "");
        }
    }
}

/// More often than a real server's, which sends one a minute.
const BOOKMARKS: Duration = Duration::from_millis(300);
