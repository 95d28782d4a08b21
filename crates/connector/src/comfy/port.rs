//! A free port for ComfyUI.

use std::{
    collections::HashSet,
    fs, io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
};

/// The first port from `first` upwards that nobody listens on, whatever they speak there.
///
/// Between this answer and ComfyUI's own bind somebody else may take it: ComfyUI then ends, and
/// the caller tries again from the next one.
pub(super) fn find_free(host: &str, first: u16) -> Option<u16> {
    (first..=u16::MAX).find(|port| is_free(host, *port))
}

fn is_free(host: &str, port: u16) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = (bare, port).to_socket_addrs();
    addresses.is_ok_and(|addresses| are_free(&addresses.collect::<Vec<_>>(), port))
}

fn are_free(addresses: &[SocketAddr], port: u16) -> bool {
    // A listener on the wildcard address takes the port of every address.
    let wildcard = SocketAddr::from(([0, 0, 0, 0], port));
    let mut any = false;
    let free = addresses.iter().chain([&wildcard]).all(|address| match TcpListener::bind(address) {
        Ok(_) => {
            any |= *address != wildcard;
            true
        }
        // `localhost` stands for an IPv6 address too, which many containers lack.
        Err(error) => error.kind() == io::ErrorKind::AddrNotAvailable,
    });
    free && any
}

/// Whether somebody else is known to listen on `port`: on a shared machine another worker's ComfyUI
/// may take the port first and answer there. `is_ours` tells a process of ours by its id.
///
/// What cannot be seen (another user's process, a system without `/proc`) is no evidence.
pub(super) fn is_foreign(port: u16, is_ours: impl Fn(u32) -> bool) -> bool {
    let mut owners = owners(port);
    let Some(first) = owners.next() else { return false };
    !is_ours(first) && !owners.any(is_ours)
}

/// The processes that are seen to listen on `port`.
pub(super) fn owners(port: u16) -> impl Iterator<Item = u32> {
    let sockets = listening_sockets(port);
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let listens = |file: &fs::DirEntry| {
            fs::read_link(file.path())
                .is_ok_and(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
        };
        files.any(|file| listens(&file)).then_some(pid)
    })
}

/// As `/proc/<pid>/fd` names them: `socket:[4711]`.
fn listening_sockets(port: u16) -> HashSet<String> {
    const LISTENS: &str = "0A";
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let listens = *fields.get(3)? == LISTENS && u16::from_str_radix(local, 16) == Ok(port);
        listens.then_some(format!("socket:[{}]", fields.get(9)?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_foreign_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_foreign(port, |_| false));
        assert!(!is_foreign(port, |pid| pid == std::process::id()));
        drop(listener);
        assert!(!is_foreign(port, |_| false), "nobody listens: no evidence");
    }

    #[test]
    fn an_address_that_is_not_ours_takes_no_port() {
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 0));
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(are_free(&[elsewhere, here], 0));
        assert!(!are_free(&[elsewhere], 0), "nobody would ever answer there");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind(taken).unwrap();
        assert!(!are_free(&[elsewhere, taken], taken.port()));
        assert!(!is_free("127.0.0.1", taken.port()) && !is_free("localhost", taken.port()));
        drop(listener);
        assert!(is_free("localhost", taken.port()));
    }
}
