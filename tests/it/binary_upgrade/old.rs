//! The old perch, played by the test word by word: it can die wherever it likes. Its words are those of other versions of
//! perch, too: who changes them here breaks upgrades.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;

use crate::front;
use crate::support::{Client, Launch, PATIENCE, TestBackend, TestPerch, eventually};

/// After which word the old one dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Last {
    Nothing,
    HalfOfHello,
    Hello,
    Sockets,
    State,
    HalfOfPins,
    Serve,
}

const HELLO: u8 = 1;
const PREPARED: u8 = 2;
const STATE: u8 = 3;
const PINS: u8 = 4;
const SERVE: u8 = 5;

fn say(line: &mut UnixStream, kind: u8, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    line.write_all(&[&[kind][..], &length, bytes].concat()).unwrap();
}

/// Speaks to the new perch until it dies.
fn speak(mut line: UnixStream, listener: &TcpListener, last: Last) {
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    let places = json!([{"listener": "http", "asked": "127.0.0.1:0"}]);
    let hello = json!({"protocol": 1, "clock": 5000, "places": places}).to_string();
    match last {
        Last::Nothing => return,
        Last::HalfOfHello => return line.write_all(&[HELLO, 0, 0]).unwrap(),
        _ => say(&mut line, HELLO, hello.as_bytes()),
    }
    if last == Last::Hello {
        return;
    }
    let given = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&given)));
    sendmsg(&line, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).unwrap();
    if last == Last::Sockets {
        return;
    }
    let mut prepared = [0; 5];
    line.read_exact(&mut prepared).unwrap();
    assert_eq!(prepared, [PREPARED, 0, 0, 0, 0]);
    say(&mut line, STATE, br#"{"generation": 40}"#);
    if last == Last::HalfOfPins {
        line.write_all(&[PINS, 0, 0, 1, 0, 7]).unwrap();
    }
    if last == Last::Serve {
        say(&mut line, SERVE, b"");
    }
}

/// A perch that takes over from one that dies after this word; and the socket that it may have got.
#[track_caller]
fn taken_over(launch: Launch, last: Last) -> (TestPerch, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (line, theirs) = UnixStream::pair().unwrap();
    let launch = launch.env("PERCH_TAKES_OVER", "1").stdin(theirs);
    let old = std::thread::spawn(move || speak(line, &listener, last));
    let perch = launch.start();
    old.join().unwrap();
    (perch, address)
}

#[test]
fn whenever_the_old_perch_dies_the_new_one_serves() {
    let backend = TestBackend::named("stable");
    let all =
        [Last::Nothing, Last::HalfOfHello, Last::Hello, Last::Sockets, Last::State, Last::HalfOfPins, Last::Serve];
    for last in all {
        let launch = Launch::new(&front::config("", "", &[backend.address()]));

        let (perch, given) = taken_over(launch, last);

        let address = perch.address("http");
        assert_eq!(address == given, last >= Last::Sockets, "{last:?}");
        for _ in 0..5 {
            assert_eq!(Client::plain(address).get("a", "/").text(), "stable", "{last:?}");
        }
        let said = if last < Last::Sockets { "before it gave its sockets" } else { "without what it knew" };
        if last < Last::Serve {
            eventually(PATIENCE, || perch.stderr().contains(said));
        }
        let generation = perch.metric("perch_config_generation").unwrap();
        assert_eq!(generation > 40.0, last == Last::Serve, "{last:?}: {generation}");
    }
}

#[test]
fn a_new_perch_that_is_not_ready_serves_once_the_old_one_is_gone() {
    // Of a cluster that never answers; the old one has said all it had to say.
    let launch = Launch::new(
        "workers: 1\nadmin: {address: '127.0.0.1:0'}\nlisteners: [{name: http, address: '127.0.0.1:0'}]\n\
         routes: [{service: app}]\nservices:\n  - {name: app, versions: [{name: stable, kubernetes: {service: app, port: http}}]}\n",
    );
    let kubeconfig = launch.dir().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
         users: [{name: c, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: c, namespace: n}}]\n",
    )
    .unwrap();
    let launch = launch.arg("--kubeconfig").arg(kubeconfig.to_str().unwrap());

    let (perch, given) = taken_over(launch, Last::Serve);

    eventually(PATIENCE, || perch.stderr().contains("gone before this one was ready"));
    assert_eq!(perch.admin_get("/readyz").status, 503);
    front::assert_refused(&Client::plain(given).get("a", "/"), 503, "no-ready-endpoint");
}

#[test]
fn a_perch_that_nobody_started_to_take_over_says_so() {
    let backend = TestBackend::named("stable");
    let launch = Launch::new(&front::config("", "", &[backend.address()])).env("PERCH_TAKES_OVER", "1");

    let output = launch.output();

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("unset it elsewhere"), "{said}");
}
