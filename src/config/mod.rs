//! The configuration: file shapes and their parsing into valid values.
//!
//! Parse, don't validate: a [`model::Config`] that exists is valid. All problems of a file are found in one run, each
//! with its key path and line. It does not know what is running.

pub mod model;

pub use model::*;
