//! Connections with their driver.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::*;

/// The other side is the `h2` crate: what it understands, and says, is not of our making.
#[tokio::test]
async fn another_implementation_is_understood_and_understands() {
    let both = async {
        let (ours, theirs) = tokio::io::duplex(10_000);
        let streams = Rc::new(RefCell::new(Streams::new(Rc::default(), 100)));
        tokio::task::spawn_local(drive(Driver::new(ours, streams.clone()), "e".into()));
        let server = tokio::task::spawn_local(async move {
            let mut connection = h2::server::Builder::new().initial_window_size(1_000).handshake(theirs).await.unwrap();
            while let Some(request) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    let (request, mut respond) = request.unwrap();
                    let mut body = request.into_body();
                    let mut sent = respond.send_response(http::Response::new(()), false).unwrap();
                    while let Some(data) = body.data().await {
                        let data = data.unwrap();
                        body.flow_control().release_capacity(data.len()).unwrap();
                        sent.send_data(data, false).unwrap();
                    }
                    let trailers = body.trailers().await.unwrap().unwrap();
                    sent.send_trailers(trailers).unwrap();
                });
            }
        });

        let echo = |n: usize| {
            let streams = streams.clone();
            async move {
                let mut stream = Http2Stream::new(streams, true);
                let body = vec![b'a' + u8::try_from(n).unwrap(); 50_000 + n];
                let text =
                    [POST.as_bytes(), format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\nx-n: 7\r\n\r\n"]
                        .concat();
                let (mut read, mut write) = tokio::io::split(&mut stream);
                let mut answer = Vec::new();
                let (_, sent) = tokio::join!(read.read_to_end(&mut answer), write.write_all(&text));
                sent.unwrap();
                let letters = answer.iter().filter(|b| **b == body[0]).count();
                (letters >= body.len(), answer.ends_with(b"0\r\nx-n: 7\r\n\r\n"))
            }
        };
        let all = tokio::join!(echo(10), echo(11), echo(12));

        assert_eq!(all, ((true, true), (true, true), (true, true)));
        streams.borrow_mut().close();
        server.await.unwrap();
    };
    LocalSet::new().run_until(both).await;
}

