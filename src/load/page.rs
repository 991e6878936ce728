//! stub
use super::outcome::Outcome;
pub fn html(_outcome: &Outcome) -> anyhow::Result<String> {
    Ok(String::new())
}
