//! Free loopback ports.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, bail};

/// Below the range that the kernel takes ports of outgoing connections from (32768 and up): a port
/// from that range can be taken between the look and the server's bind.
const RANGE: std::ops::Range<u16> = 15_000..32_700;

/// A loopback port that nothing listens on and that this process has not been given before.
///
/// # Errors
/// When a thousand tries find none.
pub fn free_port() -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for attempt in 0..1000_u32 {
        // Random, so that test processes side by side do not race for the same port.
        let random = RandomState::new().hash_one(attempt);
        let offset = u16::try_from(random % u64::from(RANGE.end - RANGE.start))?;
        let port = RANGE.start + offset;
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free loopback port between {} and {}", RANGE.start, RANGE.end)
}