/// An endpoint that said its settings and nothing after.
async fn silent() -> (Driver<tokio::io::DuplexStream>, Shared, tokio::io::DuplexStream) {
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    theirs.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let streams = Rc::new(RefCell::new(Streams::new(Rc::default(), 100)));
    (Driver::new(ours, streams.clone()), streams, theirs)
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_does_not_answer_a_ping_is_left() {
    let (driver, streams, _theirs) = silent().await;
    let mut stream = ask(&streams, GET);
    let start = Instant::now();

    drive(driver, "e".into()).await;

    assert_eq!(start.elapsed(), Duration::from_secs(30));
    assert!(!streams.borrow().takes_streams());
    assert_eq!(read_by(&mut stream, 99).1, Some(StreamError::Lost));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_answers_pings_is_waited_for() {
    let (driver, streams, mut theirs) = silent().await;
    let _stream = ask(&streams, GET);
    let pongs = async {
        let (mut seen, mut space) = (Vec::new(), [0; 1_024]);
        loop {
            let n = theirs.read(&mut space).await.unwrap();
            seen.extend_from_slice(&space[..n]);
            if seen.windows(8).any(|w| w == receive::ARE_YOU_THERE) {
                seen.clear();
                let mut pong = Vec::new();
                frame::ping(flag::ACK, receive::ARE_YOU_THERE, &mut pong);
                theirs.write_all(&pong).await.unwrap();
            }
        }
    };

    let ended = tokio::time::timeout(Duration::from_secs(300), async {
        tokio::select! {
            () = drive(driver, "e".into()) => {}
            () = pongs => {}
        }
    });

    assert!(ended.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_not_asked_and_says_goodbye() {
    let (driver, streams, mut theirs) = silent().await;
    let local = LocalSet::new();
    let driven = local.spawn_local(drive(driver, "e".into()));
    local.run_until(tokio::time::sleep(Duration::from_secs(200))).await;
    assert!(!driven.is_finished());

    streams.borrow_mut().close();
    local.run_until(driven).await.unwrap();

    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    let goodbye = all.len() - frame::HEAD - 8;
    assert_eq!(all[goodbye + 3], kind::GOAWAY);
    assert!(!all.windows(8).any(|w| w == receive::ARE_YOU_THERE));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_only_answers_pings_is_asked_more_and_more_rarely() {
    let (driver, streams, mut theirs) = silent().await;
    let _stream = ask(&streams, GET);
    let (mut times, start) = (Vec::new(), Instant::now());
    let pongs = async {
        let mut space = [0; 1_024];
        while times.len() < 5 {
            let n = theirs.read(&mut space).await.unwrap();
            if space[..n].windows(8).any(|w| w == receive::ARE_YOU_THERE) {
                times.push(start.elapsed().as_secs());
                let mut pong = Vec::new();
                frame::ping(flag::ACK, receive::ARE_YOU_THERE, &mut pong);
                if times.len() == 4 {
                    // And an answer, which makes it one to be asked soon.
                    headers(1, &[(":status", "200")], false)(&mut pong);
                }
                theirs.write_all(&pong).await.unwrap();
            }
        }
    };

    tokio::select! {
        () = drive(driver, "e".into()) => panic!("it is there"),
        () = pongs => {}
    }

    // At the next look after the answer it has just said something.
    assert_eq!(times, [20, 100, 420, 740, 780]);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_does_not_take_the_goodbye_is_not_waited_for() {
    let (ours, _theirs) = tokio::io::duplex(8);
    let streams = Rc::new(RefCell::new(Streams::new(Rc::default(), 100)));
    let driver = Driver::new(ours, streams.clone());
    streams.borrow_mut().close();
    let start = Instant::now();

    drive(driver, "e".into()).await;

    assert_eq!(start.elapsed(), Duration::from_secs(10));
}

/// Takes nothing more, and still has something to say.
struct Deaf(tokio::io::DuplexStream);

impl AsyncRead for Deaf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn the_last_words_of_an_endpoint_that_takes_no_more_are_heard() {
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let streams = Rc::new(RefCell::new(Streams::new(Rc::default(), 100)));
    let driver = Driver::new(Deaf(ours), streams.clone());
    let (mut first, mut second) = (ask(&streams, GET), ask(&streams, GET));
    let mut words = Vec::new();
    frame::settings(&[], &mut words);
    headers(1, &[(":status", "200")], true)(&mut words);
    frame::goaway(1, Code::NO_ERROR, &mut words);
    theirs.write_all(&words).await.unwrap();

    drive(driver, "e".into()).await;

    assert!(read(&mut first).starts_with("HTTP/1.1 200"));
    assert_eq!(read_by(&mut second, 99).1, Some(StreamError::Refused));
}

#[tokio::test]
async fn who_opened_a_connection_has_its_first_stream_though_the_endpoint_has_left_meanwhile() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = Arc::new(Endpoint {
        id: EndpointId(1),
        address,
        pod: None,
        name: "e".into(),
        transport: Arc::default(),
        seed: 0,
        in_flight: 0.into(),
        health: crate::state::health::Health::default(),
    });
    let (ours, _theirs) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    endpoint.health.set_gone();

    let all = Multiplexed::default();
    let first = async {
        let mut first = all.start(Wire::Plain(ours.unwrap()), &endpoint, Duration::from_secs(60), &Rc::default());
        (matches!(write(&mut first, GET.as_bytes()), Poll::Ready(Ok(_))), all.stream(endpoint.id).is_none())
    };

    assert_eq!(LocalSet::new().run_until(first).await, (true, true));
}
