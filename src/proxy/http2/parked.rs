//! Wakes the driver of a connection, once, when there is something for it to do while it waits.

use std::task::{Context, Waker};

/// Whether a driver waits, and how it is woken.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Parked {
    waker: Option<Waker>,
    is_parked: bool,
}

impl Parked {
    /// The driver is about to wait.
    pub(in crate::proxy) fn park(&mut self, cx: &Context<'_>) {
        self.is_parked = true;
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    /// The driver works, and sees itself what there is to do.
    pub(in crate::proxy) fn unpark(&mut self) {
        self.is_parked = false;
    }

    /// There is something to do.
    pub(in crate::proxy) fn wake(&mut self) {
        if std::mem::take(&mut self.is_parked)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }
}
