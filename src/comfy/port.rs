//! A free port for ComfyUI.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

/// The first port from `first` upwards that nobody listens on, whatever they speak there.
///
/// Between this answer and ComfyUI's own bind somebody else may take it: ComfyUI then ends, and
/// the caller tries again from the next one.
pub(super) fn find_free(host: &str, first: u16) -> Option<u16> {
    (first..=u16::MAX).find(|port| is_free(host, *port))
}

fn is_free(host: &str, port: u16) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(addresses) = (bare, port).to_socket_addrs() else { return false };
    // A listener on the wildcard address takes the port of every address.
    let wildcard = SocketAddr::from(([0, 0, 0, 0], port));
    addresses.chain([wildcard]).all(|address| TcpListener::bind(address).is_ok())
}
