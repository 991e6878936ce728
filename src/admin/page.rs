//! The dashboard: one page, put together from `page/` when perch is built, served from memory. It asks nothing but this
//! listener: its Content-Security-Policy allows the page's own script and style (by a nonce that is new in each answer),
//! requests to where it came from, and nothing else; strings cannot become markup (Trusted Types).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use http::header::{ACCEPT, HeaderValue};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = concat!(include_str!("page/style.css"), include_str!("page/parts.css"));
/// One module, in this order: each file uses what stands in those before it.
const SCRIPT: &str = concat!(
    include_str!("page/dom.js"),
    include_str!("page/words.js"),
    include_str!("page/verdict.js"),
    include_str!("page/charts.js"),
    include_str!("page/verbs.js"),
    include_str!("page/rollout.js"),
    include_str!("page/folds.js"),
    include_str!("page/service.js"),
    include_str!("page/explain.js"),
    include_str!("page/live.js"),
);

/// Whether the one who asks for `/` is a browser: what prefers HTML says so, and curl does not.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    accept.flat_map(|v| v.split(',')).any(|t| t.split(';').next().is_some_and(|t| t.trim() == "text/html"))
}

/// The page and its policy.
pub(super) fn answer() -> (String, HeaderValue) {
    let nonce = nonce();
    let page = HTML.replace("{nonce}", &nonce).replace("{style}", STYLE).replace("{script}", SCRIPT);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
    );
    let policy = HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
    (page, policy)
}

/// 128 bits that nobody can guess: SipHash of a counter under keys that the process drew.
fn nonce() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static KEYS: std::sync::LazyLock<[RandomState; 2]> = std::sync::LazyLock::new(Default::default);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let half = |state: &RandomState| {
        let mut hasher = state.build_hasher();
        hasher.write_u64(count);
        hasher.finish()
    };
    let [first, second] = &*KEYS;
    format!("{:016x}{:016x}", half(first), half(second))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, value.parse().unwrap());
        is_wanted(&headers)
    }

    #[test]
    fn browsers_get_the_page_and_tools_do_not() {
        assert!(accepts("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(accepts("application/json, text/html;q=0.5"));
        assert!(!accepts("*/*") && !accepts("application/json") && !is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn the_policy_knows_the_pages_nonce_and_no_other() {
        let (page, policy) = answer();
        let policy = policy.to_str().unwrap().to_owned();
        let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();

        assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        assert!(nonce.len() == 32 && nonce != super::nonce());
        assert!(!policy.contains("unsafe"));
    }

    #[test]
    fn nothing_on_the_page_needs_what_the_policy_forbids() {
        let page = [HTML, STYLE, SCRIPT].concat();

        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "javascript:",
            "onclick=",
            " style=",
            "@import",
            "url(",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        // A namespace's name looks like an address, and nothing is ever fetched from it.
        assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());
    }
}
