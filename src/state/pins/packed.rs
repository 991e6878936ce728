//! What a pin has beside its endpoint, in 8 bytes: two versions, the epoch and the reason. With the endpoint and the key
//! of the map that makes 40 bytes, without padding.

use std::sync::Arc;

use super::Pin;
use crate::decide::Why;
use crate::state::snapshot::{Endpoint, VersionId};

/// From the highest bit: 21 of the epoch, 20 of the home, 20 of the version, 3 of the reason.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed(u64);

const VERSION_BITS: u32 = 20;
const WHY_BITS: u32 = 3;
/// Nowhere: no [`VersionId`] is as large.
const NO_HOME: u32 = (1 << VERSION_BITS) - 1;
const _: () = assert!(VersionId::LAST < NO_HOME);

impl Packed {
    /// An epoch beyond 2^21 is cut: it will not be found equal, which costs its clients the short way, no more.
    pub(super) fn new(pin: &Pin) -> Self {
        let Pin { version, home, epoch, why, .. } = pin;
        Self::again(*version, *home, *epoch, code(*why))
    }

    /// Of what [`Self::epoch_and_why`] told.
    pub(super) fn again(version: VersionId, home: Option<VersionId>, epoch: u32, why: u8) -> Self {
        let home = home.map_or(NO_HOME, |home| home.0);
        let packed = u64::from(epoch) << VERSION_BITS | u64::from(home & NO_HOME);
        let why = u64::from(why) & ((1 << WHY_BITS) - 1);
        Self((packed << VERSION_BITS | u64::from(version.0 & NO_HOME)) << WHY_BITS | why)
    }

    /// As other processes have it, too.
    pub(super) const fn epoch_and_why(self) -> (u32, u8) {
        ((self.0 >> (WHY_BITS + 2 * VERSION_BITS)) as u32, (self.0 & ((1 << WHY_BITS) - 1)) as u8)
    }

    pub(super) const fn version(self) -> VersionId {
        VersionId(self.version_at(WHY_BITS))
    }

    pub(super) const fn home(self) -> Option<VersionId> {
        match self.version_at(WHY_BITS + VERSION_BITS) {
            NO_HOME => None,
            home => Some(VersionId(home)),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "20 bits")]
    const fn version_at(self, bit: u32) -> u32 {
        (self.0 >> bit) as u32 & NO_HOME
    }

    pub(super) const fn to_pin(self, endpoint: Arc<Endpoint>) -> Pin {
        let epoch = (self.0 >> (WHY_BITS + 2 * VERSION_BITS)) as u32;
        Pin { version: self.version(), home: self.home(), endpoint, epoch, why: why(self.0) }
    }
}

const fn code(why: Why) -> u8 {
    match why {
        Why::Cohort => 0,
        Why::Draw => 1,
        Why::DrainPin => 2,
        Why::FreezePin => 3,
        Why::Override => 4,
        Why::WhenEmpty => 5,
    }
}

const fn why(code: u64) -> Why {
    match code & ((1 << WHY_BITS) - 1) {
        1 => Why::Draw,
        2 => Why::DrainPin,
        3 => Why::FreezePin,
        4 => Why::Override,
        5 => Why::WhenEmpty,
        _ => Why::Cohort,
    }
}
