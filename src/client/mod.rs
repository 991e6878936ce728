//! The client of perch's own admin interface, for everything that asks a running perch: the verbs, `status`, `explain`,
//! and the ramp of `perch load`. One request per connection, plain HTTP/1, blocking.
//!
//! It knows how to ask and how a refusal looks, and nothing of what is asked.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

/// Where a perch that runs on this machine has it, by default.
pub const DEFAULT: &str = "http://127.0.0.1:9900";

/// For a whole exchange.
const PATIENCE: Duration = Duration::from_secs(15);

/// The services of a large installation are some megabytes.
const LARGEST: usize = 64 << 20;

/// Where it is, and what opens it.
#[derive(Clone)]
pub struct Client {
    authority: String,
    token: Option<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// No answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("--admin {url}: is no address of an admin listener; write one such as {DEFAULT}")]
    Address { url: String },
    #[error("--admin http://{authority}: cannot be reached ({problem}); is perch running there?")]
    Unreachable { authority: String, problem: String },
    #[error("--admin http://{authority}: does not answer like perch's admin listener ({problem})")]
    NotPerch { authority: String, problem: String },
    /// perch said no, and why.
    #[error("{message}")]
    Refused { status: StatusCode, message: String, body: Value },
}

impl ClientError {
    /// Somebody else changed it, or it is not in a state for this.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::CONFLICT)
    }
}

impl Client {
    /// Of a URL such as `http://127.0.0.1:9900`.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, ClientError> {
        let wrong = || ClientError::Address { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let authority = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        Ok(Self { authority, token })
    }

    /// `GET`, as JSON of this shape.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, target, None)
    }

    /// `POST` of JSON, the answer as JSON of this shape.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<T: DeserializeOwned>(&self, target: &str, body: &Value) -> Result<T, ClientError> {
        self.ask(Method::POST, target, Some(body))
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, target: &str, body: Option<&Value>) -> Result<T, ClientError> {
        let (status, answer) = self.call(method, target, body)?;
        let not_perch = |problem: String| ClientError::NotPerch { authority: self.authority.clone(), problem };
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|error| not_perch(error.to_string()));
        }
        let body: Value = serde_json::from_slice(&answer).map_err(|_| not_perch(format!("{target}: {status}")))?;
        match body.get("error").and_then(Value::as_str) {
            Some(message) => Err(ClientError::Refused { status, message: message.to_owned(), body }),
            None => Err(not_perch(format!("{target}: {status}"))),
        }
    }

    fn call(&self, method: Method, target: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes), ClientError> {
        let unreachable = |problem: String| ClientError::Unreachable { authority: self.authority.clone(), problem };
        let mut request = Request::builder().method(method).uri(target).header(HOST, &self.authority);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| unreachable(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = runtime.block_on(async { tokio::time::timeout(PATIENCE, self.exchange(request)).await });
        exchange.unwrap_or_else(|_| Err(format!("no answer in {PATIENCE:?}"))).map_err(unreachable)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let tcp = TcpStream::connect(&self.authority).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| e.to_string())?;
        let answer = async {
            let (head, body) = sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok((head.status, body))
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // Its error is the error of the one request.
            _ = connection => answer.await,
        }
    }
}

/// A path segment or query value: everything but unreserved characters as escapes (RFC 3986 section 2.3).
#[must_use]
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// A service's split, as far as clients of this module share it.
#[derive(Clone, Debug, Deserialize)]
pub struct Version {
    pub name: String,
    pub weight: f64,
    /// 0 to 1.
    pub share: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_survives_the_way() {
        assert_eq!(encode("/a b?c=é&d"), "%2Fa%20b%3Fc%3D%C3%A9%26d");
    }

    #[test]
    fn an_address_is_a_plain_http_url() {
        assert_eq!(Client::new("http://[::1]", None).unwrap().authority, "[::1]:80");
        assert_eq!(Client::new("http://perch.example:9900/", None).unwrap().authority, "perch.example:9900");
        for url in ["", "perch:9900", "https://perch:9900", "http://perch/x", "http://u:p@perch", "http://"] {
            let error = Client::new(url, None).unwrap_err().to_string();
            assert!(error.ends_with("write one such as http://127.0.0.1:9900"), "{url}: {error}");
        }
    }

    #[test]
    fn nobody_there_is_said_so() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();

        let error = Client::new(&format!("http://{free}"), None).unwrap().get::<Value>("/").unwrap_err().to_string();

        assert!(error.contains("cannot be reached (") && error.ends_with("is perch running there?"), "{error}");
    }

    #[test]
    fn the_token_is_not_shown() {
        assert!(!format!("{:?}", Client::new(DEFAULT, Some("s3cret".into())).unwrap()).contains("s3cret"));
    }
}
