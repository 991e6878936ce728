//! Every metric of perch, named once. Handles are made when a snapshot is built and never looked up per request.

/// Of a service.
#[derive(Debug, Default)]
pub struct ServiceMetrics {}

/// Of one version of a service.
#[derive(Debug, Default)]
pub struct VersionMetrics {}

impl VersionMetrics {
    /// A finished request; `seconds` from its first byte to the end of its response.
    pub fn request(&self, _method: &str, _status: u16, _seconds: f64) {}
}
