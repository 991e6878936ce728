//! The picture that requests are decided on: the writer's model, the immutable snapshot, its publication, the pins,
//! and the endpoints' health. It does not know where changes come from or what a request is.

pub mod clock;
pub mod decision;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod health;
pub mod heartbeat;
pub mod inheritance;
pub mod model;
pub mod panic;
pub mod pins;
pub mod pressure;
pub mod publish;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod slow_start;
pub mod snapshot;
