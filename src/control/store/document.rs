//! What a text that should be the rollout document is: whoever keeps it, in a file or in a ConfigMap, reads it alike.

use serde::Deserialize;

use crate::decide::rollout::{Rollouts, VERSION};

/// A text, understood.
#[derive(Debug)]
pub(in crate::control) enum Document {
    Good(Rollouts),
    Missing,
    Corrupt(String),
    /// Of a newer perch, with its document version: not to be written over, as it knows more.
    Newer(u32),
}

impl Document {
    /// `None` where nothing is stored.
    pub(in crate::control) fn read(text: Option<&[u8]>) -> Self {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let Some(text) = text else { return Self::Missing };
        // The version first: what else is in there may be another in each.
        match serde_json::from_slice::<Header>(text) {
            Ok(Header { version }) if version > VERSION => return Self::Newer(version),
            Ok(_) => {}
            Err(error) => return Self::Corrupt(error.to_string()),
        }
        match serde_json::from_slice(text) {
            Ok(rollouts) => Self::Good(rollouts),
            Err(error) => Self::Corrupt(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_good_missing_corrupt_or_of_a_newer_perch() {
        let whole = serde_json::to_vec(&Rollouts::default()).unwrap();

        assert!(matches!(Document::read(Some(&whole)), Document::Good(read) if read == Rollouts::default()));
        assert!(matches!(Document::read(None), Document::Missing));
        for broken in [&b""[..], b"{", b"[]", b"null", b"\xff", b"{\"version\":1}", b"{\"version\":-1}"] {
            assert!(matches!(Document::read(Some(broken)), Document::Corrupt(_)), "{}", broken.escape_ascii());
        }
        let newer = br#"{"version":2,"sequence":{"new":"shape"}}"#;
        assert!(matches!(Document::read(Some(newer)), Document::Newer(2)));
    }
}
