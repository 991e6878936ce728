//! The lab's tokens: JWTs signed with HMAC-SHA-256 and a secret that `auth` and `hello` share.

use jsonwebtoken::errors::Error;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, get_current_timestamp};
use serde::{Deserialize, Serialize};

/// Long enough for a demo that stays open, short enough to see one expire.
const LIFETIME_SECONDS: u64 = 12 * 60 * 60;

/// Issues and checks tokens.
pub(super) struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
    rules: Validation,
}

#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    iss: String,
    sub: String,
    iat: u64,
    exp: u64,
}

impl Tokens {
    pub(super) fn new(secret: &str) -> Self {
        Self {
            signing: EncodingKey::from_secret(secret.as_bytes()),
            checking: DecodingKey::from_secret(secret.as_bytes()),
            // Only this algorithm, `exp` required: a token cannot choose how it is checked.
            rules: Validation::new(Algorithm::HS256),
        }
    }

    pub(super) fn issue(&self) -> Result<String, Error> {
        let now = get_current_timestamp();
        self.sign(now, now + LIFETIME_SECONDS)
    }

    fn sign(&self, iat: u64, exp: u64) -> Result<String, Error> {
        let claims = Claims { iss: "auth".into(), sub: "user".into(), iat, exp };
        encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
    }

    pub(super) fn accept(&self, token: &str) -> bool {
        decode::<Claims>(token, &self.checking, &self.rules).is_ok()
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_accepted_where_the_secret_is_the_same() {
        let token = Tokens::new("secret").issue().unwrap();

        assert!(Tokens::new("secret").accept(&token));
        assert!(!Tokens::new("another").accept(&token));
    }

    #[test]
    fn an_expired_token_is_refused() {
        let tokens = Tokens::new("secret");
        // An hour: past the validation's minute of leeway.
        let then = get_current_timestamp() - 3_600;

        let token = tokens.sign(then - 60, then).unwrap();

        assert!(!tokens.accept(&token));
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let tokens = Tokens::new("secret");
        let signed = tokens.issue().unwrap();
        let claims = signed.split('.').nth(1).unwrap();

        // {"alg":"none","typ":"JWT"}
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");

        assert!(!tokens.accept(&unsigned));
    }
}
