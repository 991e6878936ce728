//! Who may ask what: checks of an admin request's head, before anything is done. Pure.
//!
//! On a loopback listener a page in a browser of this machine is the one to fear: a Host that is not local means DNS
//! rebinding, a foreign Origin a cross-site write. On any other listener, and where a token is configured, writes need
//! the bearer token.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use http::{HeaderMap, StatusCode, Version};
use subtle::ConstantTimeEq;

/// A refusal: its status and a sentence for the person who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub StatusCode, pub &'static str);

/// The head of a request, as far as it decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub headers: &'a HeaderMap,
    /// The target's authority in absolute form; it wins over Host (RFC 9112 section 3.2.2).
    pub authority: Option<&'a str>,
    pub version: Version,
}

impl<'a> Head<'a> {
    /// The one Host that the request is for; `None` when there is none, or no single one.
    fn host(&self) -> Option<&'a str> {
        if self.authority.is_some() {
            return self.authority;
        }
        self.single(&HOST)
    }

    fn single(&self, name: &HeaderName) -> Option<&'a str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    }

    /// For every request. `is_loopback`: the listener is on a loopback address.
    pub(super) fn check(&self, is_loopback: bool) -> Result<(), Refusal> {
        let Some(host) = self.host() else {
            let may_lack = self.version == Version::HTTP_10 && !self.headers.contains_key(HOST);
            return if may_lack { Ok(()) } else { Err(Refusal(StatusCode::BAD_REQUEST, "send one Host")) };
        };
        if is_loopback && !is_local(host) {
            return Err(Refusal(
                StatusCode::MISDIRECTED_REQUEST,
                "this listener is local; ask for localhost or a loopback address",
            ));
        }
        Ok(())
    }

    /// For writes, after [`Self::check`].
    pub(super) fn check_write(&self, is_loopback: bool, token: Option<&str>) -> Result<(), Refusal> {
        if self.headers.contains_key(ORIGIN) {
            let is_same = self.single(&ORIGIN).zip(self.host()).is_some_and(|(origin, host)| {
                let after_scheme = origin.split_once("://").map_or("", |(_, rest)| rest);
                after_scheme.eq_ignore_ascii_case(host)
            });
            if !is_same {
                return Err(Refusal(StatusCode::FORBIDDEN, "writes from pages of another origin are refused"));
            }
        }
        match token {
            Some(token) => self.check_token(token)?,
            None if is_loopback => {}
            None => {
                let what = "writes need a token when the listener is not on loopback; configure one";
                return Err(Refusal(StatusCode::FORBIDDEN, what));
            }
        }
        if self.headers.contains_key(CONTENT_TYPE) && !self.is_json() {
            return Err(Refusal(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send the body with `content-type: application/json`",
            ));
        }
        Ok(())
    }

    fn check_token(&self, token: &str) -> Result<(), Refusal> {
        if !self.headers.contains_key(AUTHORIZATION) {
            return Err(Refusal(StatusCode::UNAUTHORIZED, "send the token as `Authorization: Bearer TOKEN`"));
        }
        let sent = self
            .single(&AUTHORIZATION)
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or("", |(_, sent)| sent.trim());
        // Constant time: how long a comparison takes must not tell how much of a guess is right.
        if bool::from(sent.as_bytes().ct_eq(token.as_bytes())) && !token.is_empty() {
            Ok(())
        } else {
            Err(Refusal(StatusCode::FORBIDDEN, "this is not the token"))
        }
    }

    fn is_json(&self) -> bool {
        let media_type = self.single(&CONTENT_TYPE).and_then(|value| value.split(';').next());
        media_type.is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
    }
}

/// `localhost` or a loopback address, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests;
