//! What `perch demo` is made of: the sample services as a small fleet on loopback, the configuration text that puts the
//! real proxy in front of them, and the live view. It takes no shortcut into the proxy: the text goes through the real
//! loader, and the view reads what `/metrics` shows everybody.

pub mod fleet;
pub mod plan;
pub mod view;
