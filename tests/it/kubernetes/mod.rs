//! Endpoints that follow a cluster: the same cases against a double of the API server and against a real one, and what
//! only the double can be made to do.

mod cases;
mod cluster;
mod double;
mod handover;
mod manifests;
mod outage;
mod query;
mod real;
mod relay;
mod replicas;
mod rolling;
mod rotation;
mod scale;
mod traffic;
mod waits;
