//! Query strings and path segments of admin requests: percent-decoding, pairs, and no surprises.

use std::net::IpAddr;

use super::explain::Query;
use crate::decide::reweigh::Amount;

/// `%41` is `A`, and in a query `+` is a space. `None` when an escape is broken or the result is not UTF-8.
pub(super) fn decode(text: &str, is_query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match *first {
            b'%' => {
                let [high, low, tail @ ..] = tail else { return None };
                let digit = |b: u8| char::from(b).to_digit(16);
                bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
                rest = tail;
            }
            b'+' if is_query => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// The question of `/api/v1/explain?ip=&host=&path=&service=&listener=&override=`; the error names the parameter.
pub(super) fn explain(query: &str) -> Result<Query, String> {
    let mut asked = Query::default();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value, true).ok_or_else(|| format!("{name}: a broken escape; write % as %25"))?;
        let slot = match name {
            "ip" => {
                let ip: IpAddr = value.parse().map_err(|_| format!("ip: `{value}` is no IP address"))?;
                if asked.ip.replace(ip).is_some() {
                    return Err("ip: written twice; name it once".to_owned());
                }
                continue;
            }
            "host" => &mut asked.host,
            "path" => &mut asked.path,
            "service" => &mut asked.service,
            "listener" => &mut asked.listener,
            "override" => &mut asked.forced,
            _ => {
                let known = "ip, host, path, service, listener, override";
                return Err(format!("{name}: unknown; the parameters are {known}"));
            }
        };
        if slot.replace(value).is_some() {
            return Err(format!("{name}: written twice; name it once"));
        }
    }
    // An empty value is as good as none.
    for slot in [&mut asked.service, &mut asked.listener, &mut asked.forced, &mut asked.path] {
        *slot = slot.take().filter(|v| !v.is_empty());
    }
    Ok(asked)
}

/// The question of `/api/v1/services/{name}/what-if?canary=25%25`: amounts by version name.
pub(super) fn amounts(query: &str) -> Result<Vec<(String, Amount)>, String> {
    let pairs = query.split('&').filter(|p| !p.is_empty());
    let amount = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let broken = || format!("{pair}: a broken escape; write % as %25");
        let (name, value) = decode(name, true).zip(decode(value, true)).ok_or_else(broken)?;
        let amount = value.parse().map_err(|error| format!("{name}: {error}"))?;
        Ok((name, amount))
    };
    pairs.map(amount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(decode("a%2fb%252f+%C3%A9", true).as_deref(), Some("a/b%2f é"));
        assert_eq!(decode("a+b", false).as_deref(), Some("a+b"));
    }

    #[test]
    fn broken_escapes_are_no_text() {
        for text in ["%", "%4", "%zz", "%ff", "%+1"] {
            assert_eq!(decode(text, true), None, "{text}");
        }
    }

    #[test]
    fn a_question_is_read_from_its_parameters() {
        let asked = explain("host=hello.example%3A443&path=%2Fa%3Fb&ip=::1&service=").unwrap();

        assert_eq!((asked.host.as_deref(), asked.path.as_deref()), (Some("hello.example:443"), Some("/a?b")));
        assert_eq!((asked.ip, asked.service), (Some("::1".parse().unwrap()), None));
    }

    #[test]
    fn a_bad_parameter_is_named() {
        for (query, says) in [
            ("ip=here", "ip: "),
            ("ipp=1", "ipp: unknown"),
            ("host=a&host=b", "host: written twice"),
            ("path=%", "path: "),
        ] {
            assert!(explain(query).unwrap_err().starts_with(says), "{query}");
        }
    }
}
