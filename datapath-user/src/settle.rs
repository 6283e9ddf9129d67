//! Waiting until the kernel delivers to an IPv6 address that it already shows.
//!
//! An address that is added without duplicate address detection is usable at once for who sends,
//! but its local route comes from a work queue that needs the RTNL (`addrconf_dad_start`,
//! net/ipv6/addrconf.c). Until then the host drops what arrives for it as not its own
//! (`Ip6InAddrErrors`). Measured with eight nodes set up at once on two processors: 107 ms.

use std::fs::{self, File};
use std::io::{Error as IoError, ErrorKind};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// Routes of the reading thread's namespace, all tables.
const ROUTES: &str = "/proc/thread-self/net/ipv6_route";
/// `RTF_LOCAL` (`include/uapi/linux/ipv6_route.h`).
const LOCAL: u32 = 0x8000_0000;
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until an interface in a namespace receives what is sent to these addresses.
///
/// # Errors
///
/// [`Error::File`]: the namespace cannot be entered, or five seconds were not enough.
pub(crate) fn wait(netns: &Path, interface: &str, addresses: &[IpAddr]) -> Result<(), Error> {
    let wanted: Vec<_> = addresses
        .iter()
        .filter_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let namespace = File::open(netns).map_err(Error::file("open", netns))?;
    let inside = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::file("enter", netns)(errno.into()))?;
        poll(interface, &wanted)
    };
    thread::scope(|scope| {
        let waiting = thread::Builder::new()
            .name("dp-settle".into())
            .spawn_scoped(scope, inside)
            .map_err(Error::file("start a thread in", netns))?;
        waiting
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn poll(interface: &str, wanted: &[Ipv6Addr]) -> Result<(), Error> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(250);
    loop {
        let routes = fs::read_to_string(ROUTES).map_err(Error::file("read", ROUTES))?;
        let is_local = |address| routes.lines().any(|route| leads(route, interface, address));
        if wanted.iter().all(is_local) {
            return Ok(());
        }
        if Instant::now() >= end {
            let missing = IoError::new(
                ErrorKind::TimedOut,
                format!("no local route to {wanted:?} on {interface} within {PATIENCE:?}"),
            );
            return Err(Error::file("wait for local routes in", ROUTES)(missing));
        }
        thread::sleep(pause);
        // A node may have very many routes: ask less and less often.
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether a line of `ipv6_route` is the local route of an address:
/// destination, prefix length, five other fields, then flags and interface
/// (`rt6_info_route`, net/ipv6/route.c; numbers in hexadecimal).
fn leads(route: &str, interface: &str, address: &Ipv6Addr) -> bool {
    let mut fields = route.split_ascii_whitespace();
    let destination = fields
        .next()
        .and_then(|text| u128::from_str_radix(text, 16).ok());
    let host = fields.next() == Some("80");
    let mut end = fields.rev();
    let on_interface = end.next() == Some(interface);
    let flags = end
        .next()
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .unwrap_or(0);
    destination == Some(address.to_bits()) && host && on_interface && flags & LOCAL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_local_route_of_the_address_counts() {
        let line = |destination: &str, bits: &str, flags: &str, interface: &str| {
            let none = "00000000000000000000000000000000";
            format!(
                "{destination} {bits} {none} 00 {none} 00000000 00000002 00000000 {flags}   \
                 {interface}"
            )
        };
        let five = "fd000000000000000000000000000005";
        let address: Ipv6Addr = "fd00::5".parse().unwrap();
        let local = |line: String| leads(&line, "eth0", &address);
        assert!(local(line(five, "80", "80200001", "eth0")));
        assert!(
            !local(line(five, "80", "00000001", "eth0")),
            "the route of the prefix"
        );
        assert!(!local(line(five, "40", "80200001", "eth0")));
        assert!(!local(line(five, "80", "80200001", "eth1")));
        assert!(!local(line(
            "fd000000000000000000000000000006",
            "80",
            "80200001",
            "eth0"
        )));
        assert!(!local(String::new()));
    }

    #[test]
    fn ipv4_has_nothing_to_wait_for() {
        let nowhere = Path::new("/nonexistent");
        assert!(wait(nowhere, "eth0", &["10.0.0.1".parse().unwrap()]).is_ok());
        assert!(wait(nowhere, "eth0", &["fd00::1".parse().unwrap()]).is_err());
    }
}
