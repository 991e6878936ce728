//! The state of a guarded ramp, as it is kept beside a service's weights.
//!
//! A placeholder: whatever the runner writes is kept as it is.

use serde::{Deserialize, Serialize};

/// What the runner of a ramp needs to go on after a restart. Opaque to the verbs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RampState(pub serde_json::Value);
