//! The log against a disk that loses and tears, byte for byte frozen formats, and damage.

mod crash;
mod damage;
mod lost;
pub(crate) mod mem;
mod mend;
mod model;
mod moving;
mod recycle;
mod roundtrip;
mod sealed;
mod snapshots;
