//! HTTP/1 on both sides: a codec of our own on httparse.
//!
//! hyper hides what a front door must see (a Content-Length beside chunked, a bare LF, a second Host, 1xx answers) and
//! bounds neither bodies nor writes in time; a prototype on it also cost 4 us more per request and twice the memory per
//! idle connection. It keeps the admin listener and the sample services.

pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod head;
pub(crate) mod response;
pub(crate) mod serve;
pub(super) mod tunnel;
mod upload;
